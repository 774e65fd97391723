// A block of a row in float32, which groups are read into and written back from.
//
// Internal linkage, as rule.hpp.
#pragma once

#include "block.hpp"
#include "pairs.hpp"
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
  template <bool in_pairs = false>
  __attribute__((always_inline)) void load(int at) {
    if constexpr (in_pairs)
      read_pairs(at);
    else if (copies_)
      read(at);
  }

  __attribute__((always_inline)) void store(const Placed& dithers, int at) const {
    if (copies_) write(dithers, at);
  }

  // Of all groups.
  template <bool in_pairs>
  void store_all(const Placed& dithers, int groups) const {
    if constexpr (in_pairs)
      has_nan(params, groups * group) ? write_pairs<true>(dithers, groups)
                                      : write_pairs<false>(dithers, groups);
    else
      for (int i = 0; i < groups; ++i) store(dithers, i * group);
  }

  void load_weights(int at) {
    if (p == params) load_param(*row_, at, params + at);
  }

  // Whether rows of these types can be read in pairs; their moments are a codec's.
  static bool pairable(const Types& types) {
    return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && types.param == Dtype::bfloat16 &&
           types.grad == Dtype::bfloat16 && types.master != Master::whole;
  }

 private:
  void read_pairs(int at) {
    const auto* weights = static_cast<const std::uint16_t*>(row_->arrays[param]) + at;
    const auto* beside = static_cast<const char*>(row_->arrays[master]);
    pairs_from_bfloat16(static_cast<const std::uint16_t*>(row_->arrays[grad]) + at, grads + at);
    switch (row_->types.master) {
      case Master::rest16:
        return join_pairs<16>(weights, beside + 2 * at, params + at);
      case Master::rest8:
        return join_pairs<8>(weights, beside + at, params + at);
      default:
        return join_pairs<0>(weights, nullptr, params + at);
    }
  }

  template <bool careful>
  void write_pairs(const Placed& dithers, int groups) const {
    switch (row_->types.master) {
      case Master::rest16:
        return write_pairs<16, careful>(nullptr, groups);
      case Master::rest8:
        return write_pairs<8, careful>(dithers.rests(0), groups);
      default:
        return write_pairs<0, careful>(dithers.second(0), groups);
    }
  }

  // The dither is that of each group.
  template <int rest, bool careful>
  void write_pairs(const std::uint32_t* dither, int groups) const {
    auto* const weights = static_cast<std::uint16_t*>(row_->arrays[param]);
    auto* const beside = static_cast<char*>(row_->arrays[master]);
    for (int at = 0; at < groups * group; at += group)
      split_pairs<rest, careful>(params + at, dither, weights + at, beside + at * rest / 8);
  }

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
