// The one loop, for every type and option. CMake compiles this file once for each instruction set,
// with ADAMAS_ISA its name; the compiler vectorises it, body and tail alike.
#include <cfloat>

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
  static_assert(sizeof(Coefficients<double>) == coefficient_count * sizeof(double),
                "as wide as the table");
  return {T(from[0]), T(from[1]), T(from[2]), T(from[3]), T(from[4]),  T(from[5]),
          T(from[6]), T(from[7]), T(from[8]), T(from[9]), T(from[10]), T(from[11])};
}

template <class T, bool amsgrad>
void loop(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end) {
  const auto c = rounded<T>(coefficients);
  T* __restrict p = static_cast<T*>(row.param);
  const T* __restrict g = static_cast<const T*>(row.grad);
  T* __restrict m = static_cast<T*>(row.exp_avg);
  T* __restrict v = static_cast<T*>(row.exp_avg_sq);
  T* __restrict v_max = static_cast<T*>(row.max_exp_avg_sq);
  for (std::int64_t i = begin; i < end; ++i) {
    T unused = 0;
    adam<amsgrad>(p[i], g[i], m[i], v[i], amsgrad ? v_max[i] : unused, c);
  }
}

template <class T>
void step(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end) {
  if (row.max_exp_avg_sq)
    loop<T, true>(row, coefficients, begin, end);
  else
    loop<T, false>(row, coefficients, begin, end);
}

// Lanes of their own keep the order of the additions while the compiler vectorises them. Blocks
// keep the sums short: a result is off by some ten roundings of each, not by one an element.
template <class T>
double sum_squares(const Row& row, double scale, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t lanes = 32, block = square_sum_block;
  const T* g = static_cast<const T*>(row.grad);
  const T factor = static_cast<T>(scale);
  double total = 0;
  for (; begin < end; begin += block) {
    const std::int64_t stop = end - begin < block ? end : begin + block;
    double sums[lanes] = {};
    std::int64_t i = begin;
    for (; i + lanes <= stop; i += lanes)
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        const double x = g[i + lane] * factor;
        sums[lane] += x * x;
      }
    for (; i < stop; ++i) {
      const double x = g[i] * factor;
      sums[(i - begin) % lanes] += x * x;
    }
    for (std::int64_t half = lanes / 2; half; half /= 2)
      for (std::int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
    total += sums[0];
  }
  return total;
}

// Steps a block, and measures it while it is in the innermost cache.
template <class T>
void step_and_measure(const Row& row, const double* coefficients, std::int64_t begin,
                      std::int64_t end, Measures& found) {
  constexpr std::int64_t block = 1024;
  const T* p = static_cast<const T*>(row.param);
  const T* grad = static_cast<const T*>(row.grad);
  const T* m = static_cast<const T*>(row.exp_avg);
  const T* v = static_cast<const T*>(row.exp_avg_sq);
  const T unscale = rounded<T>(coefficients).unscale;
  T before[block];
  for (; begin < end; begin += block) {
    const std::int64_t size = end - begin < block ? end - begin : block;
    for (std::int64_t i = 0; i < size; ++i) before[i] = p[begin + i];
    step<T>(row, coefficients, begin, begin + size);
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t k = begin + i;
      const double g = grad[k] * unscale, update = double(before[i]) - p[k];
      const double size_of_update = update < 0 ? -update : update;
      const double weight = before[i] < 0 ? -double(before[i]) : before[i];
      found.grad += g * g;
      found.exp_avg += double(m[k]) * m[k];
      found.exp_avg_sq += double(v[k]) * v[k];
      found.update += update * update;
      found.param += double(p[k]) * p[k];
      const double relative = weight > 0 ? size_of_update / weight : 0;
      found.largest = relative > found.largest ? relative : found.largest;
      found.stalled += p[k] == before[i] && m[k] != 0 ? 1 : 0;
    }
  }
}

}  // namespace

namespace ADAMAS_ISA {

void kernel(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  if (row.dtype == float64)
    found ? step_and_measure<double>(row, coefficients, begin, end, *found)
          : step<double>(row, coefficients, begin, end);
  else
    found ? step_and_measure<float>(row, coefficients, begin, end, *found)
          : step<float>(row, coefficients, begin, end);
}

double square_sum(const Row& row, double scale, std::int64_t begin, std::int64_t end) {
  return row.dtype == float64 ? sum_squares<double>(row, scale, begin, end)
                              : sum_squares<float>(row, scale, begin, end);
}

}  // namespace ADAMAS_ISA
}  // namespace adamas
