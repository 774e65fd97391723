// What one call of the core works on: a table with a row for each tensor.
#pragma once

#include <cstdint>

namespace adamas {

// What parameters and gradients are kept in.
enum class Dtype : std::uint8_t { float32, float64, bfloat16, float16 };

// What the moments of parameters are kept in that are computed in float32; see formats.py.
enum class Moments : std::uint8_t { full, bfloat16, int8, int4 };

// Bits of a master weight beside a 16-bit parameter: none, the rest of a bfloat16 one's, or all.
enum class Master : std::uint8_t { none = 0, rest8 = 8, rest16 = 16, whole = 32 };

// What a row is stepped by; see rule.hpp.
enum class Rule : std::uint8_t { adam, sgd, rmsprop };

struct Types {
  Dtype param, grad;
  Moments moments;
  Master master;
  Rule rule;
  std::uint8_t unused[3];
};

// The arrays of a row. A rule's three averages are called as Adam calls them, and those are null
// that it does without. A codec keeps its words as exp_avg and its scales as exp_avg_sq.
enum Array { param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, master, array_count };

// Twelve int64, filled by Python (native.py names the columns).
struct Row {
  void* arrays[array_count];  // addresses, null where there is none; grad is only read
  std::int64_t size;          // elements
  std::int64_t coefficients;  // the row of the coefficient table
  Types types;
  // Element k is element offset + (k / run) * stride + k % run of the whole tensor.
  std::int64_t offset, run, stride;
};
constexpr int row_columns = 12;
static_assert(sizeof(Row) == row_columns * sizeof(std::int64_t), "twelve int64");

// Whether there is a step of these types.
inline bool known(const Types& types) {
  const bool half = types.param == Dtype::bfloat16 || types.param == Dtype::float16;
  if (types.param > Dtype::float16 || types.grad > Dtype::float16 ||
      types.moments > Moments::int4 || types.rule > Rule::rmsprop)
    return false;
  if (types.param == Dtype::float64 || types.grad == Dtype::float64)
    return types.param == types.grad && types.moments == Moments::full &&
           types.master == Master::none;
  switch (types.master) {
    case Master::none:
      return true;
    case Master::rest8:
    case Master::rest16:
      return types.param == Dtype::bfloat16;
    case Master::whole:
      return half;
  }
  return false;
}

// Elements that share scales; pieces of a row begin at its multiples.
constexpr std::int64_t row_alignment = 64;

constexpr int coefficient_count = 13;  // columns of the coefficient table, float64

// What a measured step says of a row: five sums of squares, of its gradient (unscaled), its first
// two averages, its update and its parameter after it; the largest update relative to its weight;
// how many weights an update left as they were.
struct Measures {
  double grad, exp_avg, exp_avg_sq, update, param, largest, stalled;
};
constexpr int measure_count = 7;

// Of two measures of `largest`; NaN where one of them is, as torch's maximum.
static inline double larger(double one, double other) {
  return other > one || other != other ? other : one;
}

// Steps elements [begin, end) of a row, and adds what it measures where there is room for it.
using Kernel = void (*)(const Row& row, const double* coefficients, std::int64_t begin,
                        std::int64_t end, Measures* found);

constexpr std::int64_t square_sum_block = 2048;  // elements that are summed at a time

// The sum of the squares of `scale` times elements [begin, end) of a row's gradient, in float64 and
// by blocks: no element goes through more than 80 additions, and one more for each block.
using SquareSum = double (*)(const Row& row, double scale, std::int64_t begin, std::int64_t end);

}  // namespace adamas
