// One step over a whole table.
#pragma once

#include "table.hpp"

namespace adamas {

// Steps every row. The rows' elements, end to end, are cut into pieces of `grain` elements, which
// the threads take in turn; elements are independent, so neither the cut nor the threads show in
// the result. Rows must not overlap.
void step(const Row* rows, std::int64_t row_count, const double* coefficients, Kernel kernel,
          int threads, std::int64_t grain);

// The same, with the same bits, and measures each row.
void measured_step(const Row* rows, std::int64_t row_count, const double* coefficients,
                   MeasuringKernel kernel, int threads, std::int64_t grain, Measures* found);

}  // namespace adamas
