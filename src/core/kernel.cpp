// The one loop, for every type, format and option. CMake compiles this file once for each
// instruction set, with ADAMAS_ISA its name; the compiler vectorises it, body and tail alike.
#include <cfloat>

#include "block.hpp"
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

// The same where these terms are off anyway, and the compiler shall know it.
template <class T>
Coefficients<T> without_extras(Coefficients<T> c) {
  c.l2 = c.maximize = 0;
  c.unscale = c.clip = 1;
  return c;
}

template <class T>
bool is_usual(const Coefficients<T>& c) {
  return c.l2 == 0 && c.maximize == 0 && c.unscale == 1 && c.clip == 1;
}

// Moments in the parameter's own type, all of it where it lies.
template <class T, bool amsgrad, bool usual>
void loop(const Row& row, const Coefficients<T>& given, std::int64_t begin, std::int64_t end) {
  const auto c = usual ? without_extras(given) : given;
  T* __restrict p = static_cast<T*>(row.arrays[param]);
  const T* __restrict g = static_cast<const T*>(row.arrays[grad]);
  T* __restrict m = static_cast<T*>(row.arrays[exp_avg]);
  T* __restrict v = static_cast<T*>(row.arrays[exp_avg_sq]);
  T* __restrict v_max = static_cast<T*>(row.arrays[max_exp_avg_sq]);
  for (std::int64_t i = begin; i < end; ++i) {
    T unused = 0;
    adam<amsgrad>(p[i], g[i], m[i], v[i], amsgrad ? v_max[i] : unused, c);
  }
}

template <class T>
void step(const Row& row, const Coefficients<T>& c, std::int64_t begin, std::int64_t end) {
  if (row.arrays[max_exp_avg_sq])
    is_usual(c) ? loop<T, true, true>(row, c, begin, end)
                : loop<T, true, false>(row, c, begin, end);
  else
    is_usual(c) ? loop<T, false, true>(row, c, begin, end)
                : loop<T, false, false>(row, c, begin, end);
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

// Of a block in float32. Parameters and gradients that are of float32 are used where they lie.
struct Stage {
  alignas(64) float params[block], grads[block], m[block], v[block], v_max[block];
  float* p;
  const float* g;
  Span spans[most_groups];
};

struct Plain {
  const float *first, *second;

  void operator()(int j, float& m, float& v) const { m = first[j], v = second[j]; }
};

// A group's moments are decoded where they are stepped, and what encoding needs to know of them is
// found there, while square roots and divisions keep the processor waiting.
template <bool amsgrad, bool usual, bool coded, class Decode>
void step_group(const Decode decode, Stage& s, int i, const Coefficients<float>& given) {
  const auto c = usual ? without_extras(given) : given;
  float* __restrict p = s.p + i * group;
  const float* __restrict g = s.g + i * group;
  float* __restrict m = s.m + i * group;
  float* __restrict v = s.v + i * group;
  float* __restrict v_max = s.v_max + i * group;
  Span span;
  for (int j = 0; j < group; ++j) {
    float unused = 0, first, second;
    decode(j, first, second);
    adam<amsgrad>(p[j], g[j], first, second, amsgrad ? v_max[j] : unused, c);
    m[j] = first;
    v[j] = second;
    if (coded) span.add(second, g[j]);
  }
  if (coded) s.spans[i] = span;
}

template <bool amsgrad, bool usual, int bits>
void step_coded(const Row& part, Stage& s, int groups, const Coefficients<float>& c) {
  using Word = typename Codec<bits>::Word;
  const auto* words = static_cast<const Word*>(part.arrays[exp_avg]);
  const auto* scales = static_cast<const std::uint16_t*>(part.arrays[exp_avg_sq]);
  for (int i = 0; i < groups; ++i) {
    const typename Codec<bits>::Decoder decode(words + i * group, scales + i * scale_count);
    step_group<amsgrad, usual, true>(decode, s, i, c);
  }
}

template <bool amsgrad, bool usual>
void step_stage(const Row& part, Stage& s, int groups, const Coefficients<float>& c) {
  if (part.types.moments == Moments::int8) return step_coded<amsgrad, usual, 8>(part, s, groups, c);
  if (part.types.moments == Moments::int4) return step_coded<amsgrad, usual, 4>(part, s, groups, c);
  alignas(64) float m[block], v[block];
  load_moments(part, groups * group, m, v);
  for (int i = 0; i < groups; ++i)
    step_group<amsgrad, usual, false>(Plain{m + i * group, v + i * group}, s, i, c);
}

// Everything else goes through blocks of float32: what a row keeps is read into one, stepped there,
// and written back. So each type and format is a way in and a way out, and there is one loop.
template <bool amsgrad>
void blocks(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  const auto c = rounded<float>(coefficients);
  const bool usual = is_usual(c);
  const bool in_place = row.types.param == Dtype::float32;
  const auto number = static_cast<std::uint32_t>(static_cast<std::int64_t>(coefficients[12]));
  Stage s;
  alignas(64) float before[block];
  Window window(row, begin);
  while (begin < end) {
    const Row& part = window.open(end - begin);
    const int groups = static_cast<int>((part.size + group - 1) / group), size = groups * group;
    s.p = in_place ? static_cast<float*>(part.arrays[param]) : s.params;
    if (!in_place) load_param(part, size, s.p);
    s.g =
        part.types.grad == Dtype::float32 ? static_cast<const float*>(part.arrays[grad]) : s.grads;
    if (s.g == s.grads) load(part.types.grad, part.arrays[grad], size, s.grads);
    if (amsgrad) load(Dtype::float32, part.arrays[max_exp_avg_sq], size, s.v_max);
    if (found) __builtin_memcpy(before, s.p, sizeof(float) * size);
    if (usual)
      step_stage<amsgrad, true>(part, s, groups, c);
    else
      step_stage<amsgrad, false>(part, s, groups, c);
    if (amsgrad) __builtin_memcpy(part.arrays[max_exp_avg_sq], s.v_max, sizeof(float) * size);
    const Dithers dithers(row, begin, size, number);
    store_moments(part, s.m, s.v, s.g, s.spans, dithers, groups);
    if (!in_place) store_param(part, s.p, dithers, groups);
    if (found) {
      if (!in_place) load_param(part, size, s.p);
      measure<float>(before, s.p, s.g, s.m, s.v, c.unscale, part.size, *found);
    }
    begin += part.size;
    window.close();
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
