// Groups of 16-bit elements two by two, as numbers of 32 bits: first the even elements of a group,
// then the odd ones. So a vector is widened by one operation and two are narrowed by two, where
// neighbours that stay neighbours cost twice as many. What is computed in between works on each
// element by itself, or on all of a group.
//
// Internal linkage, as formats.hpp.
#pragma once

#include "formats.hpp"

namespace adamas {
namespace {

constexpr int pairs = group / 2;

// At addresses of either half.
typedef std::uint32_t Pair __attribute__((aligned(2), may_alias));
typedef std::uint16_t PairOfBytes __attribute__((aligned(1), may_alias));

inline void pairs_from_bfloat16(const std::uint16_t* __restrict halves, float* __restrict x) {
  ADAMAS_INDEPENDENT
  for (int j = 0; j < pairs; ++j) {
    const std::uint32_t two = reinterpret_cast<const Pair*>(halves)[j];
    x[j] = float_of(top_half(two));
    x[j + pairs] = float_of(top_half(two >> 16));
  }
}

inline bool has_nan(const float* x, int size) {
  std::int32_t largest = 0;
  for (int j = 0; j < size; ++j) largest = most(largest, size_bits(x[j]));
  return largest > infinity;
}

// `rest` bits of a master weight beside a bfloat16 weight, as join and split in formats.hpp.
template <int rest>
void join_pairs(const std::uint16_t* __restrict weights, const void* __restrict beside,
                float* __restrict x) {
  if (rest == 0) return pairs_from_bfloat16(weights, x);
  alignas(64) std::uint32_t rests[pairs];
  for (int j = 0; j < pairs; ++j)
    rests[j] = rest == 16 ? static_cast<const Pair*>(beside)[j] ^ 0x80008000
                          : static_cast<const PairOfBytes*>(beside)[j] ^ 0x8080u;
  // With the first bit turned the rest counts from zero, so half of the weight's last place is too
  // much.
  constexpr std::uint32_t half = 0x8000;
  ADAMAS_INDEPENDENT
  for (int j = 0; j < pairs; ++j) {
    const std::uint32_t two = reinterpret_cast<const Pair*>(weights)[j], both = rests[j];
    const std::uint32_t even = rest == 16 ? both & 0xffff : both << 8 & 0xffff;
    const std::uint32_t odd = rest == 16 ? both >> 16 : both & 0xff00;
    x[j] = float_of(static_cast<std::int32_t>((two << 16 | even) - half));
    x[j + pairs] = float_of(static_cast<std::int32_t>(((two & 0xffff0000) | odd) - half));
  }
}

// Without `careful`, no element is NaN.
template <int rest, bool careful>
void split_pairs(const float* __restrict x, const std::uint32_t* __restrict dither,
                 std::uint16_t* __restrict weights, void* __restrict beside) {
  alignas(64) std::uint32_t rests[pairs];
  ADAMAS_INDEPENDENT
  for (int j = 0; j < pairs; ++j) {
    const auto rounded = [&](int k) __attribute__((always_inline)) {
      const auto exact = static_cast<std::uint32_t>(bits_of(x[k]));
      const std::uint32_t bits = exact + (rest == 16 ? 0x8000 : dither[k]);
      return !careful || x[k] == x[k] ? bits : nan_bits + 0x8000u;
    };
    const std::uint32_t even = rounded(j), odd = rounded(j + pairs);
    reinterpret_cast<Pair*>(weights)[j] = even >> 16 | (odd & 0xffff0000);
    rests[j] = rest == 16 ? (even & 0xffff) | odd << 16 : (even >> 8 & 0xff) | (odd & ~0xffu);
  }
  if (rest == 16)
    for (int j = 0; j < pairs; ++j) static_cast<Pair*>(beside)[j] = rests[j] ^ 0x80008000;
  if (rest == 8)
    for (int j = 0; j < pairs; ++j)
      static_cast<PairOfBytes*>(beside)[j] = static_cast<std::uint16_t>(rests[j] ^ 0x8080);
}

// Words of 16 bits, some of whose bits are turned.
inline void close_pairs(const std::int32_t* __restrict wide, std::uint16_t* __restrict words,
                        std::uint32_t turned) {
  ADAMAS_INDEPENDENT
  for (int j = 0; j < pairs; ++j) {
    const auto even = static_cast<std::uint32_t>(wide[j]);
    const auto odd = static_cast<std::uint32_t>(wide[j + pairs]);
    reinterpret_cast<Pair*>(words)[j] = ((even & 0xffff) | odd << 16) ^ (turned | turned << 16);
  }
}

}  // namespace
}  // namespace adamas
