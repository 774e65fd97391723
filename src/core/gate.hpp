// Lets a call step what comes while it runs.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

namespace adamas {

// Between one that brings a table's rows, part by part, and the threads that step them. Elements
// are counted from the first row's to the last one's, end to end.
class Gate {
 public:
  // Of parts that end there: where a row does, or at a multiple of 64 of its elements.
  explicit Gate(std::vector<std::int64_t> ends) : ends_(std::move(ends)), left_(ends_.size()) {
    std::adjacent_difference(ends_.begin(), ends_.end(), left_.begin());
  }

  // How many elements there are.
  std::int64_t size() const { return ends_.empty() ? 0 : ends_.back(); }
  std::size_t parts() const { return ends_.size(); }

  // A part and all before it have come.
  void open(std::size_t part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    there_ = part + 1;
    come_.notify_all();
  }

  // Waits until a part is stepped; false if it is not, and will not be.
  bool wait(std::size_t part) {
    std::unique_lock<std::mutex> lock(mutex_);
    stepped_.wait(lock, [&] { return closed_ || !left_[part]; });
    return !left_[part];
  }

  // Ends all waiting: what has not been taken is not stepped any more.
  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    come_.notify_all();
    stepped_.notify_all();
  }

  // Which part an element is of.
  std::size_t part_of(std::int64_t element) const {
    return std::upper_bound(ends_.begin(), ends_.end(), element) - ends_.begin();
  }

  std::int64_t end(std::size_t part) const { return ends_[part]; }

  // Waits until a part has come; false if it will not.
  bool await(std::size_t part) {
    std::unique_lock<std::mutex> lock(mutex_);
    come_.wait(lock, [&] { return closed_ || there_ > part; });
    return there_ > part;
  }

  // So many elements of a part are stepped.
  void finish(std::size_t part, std::int64_t elements) {
    const std::lock_guard<std::mutex> lock(mutex_);
    left_[part] -= elements;
    if (!left_[part]) stepped_.notify_all();
  }

 private:
  const std::vector<std::int64_t> ends_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable come_, stepped_;
  std::vector<std::int64_t> left_;  // elements of each part that are not stepped yet
  std::size_t there_ = 0;           // parts that have come
  bool closed_ = false;
};

}  // namespace adamas
