// The one loop, for every type, format and option. CMake compiles this file once for each
// instruction set, with ADAMAS_ISA its name; the compiler vectorises it, body and tail alike.
#include <cfloat>

#include "block.hpp"
#include "coded.hpp"
#include "rule.hpp"
#include "stage.hpp"
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

// Whether the extras are off; only Adam's decay can be decoupled, so elsewhere they seldom are.
template <class Has, class T>
bool is_usual(const Coefficients<T>& c) {
  return Has::rule == Rule::adam && c.l2 == 0 && c.maximize == 0 && c.unscale == 1 && c.clip == 1;
}

template <class Has, bool usual, class T>
void loop(T* __restrict p, const T* __restrict g, T* __restrict m, T* __restrict v, T* __restrict w,
          const Coefficients<T>& given, std::int64_t size) {
  const auto c = usual ? without_extras(given) : given;
  for (std::int64_t i = 0; i < size; ++i) {
    T none = 0;
    apply<Has>(p[i], g[i], Has::m ? m[i] : none, Has::v ? v[i] : none, Has::w ? w[i] : none, c);
  }
}

template <class Has, bool usual, class T>
void loop(const Place<T>& at, const Coefficients<T>& c, std::int64_t size) {
  loop<Has, usual>(at.p, at.g, at.m, at.v, at.w, c, size);
}

// Averages in the parameter's own type, all of it where it lies: at the speed of memory, of which
// the processor fetches less by itself than it could.
template <class Has, bool usual, class T>
void stream(const Place<T>& all, const Coefficients<T>& c, std::int64_t size) {
  constexpr std::int64_t ahead = 2048 / sizeof(T);
  std::int64_t i = 0;
  for (; i + group <= size; i += group) {
    const Place<T> at = after<Has>(all, i);
    fetch_group(at.p + ahead);
    fetch_group(at.g + ahead);
    if (Has::m) fetch_group(at.m + ahead);
    if (Has::v) fetch_group(at.v + ahead);
    if (Has::w) fetch_group(at.w + ahead);
    loop<Has, usual>(at, c, group);
  }
  loop<Has, usual>(after<Has>(all, i), c, size - i);
}

template <class Has, class T>
void step(const Place<T>& at, const Coefficients<T>& c, std::int64_t size) {
  is_usual<Has>(c) ? stream<Has, true>(at, c, size) : stream<Has, false>(at, c, size);
}

template <class Has, class T>
void measure(const T* before, const Place<T>& at, T unscale, std::int64_t size, Measures& found) {
  // What moves the weights: Adam's m, or the momentum if there is one, or else the gradient.
  constexpr bool rmsprop = Has::rule == Rule::rmsprop;
  const T* const mover = rmsprop && Has::w ? at.w : !rmsprop && Has::m ? at.m : at.g;
  for (std::int64_t i = 0; i < size; ++i) {
    const T p = at.p[i];
    const double g = at.g[i] * unscale, update = double(before[i]) - p;
    const double size_of_update = update < 0 ? -update : update;
    const double weight = before[i] < 0 ? -double(before[i]) : before[i];
    found.grad += g * g;
    if (Has::m) found.exp_avg += double(at.m[i]) * at.m[i];
    if (Has::v) found.exp_avg_sq += double(at.v[i]) * at.v[i];
    found.update += update * update;
    found.param += double(p) * p;
    const double relative = weight == 0 ? 0 : size_of_update / weight;
    found.largest = larger(found.largest, relative);
    found.stalled += p == before[i] && mover[i] != 0 ? 1 : 0;
  }
}

// Steps a block, and measures it while it is in the innermost cache.
template <class Has, class T>
void step_and_measure(Place<T> at, const Coefficients<T>& c, std::int64_t size, Measures& found) {
  T before[block];
  for (std::int64_t left = size; left > 0; left -= block, at = after<Has>(at, block)) {
    const std::int64_t next = least<std::int64_t>(left, block);
    for (std::int64_t i = 0; i < next; ++i) before[i] = at.p[i];
    step<Has>(at, c, next);
    measure<Has>(before, at, c.unscale, next, found);
  }
}

// Averages in float32, or read into it.
template <class Has>
struct Uncoded {
  static constexpr bool in_pairs = false;
  template <bool usual>
  void step(Stage& s, const Row&, int groups, const Placed& dithers, const Ahead& ahead,
            const Coefficients<float>& c) {
    for (int i = 0; i < groups; ++i) {
      ahead.fetch(i);
      s.load(i * group);
      loop<Has, usual>(after<Has, float>(s, i * group), c, group);
      s.store(dithers, i * group);
    }
  }
  void go_on(const float*, const Placed&) {}
  void drain() {}
};

template <int bits, class Has, bool paired = false>
struct Coded : Coder<bits, Has, paired> {
  static constexpr bool in_pairs = paired;
  template <bool usual>
  void step(Stage& s, const Row& part, int groups, const Placed& dithers, const Ahead& ahead,
            const Coefficients<float>& c) {
    Coder<bits, Has, paired>::template step<usual>(s, part, groups, dithers, ahead, c);
    s.m = this->stepped().m;
    s.v = this->stepped().v;
  }
};

// Everything else goes through blocks of float32: what a row keeps is read into one, stepped there,
// and written back. So each type and format is a way in and a way out, and there is one loop.
template <class Has, class Way>
void blocks(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  const auto c = rounded<float>(coefficients);
  const bool usual = is_usual<Has>(c);
  const auto number = static_cast<std::int64_t>(coefficients[12]);
  const Dithers dithers(static_cast<std::uint32_t>(number), Way::in_pairs);
  Stage s;
  Way way;
  alignas(64) float before[block];
  Window window(row, begin);
  while (begin < end) {
    const Row& part = window.open(end - begin);
    const int groups = static_cast<int>((part.size + group - 1) / group), size = groups * group;
    const Placed placed(dithers, row, begin, size);
    const Ahead ahead = window.ahead();
    s.open(part);
    if (found) {
      for (int at = 0; at < size; at += group) s.load(at);
      __builtin_memcpy(before, s.p, sizeof(float) * size);
    }
    if (usual)
      way.template step<true>(s, part, groups, placed, ahead, c);
    else
      way.template step<false>(s, part, groups, placed, ahead, c);
    if (found) {
      for (int at = 0; at < size; at += group) s.load_weights(at);  // as they were rounded
      measure<Has, float>(before, s, c.unscale, part.size, *found);
    }
    way.go_on(s.g, placed);
    begin += part.size;
    // What is on its way must not outlive its dithers, nor the window's copy of a tail.
    if (begin == end || !placed.whole()) way.drain();
    window.close();
  }
}

template <class Has>
void blocks(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
            Measures* found) {
  if constexpr (Has::coded) {
    // What is measured is measured in the elements' order, and so are averages beside the codec's.
    // In pairs, each group begins at a multiple of 64 in the whole tensor.
    const bool in_order = found || row.offset % group || row.run % group || row.stride % group;
    if constexpr (!Has::w)
      if (row.types.moments == Moments::int8 && !in_order && Stage::pairable(row.types))
        return blocks<Has, Coded<8, Has, true>>(row, coefficients, begin, end, found);
    if (row.types.moments == Moments::int8)
      return blocks<Has, Coded<8, Has>>(row, coefficients, begin, end, found);
    if (row.types.moments == Moments::int4)
      return blocks<Has, Coded<4, Has>>(row, coefficients, begin, end, found);
  }
  return blocks<Has, Uncoded<Has>>(row, coefficients, begin, end, found);
}

template <class Has, class T>
void whole(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
           Measures* found) {
  const auto c = rounded<T>(coefficients);
  const auto array = [&](Array i) { return static_cast<T*>(row.arrays[i]); };
  const Place<T> all{array(param), array(grad), array(exp_avg), array(exp_avg_sq),
                     array(max_exp_avg_sq)};
  if (found)
    step_and_measure<Has>(after<Has>(all, begin), c, end - begin, *found);
  else
    step<Has>(after<Has>(all, begin), c, end - begin);
}

template <class Has>
void kernel_of(const Row& row, const double* coefficients, std::int64_t begin, std::int64_t end,
               Measures* found) {
  const Types& types = row.types;
  if (types.param == Dtype::float64)
    whole<Has, double>(row, coefficients, begin, end, found);
  else if (types.param == Dtype::float32 && types.grad == Dtype::float32 &&
           (types.moments == Moments::full || !(Has::m || Has::v)))
    whole<Has, float>(row, coefficients, begin, end, found);
  else
    blocks<Has>(row, coefficients, begin, end, found);
}

// That of a row's rule, with the averages that it has. A codec's words stand where m would.
Kernel kernel_for(const Row& row) {
  const bool m = row.arrays[exp_avg], w = row.arrays[max_exp_avg_sq];
  switch (row.types.rule) {
    case Rule::adam:
      return w ? kernel_of<Kind<Rule::adam, 1, 1, 1>> : kernel_of<Kind<Rule::adam, 1, 1, 0>>;
    case Rule::sgd:
      return m ? kernel_of<Kind<Rule::sgd, 1, 0, 0>> : kernel_of<Kind<Rule::sgd, 0, 0, 0>>;
    default:
      if (m && !has_scales(row.types.moments))
        return w ? kernel_of<Kind<Rule::rmsprop, 1, 1, 1>>
                 : kernel_of<Kind<Rule::rmsprop, 1, 1, 0>>;
      return w ? kernel_of<Kind<Rule::rmsprop, 0, 1, 1>> : kernel_of<Kind<Rule::rmsprop, 0, 1, 0>>;
  }
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
  kernel_for(row)(row, coefficients, begin, end, found);
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
