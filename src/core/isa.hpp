// The instruction sets that the kernel was compiled for, and those that this processor has.
#pragma once

#include <vector>

#include "table.hpp"

namespace adamas {

struct Isa {
  const char* name;
  Kernel kernel;
  SquareSum square_sum;
};

// What this processor can run, the best first; the last is the baseline of its architecture.
const std::vector<Isa>& isas();

}  // namespace adamas
