// All elements of a table, end to end, cut into pieces that threads take in turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "table.hpp"

namespace adamas {

// Elements that a thread takes at a time, unless told otherwise: so many that taking them costs
// nothing, more of a large table, whose memory is read faster in longer stretches, and so few that
// no thread waits long for the last one.
inline std::int64_t default_grain(std::int64_t total) {
  return std::clamp<std::int64_t>(total / 256, 1 << 15, 1 << 18);
}

// Elements for each thread, at least, unless a grain says how many one takes: fewer are stepped
// sooner than a thread that sleeps is awake.
constexpr std::int64_t worth_waking = 1 << 16;

class Pieces {
 public:
  // Pieces of `grain` elements, but for the last; 0 stands for the default.
  Pieces(const Row* rows, std::int64_t row_count, std::int64_t grain)
      : rows_(rows), ends_(row_count), grain_(grain) {
    std::int64_t total = 0;
    for (std::int64_t r = 0; r < row_count; ++r) ends_[r] = total += rows[r].size;
    if (!grain) grain_ = default_grain(total);
    count_ = total / grain_ + (total % grain_ != 0);
    busy_ = grain ? count_ : std::min(count_, total / worth_waking);
  }

  std::int64_t grain() const { return grain_; }

  // How many threads there is work for; below 2, the caller's alone.
  int threads(int most) const { return static_cast<int>(std::min<std::int64_t>(most, busy_)); }

  // Takes pieces until there are none, and calls `use(row, begin, end)` for what of a row lies in
  // them, cut at the row's multiples of 64. Several threads may do so at once.
  template <class Use>
  void each(const Use& use) {
    const std::int64_t total = ends_.empty() ? 0 : ends_.back();
    for (std::int64_t piece; (piece = next_.fetch_add(1)) < count_;) {
      std::int64_t at = piece * grain_;
      const std::int64_t until = std::min(at + grain_, total);
      std::int64_t r = std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin();
      for (; at < until; ++r) {
        const std::int64_t size = rows_[r].size, start = ends_[r] - size;
        const std::int64_t begin = whole_groups(at - start, size);
        const std::int64_t end = whole_groups(std::min(ends_[r], until) - start, size);
        if (end > begin) use(rows_[r], begin, end);
        at = std::min(ends_[r], until);
      }
    }
  }

 private:
  // Rounded up, as far as the row goes.
  static std::int64_t whole_groups(std::int64_t elements, std::int64_t size) {
    return std::min((elements + row_alignment - 1) / row_alignment * row_alignment, size);
  }

  const Row* rows_;
  std::vector<std::int64_t> ends_;  // where each row ends among all elements
  std::int64_t grain_, count_, busy_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace adamas
