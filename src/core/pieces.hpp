// All elements of a table, end to end, cut into pieces that threads take in turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "table.hpp"

namespace adamas {

class Pieces {
 public:
  // Pieces of `grain` elements, but for the last.
  Pieces(const Row* rows, std::int64_t row_count, std::int64_t grain)
      : rows_(rows), ends_(row_count), grain_(grain) {
    std::int64_t total = 0;
    for (std::int64_t r = 0; r < row_count; ++r) ends_[r] = total += rows[r].size;
    count_ = total / grain + (total % grain != 0);
  }

  // How many threads there is work for.
  int threads(int most) const { return static_cast<int>(std::min<std::int64_t>(most, count_)); }

  // Takes pieces until there are none, and calls `use(row, begin, end)` for what of a row lies in
  // them. Several threads may do so at once.
  template <class Use>
  void each(const Use& use) {
    const std::int64_t total = ends_.empty() ? 0 : ends_.back();
    for (std::int64_t piece; (piece = next_.fetch_add(1)) < count_;) {
      std::int64_t at = piece * grain_;
      const std::int64_t until = std::min(at + grain_, total);
      std::int64_t r = std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin();
      for (; at < until; ++r) {
        const std::int64_t start = ends_[r] - rows_[r].size, end = std::min(ends_[r], until);
        if (end > at) use(rows_[r], at - start, end - start);
        at = end;
      }
    }
  }

 private:
  const Row* rows_;
  std::vector<std::int64_t> ends_;  // where each row ends among all elements
  std::int64_t grain_, count_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace adamas
