// The one loop, for every type, format and option. CMake compiles this file once for each
// instruction set, with ADAMAS_ISA its name; the compiler vectorises it, body and tail alike.
#include <cfloat>

#include "block.hpp"
#include "coded.hpp"
#include "rule.hpp"
#include "table.hpp"

#ifdef __FAST_MATH__
#error "adamas must be compiled without -ffast-math: its bits would be others"
#endif
static_assert(FLT_EVAL_METHOD == 0, "each operation rounds to its own type");

namespace adamas {
namespace {

template <class T>
Coefficients<T> rounded(const double* from) {
  static_assert(sizeof(Coefficients<double>) == (coefficient_count - 1) * sizeof(double),
                "as wide as the table, but for the step's number");
  return {T(from[0]), T(from[1]), T(from[2]), T(from[3]), T(from[4]),  T(from[5]),
          T(from[6]), T(from[7]), T(from[8]), T(from[9]), T(from[10]), T(from[11])};
}

template <class T>
bool is_usual(const Coefficients<T>& c) {
  return c.l2 == 0 && c.maximize == 0 && c.unscale == 1 && c.clip == 1;
}

template <bool amsgrad, bool usual, class T>
void loop(T* __restrict p, const T* __restrict g, T* __restrict m, T* __restrict v,
          T* __restrict v_max, const Coefficients<T>& given, std::int64_t size) {
  const auto c = usual ? without_extras(given) : given;
  for (std::int64_t i = 0; i < size; ++i) {
    T unused = 0;
    adam<amsgrad>(p[i], g[i], m[i], v[i], amsgrad ? v_max[i] : unused, c);
  }
}

// Moments in the parameter's own type, all of it where it lies: at the speed of memory, of which
// the processor fetches less by itself than it could.
template <bool amsgrad, bool usual, class T>
void stream(T* p, const T* g, T* m, T* v, T* v_max, const Coefficients<T>& c, std::int64_t size) {
  constexpr std::int64_t ahead = 2048 / sizeof(T);
  std::int64_t at = 0;
  for (; at + group <= size; at += group) {
    fetch_group(p + at + ahead);
    fetch_group(g + at + ahead);
    fetch_group(m + at + ahead);
    fetch_group(v + at + ahead);
    loop<amsgrad, usual>(p + at, g + at, m + at, v + at, amsgrad ? v_max + at : nullptr, c, group);
  }
  loop<amsgrad, usual>(p + at, g + at, m + at, v + at, amsgrad ? v_max + at : nullptr, c,
                       size - at);
}

template <class T>
void step(const Row& row, const Coefficients<T>& c, std::int64_t begin, std::int64_t end) {
  T* p = static_cast<T*>(row.arrays[param]) + begin;
  const T* g = static_cast<const T*>(row.arrays[grad]) + begin;
  T* m = static_cast<T*>(row.arrays[exp_avg]) + begin;
  T* v = static_cast<T*>(row.arrays[exp_avg_sq]) + begin;
  const std::int64_t size = end - begin;
  if (row.arrays[max_exp_avg_sq]) {
    T* v_max = static_cast<T*>(row.arrays[max_exp_avg_sq]) + begin;
    is_usual(c) ? stream<true, true>(p, g, m, v, v_max, c, size)
                : stream<true, false>(p, g, m, v, v_max, c, size);
    return;
  }
  T* none = nullptr;
  is_usual(c) ? stream<false, true>(p, g, m, v, none, c, size)
              : stream<false, false>(p, g, m, v, none, c, size);
}

template <class T>
void measure(const T* before, const T* p, const T* gradient, const T* m, const T* v, T unscale,
             std::int64_t size, Measures& found) {
  for (std::int64_t i = 0; i < size; ++i) {
    const double g = gradient[i] * unscale, update = double(before[i]) - p[i];
    const double size_of_update = update < 0 ? -update : update;
    const double weight = before[i] < 0 ? -double(before[i]) : before[i];
    found.grad += g * g;
    found.exp_avg += double(m[i]) * m[i];
    found.exp_avg_sq += double(v[i]) * v[i];
    found.update += update * update;
    found.param += double(p[i]) * p[i];
    const double relative = weight == 0 ? 0 : size_of_update / weight;
    found.largest = larger(found.largest, relative);
    found.stalled += p[i] == before[i] && m[i] != 0 ? 1 : 0;
  }
}

// Steps a block, and measures it while it is in the innermost cache.
template <class T>
void step_and_measure(const Row& row, const Coefficients<T>& c, std::int64_t begin,
                      std::int64_t end, Measures& found) {
  constexpr std::int64_t block = 1024;
  const T* p = static_cast<const T*>(row.arrays[param]);
  const T* g = static_cast<const T*>(row.arrays[grad]);
  const T* m = static_cast<const T*>(row.arrays[exp_avg]);
  const T* v = static_cast<const T*>(row.arrays[exp_avg_sq]);
  T before[block];
  for (; begin < end; begin += block) {
    const std::int64_t size = end - begin < block ? end - begin : block;
    for (std::int64_t i = 0; i < size; ++i) before[i] = p[begin + i];
    step<T>(row, c, begin, begin + size);
    measure<T>(before, p + begin, g + begin, m + begin, v + begin, c.unscale, size, found);
  }
}

// A block in float32. What is kept in that type is used where it lies.
struct Stage {
  alignas(64) float params[block], grads[block], first[block], second[block];
  float *p, *m, *v, *v_max;
  const float* g;

  void open(const Row& part, int size) {
    const bool full = part.types.moments == Moments::full;
    p = part.types.param == Dtype::float32 ? static_cast<float*>(part.arrays[param]) : params;
    m = full ? static_cast<float*>(part.arrays[exp_avg]) : first;
    v = full ? static_cast<float*>(part.arrays[exp_avg_sq]) : second;
    v_max = static_cast<float*>(part.arrays[max_exp_avg_sq]);
    g = part.types.grad == Dtype::float32 ? static_cast<const float*>(part.arrays[grad]) : grads;
    if (p == params) load_param(part, size, params);
    if (g == grads) load(part.types.grad, part.arrays[grad], size, grads);
    if (part.types.moments == Moments::bfloat16) load_moments(part, size, m, v);
  }

  void close(const Row& part, const Placed& dithers, int groups) const {
    if (part.types.moments == Moments::bfloat16) store_moments(part, m, v, dithers, groups);
    if (p == params) store_param(part, p, dithers, groups);
  }
};

// Moments in float32, or read into it.
struct Uncoded {
  template <bool amsgrad, bool usual>
  void step(const Row&, Stage& s, int groups, const Placed&, const Ahead&,
            const Coefficients<float>& c) {
    loop<amsgrad, usual>(s.p, s.g, s.m, s.v, s.v_max, c, groups * group);
  }
  void go_on(const float*, const Placed&) {}
  void drain() {}
};

template <int bits>
struct Coded : Coder<bits> {
  template <bool amsgrad, bool usual>
  void step(const Row& part, Stage& s, int groups, const Placed& dithers, const Ahead& ahead,
            const Coefficients<float>& c) {
    Coder<bits>::template step<amsgrad, usual>(part, {s.p, s.v_max, s.g}, groups, dithers, ahead,
                                               c);
    s.m = this->stepped().m;
    s.v = this->stepped().v;
  }
};

// Everything else goes through blocks of float32: what a row keeps is read into one, stepped there,
// and written back. So each type and format is a way in and a way out, and there is one loop.
template <bool amsgrad, class Way>
void blocks(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  const auto c = rounded<float>(coefficients);
  const bool usual = is_usual(c);
  const Dithers dithers(static_cast<std::uint32_t>(static_cast<std::int64_t>(coefficients[12])));
  Stage s;
  Way way;
  alignas(64) float before[block];
  Window window(row, begin);
  while (begin < end) {
    const Row& part = window.open(end - begin);
    const int groups = static_cast<int>((part.size + group - 1) / group), size = groups * group;
    const Placed placed(dithers, row, begin, size);
    const Ahead ahead = window.ahead();
    s.open(part, size);
    if (found) __builtin_memcpy(before, s.p, sizeof(float) * size);
    if (usual)
      way.template step<amsgrad, true>(part, s, groups, placed, ahead, c);
    else
      way.template step<amsgrad, false>(part, s, groups, placed, ahead, c);
    s.close(part, placed, groups);
    if (found) {
      if (s.p == s.params) load_param(part, size, s.params);
      measure<float>(before, s.p, s.g, s.m, s.v, c.unscale, part.size, *found);
    }
    way.go_on(s.g, placed);
    begin += part.size;
    // What is on its way must not outlive its dithers, nor the window's copy of a tail.
    if (begin == end || !placed.whole()) way.drain();
    window.close();
  }
}

template <bool amsgrad>
void blocks(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  switch (row.types.moments) {
    case Moments::int8:
      return blocks<amsgrad, Coded<8>>(row, coefficients, begin, end, found);
    case Moments::int4:
      return blocks<amsgrad, Coded<4>>(row, coefficients, begin, end, found);
    default:
      return blocks<amsgrad, Uncoded>(row, coefficients, begin, end, found);
  }
}

template <class T>
void kernel_of(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
               Measures* found) {
  const auto c = rounded<T>(coefficients);
  if (found)
    step_and_measure<T>(row, c, begin, end, *found);
  else
    step<T>(row, c, begin, end);
}

// Lanes of their own keep the order of the additions while the compiler vectorises them. Blocks
// keep the sums short: a result is off by some ten roundings of each, not by one an element.
template <class T>
double sum_squares(const T* g, T factor, std::int64_t size) {
  constexpr std::int64_t lanes = 32;
  double sums[lanes] = {};
  std::int64_t i = 0;
  for (; i + lanes <= size; i += lanes)
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      const double x = g[i + lane] * factor;
      sums[lane] += x * x;
    }
  for (; i < size; ++i) {
    const double x = g[i] * factor;
    sums[i % lanes] += x * x;
  }
  for (std::int64_t half = lanes / 2; half; half /= 2)
    for (std::int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

}  // namespace

namespace ADAMAS_ISA {

void kernel(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  const Types& types = row.types;
  if (types.param == Dtype::float64)
    kernel_of<double>(row, coefficients, begin, end, found);
  else if (types.param == Dtype::float32 && types.grad == Dtype::float32 &&
           types.moments == Moments::full)
    kernel_of<float>(row, coefficients, begin, end, found);
  else if (row.arrays[max_exp_avg_sq])
    blocks<true>(row, coefficients, begin, end, found);
  else
    blocks<false>(row, coefficients, begin, end, found);
}

double square_sum(const Row& row, double scale, std::int64_t begin, std::int64_t end) {
  double total = 0;
  for (; begin < end; begin += square_sum_block) {
    const std::int64_t size = end - begin < square_sum_block ? end - begin : square_sum_block;
    if (row.types.grad == Dtype::float64) {
      total += sum_squares(static_cast<const double*>(row.arrays[grad]) + begin, scale, size);
    } else if (row.types.grad == Dtype::float32) {
      const float* g = static_cast<const float*>(row.arrays[grad]) + begin;
      total += sum_squares(g, static_cast<float>(scale), size);
    } else {
      float g[square_sum_block];
      const auto* halves = static_cast<const std::uint16_t*>(row.arrays[grad]) + begin;
      const bool brain = row.types.grad == Dtype::bfloat16;
      for (std::int64_t i = 0; i < size; ++i)
        g[i] = brain ? float_of(top_half(halves[i])) : from_float16(halves[i]);
      total += sum_squares(g, static_cast<float>(scale), size);
    }
  }
  return total;
}

}  // namespace ADAMAS_ISA
}  // namespace adamas
