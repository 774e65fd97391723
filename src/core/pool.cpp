#include "pool.hpp"

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace adamas {
namespace {

// torch.set_flush_denormal, and any library linked with -ffast-math, change the mode of the thread
// that calls us.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&callers_); }

 private:
  std::fenv_t callers_;
};

using Clock = std::chrono::steady_clock;

using Work = std::function<void()>;

// A framework's threads, null where there are none.
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<Parallel> parallel{nullptr};
std::atomic<int (*)()> most_threads{nullptr};
std::atomic<bool> forked{false};  // then they are not there

// A call of all of them, of which so many work.
struct Call {
  const Work* work;
  std::atomic<int> places;

  static void take(void* call) {
    Call& self = *static_cast<Call*>(call);
    if (self.places.fetch_sub(1) < 1) return;
    const DefaultFloatingPoint mode;
    (*self.work)();
  }
};

class Pool {
 public:
  void run(int helpers, const Work& work, Helpers whose) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return work();
    const Parallel all = whose == Helpers::of_framework ? parallel.load() : nullptr;
    if (all && !forked.load() && most_threads.load()() > helpers) {
      Call call{&work, {helpers + 1}};
      return all(Call::take, &call, 0, 0);
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      start(helpers);
      work_ = &work;
      wanted_ = helpers < threads_ ? helpers : threads_;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    work();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      wanted_ = 0;
    }
    wait_for_active();
  }

 private:
  void start(int helpers) {
    while (threads_ < helpers) {
      try {
        std::thread([this] { help(); }).detach();
      } catch (const std::system_error&) {
        return;  // the system has no more threads to give: those that run suffice
      }
      ++threads_;
    }
  }

  void help() {
    std::fesetenv(FE_DFL_ENV);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0; });
      --wanted_;
      active_.fetch_add(1);
      const Work* work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (active_.fetch_sub(1) == 1) idle_.notify_one();
    }
  }

  // The last helpers are at most one piece of work behind, so a short spin nearly always saves the
  // sleep.
  void wait_for_active() {
    const auto until = Clock::now() + std::chrono::microseconds(50);
    while (active_.load() > 0) {
      if (Clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      idle_.wait(lock, [this] { return active_.load() == 0; });
    }
  }

  std::mutex owner_;  // held by the caller whom the helpers work for
  std::mutex mutex_;  // guards what follows; the atomic is also read without it
  std::condition_variable wake_, idle_;
  const Work* work_ = nullptr;
  int threads_ = 0, wanted_ = 0;
  std::atomic<int> active_{0};
};

// Never destroyed: its threads may still sleep in it while the process exits.
std::atomic<Pool*> the_pool{nullptr};

#ifndef _WIN32
// A child has none of its parent's threads, and perhaps its locks held: it starts with a new pool.
// OpenMP does not, and would wait for its threads forever. From the first: a parent may compute,
// and leave it to its child to step.
const int registered = pthread_atfork(nullptr, nullptr, [] {
  the_pool.store(nullptr);
  forked.store(true);
});
#endif

Pool& pool() {
  Pool* found = the_pool.load();
  if (!found) {
    Pool* made = new Pool;
    if (the_pool.compare_exchange_strong(found, made))
      found = made;
    else
      delete made;
  }
  return *found;
}

}  // namespace

void run(int helpers, const Work& work, Helpers whose) {
  const DefaultFloatingPoint mode;
  if (helpers < 1)
    work();
  else
    pool().run(helpers, work, whose);
}

void adopt(std::uintptr_t all, std::uintptr_t most) {
  most_threads.store(reinterpret_cast<int (*)()>(most));
  parallel.store(reinterpret_cast<Parallel>(all));
}

}  // namespace adamas
