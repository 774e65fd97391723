// The core's own test, without Python. With no argument it holds every instruction set, number of
// threads and grain to the plain loop, bit for bit; with "fork", a step in a forked process. With
// "replay" it steps what standard input gives and writes the result to standard output; replay.py
// feeds it. With "isas" it lists the instruction sets.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gate.hpp"
#include "isa.hpp"
#include "norm.hpp"
#include "pool.hpp"
#include "step.hpp"

using namespace adamas;

namespace {

const double some_coefficients[coefficient_count] = {0.9,  0.1, 0.999, 1e-3, 0.01, 31.6, 1e-8,
                                                     1e-4, 0,   0,     1,    1,    1};

Row row_of(const std::vector<void*>& arrays, std::int64_t size, const Types& types) {
  Row row{};
  std::copy(arrays.begin(), arrays.end(), row.arrays);
  row.size = size;
  row.types = types;
  row.run = INT64_MAX;
  return row;
}

// A rule, and which of its averages there are.
struct Averages {
  Rule rule;
  bool m, v, w;
};
constexpr Averages adam = {Rule::adam, true, true, false};
constexpr Averages all_rules[] = {
    adam,
    {Rule::adam, true, true, true},
    {Rule::sgd, false, false, false},
    {Rule::sgd, true, false, false},
    {Rule::rmsprop, false, true, false},
    {Rule::rmsprop, false, true, true},
    {Rule::rmsprop, true, true, false},
    {Rule::rmsprop, true, true, true},
};

// Parameters and averages of several tensors of one type, with gradients.
struct Tensors {
  std::vector<std::vector<double>> memory;  // doubles, for their alignment
  std::vector<Row> rows;

  Tensors(const std::vector<std::int64_t>& sizes, Dtype dtype, const Averages& has = adam) {
    std::uint64_t state = 42;
    for (std::int64_t size : sizes) {
      for (int k = 0; k < 5; ++k) {
        memory.emplace_back(size);
        for (std::int64_t i = 0; i < size; ++i) {
          state = state * 6364136223846793005u + 1442695040888963407u;
          const double x = k > 1 ? 0 : static_cast<double>(state >> 40) / (1 << 20) - 8;
          if (dtype == Dtype::float64)
            memory.back()[i] = x;
          else
            reinterpret_cast<float*>(memory.back().data())[i] = static_cast<float>(x);
        }
      }
      std::vector<double>* last = &memory.back() - 4;
      void* m = has.m ? last[2].data() : nullptr;
      void* v = has.v ? last[3].data() : nullptr;
      void* w = has.w ? last[4].data() : nullptr;
      rows.push_back(row_of({last[0].data(), last[1].data(), m, v, w}, size,
                            {dtype, dtype, Moments::full, Master::none, has.rule, {}}));
    }
  }
};

void check(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}

void step_all(Tensors& tensors, const Isa& isa, int threads, std::int64_t grain) {
  for (int t = 0; t < 3; ++t)
    step(tensors.rows.data(), tensors.rows.size(), some_coefficients, isa.kernel, threads, grain);
}

int test_bits() {
  std::vector<std::int64_t> sizes = {0, 5000, 0, 0};
  for (std::int64_t n = 1; n < 70; ++n) sizes.push_back(n);
  sizes.push_back(0);
  int cases = 0;
  for (Dtype dtype : {Dtype::float32, Dtype::float64})
    for (const Averages& has : all_rules) {
      Tensors plain(sizes, dtype, has);
      const std::vector<std::vector<double>> before = plain.memory;
      step_all(plain, isas().back(), 1, 1 << 30);
      check(plain.memory != before, "a step changes the parameters");
      for (const Isa& isa : isas())
        for (int threads : {1, 2, 3, 8})
          for (std::int64_t grain : {0, 1, 7, 64, 1000, 1 << 30}) {
            Tensors tensors(sizes, dtype, has);
            step_all(tensors, isa, threads, grain);
            check(tensors.memory == plain.memory, std::string(isa.name) + ", " +
                                                      std::to_string(threads) + " threads, grain " +
                                                      std::to_string(grain));
            ++cases;
          }
    }
  return cases;
}

// The exact sum of squares is the same however it is cut, and every estimate is as near to it as it
// says; a measured step has the bits of a plain one.
int test_sums_and_measures() {
  const std::vector<std::int64_t> sizes = {0, 5000, 1, 33, 2049};
  int cases = 0;
  for (Dtype dtype : {Dtype::float32, Dtype::float64}) {
    const Tensors tensors(sizes, dtype);
    const Row* rows = tensors.rows.data();
    const auto count = static_cast<std::int64_t>(tensors.rows.size());
    const Digits exact = exact_square_sum(rows, count, 0.5, 1, 1 << 30);
    long double sum = 0;
    for (std::size_t k = 0; k < exact.size(); ++k)
      sum += std::ldexp(static_cast<long double>(exact[k]), 32 * static_cast<int>(k) - 1074);
    check(sum > 0, "gradients are not all zero");
    Tensors plain(sizes, dtype);
    step_all(plain, isas().back(), 1, 1 << 30);
    for (const Isa& isa : isas())
      for (int threads : {1, 3})
        for (std::int64_t grain : {7, 1000, 1 << 30}) {
          check(exact_square_sum(rows, count, 0.5, threads, grain) == exact, "an exact sum");
          const Estimate estimate = square_sum(rows, count, 0.5, isa.square_sum, threads, grain);
          check(std::fabs(estimate.value - sum) <= estimate.error, "an estimate");
          Tensors measured(sizes, dtype);
          std::vector<Measures> found(sizes.size());
          for (int t = 0; t < 3; ++t)
            step(measured.rows.data(), count, some_coefficients, isa.kernel, threads, grain,
                 found.data());
          check(measured.memory == plain.memory, "a measured step");
          check(found[1].update > 0 && found[0].update == 0, "its measures");
          ++cases;
        }
  }
  return cases;
}

// Sizes beyond 32 bits, with a kernel that only counts.
int test_sizes() {
  static std::int64_t next[3], pieces;
  static const Row* first;
  const Kernel count = [](const Row& row, const double*, std::int64_t begin, std::int64_t end,
                          Measures*) {
    std::int64_t& at = next[&row - first];
    check(begin == at && end > begin && end <= row.size, "pieces of a row follow one another");
    at = end;
    ++pieces;
  };
  const std::int64_t big = (std::int64_t{1} << 32) + 1;
  const Row rows[3] = {row_of({}, big, {}), row_of({}, 0, {}), row_of({}, big / 2 + 7, {})};
  first = rows;
  step(rows, 3, some_coefficients, count, 1, 1 << 20);
  check(next[0] == rows[0].size && next[1] == 0 && next[2] == rows[2].size, "every element");
  check(pieces == (rows[0].size + rows[2].size) / (1 << 20) + 2, "one piece more at the seam");
  return 1;
}

// Rows that come in parts while the call that steps them runs, and are read as soon as it tells
// that they are stepped; the last part may not come.
void check_gate(const std::vector<std::int64_t>& sizes, std::size_t rows, int threads,
                std::int64_t grain, bool whole) {
  Tensors plain(sizes, Dtype::float32), tensors(sizes, Dtype::float32);
  step(plain.rows.data(), sizes.size(), some_coefficients, isas()[0].kernel, 1, 1 << 30);
  const Tensors before = tensors;
  for (auto& array : tensors.memory) std::fill(array.begin(), array.end(), 0);
  std::vector<std::int64_t> ends;
  for (std::size_t r = 0; r < sizes.size(); ++r) {
    if (r % rows == 0) ends.push_back(ends.empty() ? 0 : ends.back());
    ends.back() += sizes[r];
  }
  const auto each = [&](std::size_t part, const auto& use) {
    const std::size_t arrays = tensors.memory.size() / sizes.size();
    for (std::size_t r = part * rows; r < std::min((part + 1) * rows, sizes.size()); ++r)
      for (std::size_t k = r * arrays; k < (r + 1) * arrays; ++k) use(k);
  };
  Gate gate(ends);
  std::thread caller([&] {
    step(tensors.rows.data(), sizes.size(), some_coefficients, isas()[0].kernel, threads, grain,
         nullptr, &gate);
  });
  const std::size_t come = ends.size() - (whole ? 0 : 1);
  for (std::size_t part = 0; part < come; ++part) {
    each(part, [&](std::size_t k) {
      std::copy(before.memory[k].begin(), before.memory[k].end(), tensors.memory[k].begin());
    });
    gate.open(part);
    check(gate.wait(part), "a part that has come is stepped");
    each(part, [&](std::size_t k) {
      check(tensors.memory[k] == plain.memory[k], "rows that come while they are stepped");
    });
  }
  gate.close();
  caller.join();
  if (whole) return;
  check(!gate.wait(come), "a part that does not come is not stepped");
  each(come, [&](std::size_t k) {
    for (double x : tensors.memory[k]) check(x == 0, "nor touched");
  });
}

int test_gate() {
  int cases = 0;
  for (int threads : {1, 2, 3, 8})
    for (std::int64_t grain : {0, 7, 64, 1000, 1 << 30})
      for (std::size_t rows : {1, 2, 7})
        for (bool whole : {true, false}) {
          check_gate({5000, 0, 1, 64, 129, 0, 70, 300, 900}, rows, threads, grain, whole);
          ++cases;
        }
  return cases;
}

// Callers at the same time: one has the helpers, the others work alone.
int test_callers() {
  const std::vector<std::int64_t> sizes = {3000, 17};
  Tensors plain(sizes, Dtype::float32);
  for (int i = 0; i < 50; ++i) step_all(plain, isas()[0], 1, 1 << 30);
  std::vector<Tensors> tensors(4, Tensors({}, Dtype::float32));
  std::vector<std::thread> callers;
  for (Tensors& mine : tensors)
    callers.emplace_back([&] {
      mine = Tensors(sizes, Dtype::float32);
      for (int i = 0; i < 50; ++i) step_all(mine, isas()[0], 3, 100);
    });
  for (std::thread& caller : callers) caller.join();
  for (const Tensors& mine : tensors) check(mine.memory == plain.memory, "callers at once");
  return 4;
}

// A framework's threads, as OpenMP has them: all are called whatever is to be done.
constexpr int team_size = 4;
std::atomic<int> parallel_calls{0};

int most_threads() { return team_size; }

void parallel(void (*function)(void*), void* data, unsigned, unsigned) {
  ++parallel_calls;
  std::vector<std::thread> others;
  for (int i = 1; i < team_size; ++i) others.emplace_back(function, data);
  function(data);
  for (std::thread& other : others) other.join();
}

void adopt_team() {
  adopt(reinterpret_cast<std::uintptr_t>(parallel), reinterpret_cast<std::uintptr_t>(most_threads));
}

// Calls in turn by our helpers and a framework's, each with a plain array as its share's memory: a
// helper that came too late, or stayed too long, would write into another call's.
int test_helpers() {
  adopt_team();
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller)
    callers.emplace_back([] {
      for (int call = 0; call < 300; ++call) {
        std::vector<int> done(64);
        std::atomic<std::size_t> next{0};
        const auto work = [&] {
          for (std::size_t i; (i = next.fetch_add(1)) < done.size();) ++done[i];
        };
        run(3, work, call % 2 ? Helpers::own : Helpers::of_framework);
        check(done == std::vector<int>(64, 1), "each share once");
      }
    });
  for (std::thread& caller : callers) caller.join();
  return 1;
}

// How often a call of `run` calls a framework's threads.
int calls_for(int helpers, Helpers whose) {
  std::atomic<int> works{0};
  const int before = parallel_calls;
  run(helpers, [&] { ++works; }, whose);
  check(works >= 1 && works <= helpers + 1, "no more work than are wanted");
  const int calls = parallel_calls - before;
  check(!calls || works == helpers + 1, "all that are wanted work");
  return calls;
}

// All threads of a framework are called, and as many as are wanted work; where it has too few, our
// own do.
int test_framework() {
  adopt_team();
  for (int helpers = 1; helpers < team_size; ++helpers)
    check(calls_for(helpers, Helpers::of_framework) == 1, "a framework's threads");
  check(calls_for(0, Helpers::of_framework) == 0, "the caller alone");
  check(calls_for(team_size, Helpers::of_framework) == 0, "too few threads");
  check(calls_for(1, Helpers::own) == 0, "our own threads");
  adopt(0, 0);
  check(calls_for(1, Helpers::of_framework) == 0, "no framework");
  return 7;
}

int test_fork() {
  const std::vector<std::int64_t> sizes = {3000};
  Tensors plain(sizes, Dtype::float32), before(sizes, Dtype::float32);
  step_all(plain, isas()[0], 1, 1 << 30);
  step_all(before, isas()[0], 3, 100);  // the pool runs
  adopt_team();
  const pid_t child = fork();
  if (child == 0) {
    Tensors tensors(sizes, Dtype::float32);
    step_all(tensors, isas()[0], 3, 100);
    _exit(tensors.memory == plain.memory && !parallel_calls ? 0 : 1);
  }
  int status = -1;
  check(waitpid(child, &status, 0) == child && status == 0, "a step after fork, by our threads");
  return 1;
}

template <class T>
T* read(std::vector<T>& into, std::size_t count) {
  into.resize(count);
  check(!count || std::fread(into.data(), sizeof(T), count, stdin) == count,
        "standard input is too short");
  return into.data();
}

// How a case is stepped.
struct Way {
  char isa[16];
  std::int64_t threads, grain;

  Kernel kernel() const {
    for (const Isa& known : isas())
      if (!std::strncmp(known.name, isa, sizeof isa)) return known.kernel;
    check(false, "this processor has no instruction set of that name");
    return nullptr;
  }
};

// Tensors, and all that each of their steps is given.
class Recorded {
 public:
  Recorded(std::int64_t rows, std::int64_t steps, std::int64_t sets)
      : rows_(rows), initial_(rows * array_count), coefficients_(steps), gradients_(steps * rows) {
    read(table_, rows * entry_size);
    for (std::size_t k = 0; k < initial_.size(); ++k) read(initial_[k], bytes(k));
    for (std::int64_t t = 0; t < steps; ++t) {
      read(coefficients_[t], sets * coefficient_count);
      for (std::int64_t r = 0; r < rows; ++r) read(gradient(t, r), bytes(r * array_count + grad));
    }
  }

  // The arrays after the steps.
  std::vector<std::vector<char>> stepped(const Way& way) {
    const Kernel kernel = way.kernel();
    std::vector<std::vector<char>> arrays = initial_;
    std::vector<Row> rows;
    for (std::int64_t r = 0; r < rows_; ++r) {
      std::vector<void*> of_row;
      for (int k = 0; k < array_count; ++k) {
        std::vector<char>& array = arrays[r * array_count + k];
        of_row.push_back(array.empty() ? nullptr : array.data());
      }
      const std::int64_t* entry = &table_[r * entry_size];
      Types types;
      std::memcpy(&types, &entry[2], sizeof types);
      rows.push_back(row_of(of_row, entry[0], types));
      rows.back().coefficients = entry[1];
    }
    for (std::size_t t = 0; t < coefficients_.size(); ++t) {
      for (std::int64_t r = 0; r < rows_; ++r)
        std::copy(gradient(t, r).begin(), gradient(t, r).end(),
                  arrays[r * array_count + grad].begin());
      step(rows.data(), rows_, coefficients_[t].data(), kernel, static_cast<int>(way.threads),
           way.grain);
    }
    return arrays;
  }

 private:
  static constexpr int entry_size = 3 + array_count;
  std::size_t bytes(std::size_t k) const {
    return table_[k / array_count * entry_size + 3 + k % array_count];
  }
  std::vector<char>& gradient(std::size_t t, std::int64_t r) { return gradients_[t * rows_ + r]; }

  std::int64_t rows_;
  std::vector<std::int64_t> table_;
  std::vector<std::vector<char>> initial_;
  std::vector<std::vector<double>> coefficients_;
  std::vector<std::vector<char>> gradients_;
};

// Input: int64 rows, steps, sets, ways; the ways; for each row int64 size, set, types and bytes of
// each array; the arrays; for each step the coefficients and the gradients. Output: for each way
// the arrays of each row, but for its gradient. All ways are of one process, which takes longer to
// begin and to end under a sanitizer than all of them.
int replay() {
  std::vector<std::int64_t> head;
  std::vector<Way> ways;
  read(head, 4);
  read(ways, head[3]);
  Recorded recorded(head[0], head[1], head[2]);
  for (const Way& way : ways) {
    const auto arrays = recorded.stepped(way);
    for (std::size_t k = 0; k < arrays.size(); ++k)
      if (k % array_count != grad && !arrays[k].empty())
        std::fwrite(arrays[k].data(), 1, arrays[k].size(), stdout);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "replay") return replay();
  if (what == "isas") {
    for (const Isa& isa : isas()) std::puts(isa.name);
    return 0;
  }
  // Apart, since neither the thread sanitizer nor qemu follows threads into a forked process.
  const int passed = what == "fork"
                         ? test_fork()
                         : test_bits() + test_sums_and_measures() + test_sizes() + test_gate() +
                               test_callers() + test_helpers() + test_framework();
  std::printf("%d passed, 0 failed\n", passed);
}
