#include "step.hpp"

#include <algorithm>
#include <atomic>
#include <vector>

#include "pool.hpp"

namespace adamas {

void step(const Row* rows, std::int64_t row_count, const double* coefficients, Kernel kernel,
          int threads, std::int64_t grain) {
  std::vector<std::int64_t> ends(row_count);  // where each row ends among all elements
  std::int64_t total = 0;
  for (std::int64_t r = 0; r < row_count; ++r) ends[r] = total += rows[r].size;

  const std::int64_t pieces = total / grain + (total % grain != 0);
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t piece; (piece = next.fetch_add(1)) < pieces;) {
      std::int64_t at = piece * grain;
      const std::int64_t until = std::min(at + grain, total);
      std::int64_t r = std::upper_bound(ends.begin(), ends.end(), at) - ends.begin();
      for (; at < until; ++r) {
        const std::int64_t start = ends[r] - rows[r].size, end = std::min(ends[r], until);
        if (end > at)
          kernel(rows[r], coefficients + rows[r].coefficients * coefficient_count, at - start,
                 end - start);
        at = end;
      }
    }
  };
  run(static_cast<int>(std::min<std::int64_t>(threads, pieces)) - 1, work);
}

}  // namespace adamas
