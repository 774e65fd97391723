// The sum of the squares of all gradients of a table, in whatever order.
#pragma once

#include <array>

#include "table.hpp"

namespace adamas {

// A sum in float64, and how far off the exact one it can be.
struct Estimate {
  double value, error;
};

// Estimates the sum of the squares of `scale` times every gradient. Each product is rounded to the
// gradient's type and each square to float64. Not finite if a gradient is not.
Estimate square_sum(const Row* rows, std::int64_t row_count, double scale, SquareSum kernel,
                    int threads, std::int64_t grain);

// The same sum, exact: the sum over k of digit k times 2^(32 k - 1074). The gradients are finite.
// Digits are below 2^32 but for the last, and those of several tables may be added up.
using Digits = std::array<std::int64_t, 68>;
Digits exact_square_sum(const Row* rows, std::int64_t row_count, double scale, int threads,
                        std::int64_t grain);

}  // namespace adamas
