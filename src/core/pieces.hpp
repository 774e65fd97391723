// All elements of a table, end to end, cut into pieces that threads take in turn.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "gate.hpp"
#include "table.hpp"

namespace adamas {

// Elements for each thread, at least, unless a grain says how many one takes: fewer are stepped
// sooner than a thread that sleeps is awake.
constexpr std::int64_t worth_waking = 1 << 16;

class Pieces {
 public:
  // For up to so many threads. Pieces of `grain` elements, but for the last; or for 0 of half a
  // thread's share of what is left: memory is read faster in longer stretches, and at the end no
  // thread waits long for the others. Where there is a gate, each piece is of one of its parts, and
  // waits until that has come.
  Pieces(const Row* rows, std::int64_t row_count, std::int64_t grain, int threads,
         Gate* gate = nullptr)
      : rows_(rows), ends_(row_count), gate_(gate), grain_(grain) {
    for (std::int64_t r = 0; r < row_count; ++r) ends_[r] = total_ += rows[r].size;
    const std::int64_t busy = grain ? (total_ - 1) / grain + 1 : total_ / worth_waking;
    threads_ = static_cast<int>(std::clamp<std::int64_t>(busy, 1, threads));
  }

  // Elements of a piece, at most.
  std::int64_t most() const { return grain_ ? grain_ : most_; }

  // How many threads there is work for, the caller's among them.
  int threads() const { return threads_; }

  // Takes pieces until there are none, and calls `use(row, begin, end)` for what of a row lies in
  // them, cut at the row's multiples of 64. Several threads may do so at once.
  template <class Use>
  void each(const Use& use) {
    for (std::int64_t at, until; take(at, until);) {
      const std::int64_t count = until - at;
      const std::size_t part = gate_ ? gate_->part_of(at) : 0;
      if (gate_ && !gate_->await(part)) return;
      std::int64_t r = std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin();
      for (; at < until; ++r) {
        const std::int64_t size = rows_[r].size, start = ends_[r] - size;
        const std::int64_t begin = whole_groups(at - start, size);
        const std::int64_t end = whole_groups(std::min(ends_[r], until) - start, size);
        if (end > begin) use(rows_[r], begin, end);
        at = std::min(ends_[r], until);
      }
      if (gate_) gate_->finish(part, count);
    }
  }

 private:
  // Of a piece, unless a grain says it: so many elements that taking them costs nothing, and few
  // enough to wait for; and so many that memory is read no faster in more.
  static constexpr std::int64_t fewest_ = 1 << 15, most_ = 1 << 18;

  // Takes the next piece, elements [begin, end); false if none is left.
  bool take(std::int64_t& begin, std::int64_t& end) {
    begin = next_.load();
    do {
      const std::int64_t left = total_ - begin;
      const std::int64_t share = std::clamp(left / threads_ / 2, fewest_, most_);
      end = begin + std::min(left, grain_ ? grain_ : share);
      if (gate_ && left > 0) end = std::min(end, gate_->end(gate_->part_of(begin)));
    } while (!next_.compare_exchange_weak(begin, end));
    return begin < end;
  }

  // Rounded up, as far as the row goes.
  static std::int64_t whole_groups(std::int64_t elements, std::int64_t size) {
    return std::min((elements + row_alignment - 1) / row_alignment * row_alignment, size);
  }

  const Row* rows_;
  std::vector<std::int64_t> ends_;  // where each row ends among all elements
  Gate* gate_;
  std::int64_t grain_, total_ = 0;
  int threads_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace adamas
