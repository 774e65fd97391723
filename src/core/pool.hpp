// Threads that help the caller: a framework's, which it has at hand, or else our own. Those start
// on first use, sleep between calls, and are made anew after a fork.
#pragma once

#include <cstdint>
#include <functional>

namespace adamas {

enum class Helpers { of_framework, own };

// Runs `work` on the calling thread and on up to `helpers` others at once, and returns when all
// have returned.
//
// `work` takes its share from a counter of its own, so it may run on any number of threads, one
// included: our own helpers that wake too late are not waited for, and a call that finds the
// threads busy with another call runs alone. It must not throw. Every thread computes with the
// default floating-point environment (no flushing of denormals), whatever the caller's is.
void run(int helpers, const std::function<void()>& work, Helpers whose = Helpers::of_framework);

// Lets the threads of a framework help from now on, which it uses through OpenMP, by the addresses
// of its GOMP_parallel and omp_get_max_threads; 0 for neither. A forked process has none of them.
//
// After work of their own such threads spin for some milliseconds, since more may come. Ours would
// share the processors with them: in a training loop a step takes up to twice as long then. All of
// them are called, as the framework does, since OpenMP ends those that a call leaves out.
void adopt(std::uintptr_t parallel, std::uintptr_t most_threads);

}  // namespace adamas
