// One step over a whole table.
#pragma once

#include "gate.hpp"
#include "table.hpp"

namespace adamas {

// Steps every row. The rows' elements, end to end, are cut into pieces of `grain` elements (see
// pieces.hpp), which the threads take in turn; elements are independent, so neither the cut nor the
// threads show in the result. Rows must not overlap. `found` is null, or has room for each row's
// measures and zeros in it; they do not show in the result either. `gate` is null, or says when
// rows have come, of which it knows the size; then our own threads help, for a framework's would
// spin, and be waited for, where there is nothing to do.
void step(const Row* rows, std::int64_t row_count, const double* coefficients, Kernel kernel,
          int threads, std::int64_t grain, Measures* found = nullptr, Gate* gate = nullptr);

}  // namespace adamas
