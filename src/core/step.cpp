#include "step.hpp"

#include "pieces.hpp"
#include "pool.hpp"

namespace adamas {

void step(const Row* rows, std::int64_t row_count, const double* coefficients, Kernel kernel,
          int threads, std::int64_t grain) {
  Pieces pieces(rows, row_count, grain);
  run(pieces.threads(threads) - 1, [&] {
    pieces.each([&](const Row& row, std::int64_t begin, std::int64_t end) {
      kernel(row, coefficients + row.coefficients * coefficient_count, begin, end);
    });
  });
}

}  // namespace adamas
