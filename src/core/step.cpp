#include "step.hpp"

#include <mutex>

#include "pieces.hpp"
#include "pool.hpp"

namespace adamas {
namespace {

void add(Measures& all, const Measures& part) {
  all.grad += part.grad;
  all.exp_avg += part.exp_avg;
  all.exp_avg_sq += part.exp_avg_sq;
  all.update += part.update;
  all.param += part.param;
  all.largest = larger(all.largest, part.largest);
  all.stalled += part.stalled;
}

}  // namespace

void step(const Row* rows, std::int64_t row_count, const double* coefficients, Kernel kernel,
          int threads, std::int64_t grain, Measures* found, Gate* gate) {
  Pieces pieces(rows, row_count, grain, threads, gate);
  std::mutex mutex;  // of what was found
  const auto use = [&](const Row& row, std::int64_t begin, std::int64_t end) {
    const double* own = coefficients + row.coefficients * coefficient_count;
    if (!found) return kernel(row, own, begin, end, nullptr);
    Measures part{};
    kernel(row, own, begin, end, &part);
    const std::lock_guard<std::mutex> lock(mutex);
    add(found[&row - rows], part);
  };
  run(pieces.threads() - 1, [&] { pieces.each(use); }, gate ? Helpers::own : Helpers::of_framework);
}

}  // namespace adamas
