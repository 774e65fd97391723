// Threads that help the caller. They start on first use, mostly sleep between calls, and are made
// anew after a fork.
#pragma once

#include <functional>

namespace adamas {

// What helpers do next. To wake them takes some 30 us of the caller's time, and they come 20 us
// later; where another call follows at once, they stay awake for it, but not for long.
enum class Then { sleep, stay_awake };

// Runs `work` on the calling thread and on up to `helpers` others at once, and returns when all
// have returned; then the helpers do as told.
//
// `work` takes its share from a counter of its own, so it may run on any number of threads, one
// included: helpers that wake too late are not waited for, and a call that finds the threads busy
// with another call runs alone. It must not throw. Every thread computes with the default
// floating-point environment (no flushing of denormals), whatever the caller's is.
void run(int helpers, const std::function<void()>& work, Then then = Then::sleep);

}  // namespace adamas
