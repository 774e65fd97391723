// What one call of the core works on: a table with a row for each tensor.
#pragma once

#include <cstdint>

namespace adamas {

enum Dtype : std::int64_t { float32 = 0, float64 = 1 };

// Eight int64, filled by Python (native.py names the columns): addresses first.
struct Row {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;       // null without AMSGrad
  std::int64_t size;          // elements
  std::int64_t coefficients;  // the row of the coefficient table
  std::int64_t dtype;
};
static_assert(sizeof(Row) == 64, "a row is eight int64");

constexpr int coefficient_count = 12;  // columns of the coefficient table, float64

// What a measured step says of a row: five sums of squares, of its gradient (unscaled), its
// moments, its update and its parameter after it; the largest update relative to its weight; how
// many weights an update left as they were.
struct Measures {
  double grad, exp_avg, exp_avg_sq, update, param, largest, stalled;
};
constexpr int measure_count = 7;

// Steps elements [begin, end) of a row, and adds what it measures where there is room for it.
using Kernel = void (*)(const Row& row, const double* coefficients, std::int64_t begin,
                        std::int64_t end, Measures* found);

constexpr std::int64_t square_sum_block = 2048;  // elements that are summed at a time

// The sum of the squares of `scale` times elements [begin, end) of a row's gradient, in float64 and
// by blocks: no element goes through more than 80 additions, and one more for each block.
using SquareSum = double (*)(const Row& row, double scale, std::int64_t begin, std::int64_t end);

}  // namespace adamas
