#include "step.hpp"

#include <algorithm>
#include <mutex>

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

void measured_step(const Row* rows, std::int64_t row_count, const double* coefficients,
                   MeasuringKernel kernel, int threads, std::int64_t grain, Measures* found) {
  Pieces pieces(rows, row_count, grain);
  std::mutex mutex;
  run(pieces.threads(threads) - 1, [&] {
    pieces.each([&](const Row& row, std::int64_t begin, std::int64_t end) {
      Measures mine{};
      kernel(row, coefficients + row.coefficients * coefficient_count, begin, end, mine);
      const std::lock_guard<std::mutex> lock(mutex);
      Measures& all = found[&row - rows];
      all.grad += mine.grad;
      all.exp_avg += mine.exp_avg;
      all.exp_avg_sq += mine.exp_avg_sq;
      all.update += mine.update;
      all.param += mine.param;
      all.largest = std::max(all.largest, mine.largest);
      all.stalled += mine.stalled;
    });
  });
}

}  // namespace adamas
