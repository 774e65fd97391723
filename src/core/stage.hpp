// A block of a row in float32, which groups are read into and written back from.
//
// Internal linkage, as rule.hpp.
#pragma once

#include "block.hpp"
#include "rule.hpp"

namespace adamas {
namespace {

// What is kept in float32 is used where it lies.
struct Stage : Place<float> {
  alignas(64) float params[block], grads[block], first[block], second[block];

  void open(const Row& part) {
    const Types& types = part.types;
    const bool halves = types.moments == Moments::bfloat16;
    row_ = &part;
    p = types.param == Dtype::float32 ? static_cast<float*>(part.arrays[param]) : params;
    g = types.grad == Dtype::float32 ? static_cast<const float*>(part.arrays[grad]) : grads;
    m = halves ? first : static_cast<float*>(part.arrays[exp_avg]);
    v = halves ? second : static_cast<float*>(part.arrays[exp_avg_sq]);
    w = static_cast<float*>(part.arrays[max_exp_avg_sq]);
    copies_ = p == params || g == grads || halves;
  }

  // Of the group that begins at this element of the block; a codec's moments are not read.
  __attribute__((always_inline)) void load(int at) {
    if (copies_) read(at);
  }

  __attribute__((always_inline)) void store(const Placed& dithers, int at) const {
    if (copies_) write(dithers, at);
  }

  void load_weights(int at) {
    if (p == params) load_param(*row_, at, params + at);
  }

 private:
  void read(int at) {
    load_weights(at);
    if (g == grads) adamas::load(row_->types.grad, row_->arrays[grad], at, grads + at);
    if (m == first) load_moments(*row_, at, first + at, second + at);
  }

  void write(const Placed& dithers, int at) const {
    if (m == first) store_moments(*row_, dithers, at, first + at, second + at);
    if (p == params) store_param(*row_, dithers, at, params + at);
  }

  const Row* row_;
  bool copies_;  // whether anything is not used where it lies
};

}  // namespace
}  // namespace adamas
