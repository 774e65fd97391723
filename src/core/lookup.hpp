// The codec of 4 bits where a processor picks 16 numbers by index in one operation: what each of a
// group's 16 codes of v and 17 of m stands for is worked out once, and its elements look it up.
//
// Internal linkage, as formats.hpp.
#pragma once

#include "codec.hpp"

#ifdef __AVX512F__
#include <immintrin.h>

namespace adamas {
namespace {

using Ints = std::int32_t __attribute__((vector_size(64), may_alias));
using Words = std::uint32_t __attribute__((vector_size(64), may_alias));
using Floats = float __attribute__((vector_size(64), may_alias));

// Looks up 64 indices, of which the last bits count. (Of the operation without a mask GCC says that
// it reads what was never set.)
inline void pick(const std::int32_t* at, Floats from, float* to) {
  for (int j = 0; j < group; j += lanes)
    _mm512_store_ps(to + j, _mm512_maskz_permutexvar_ps(0xffff, _mm512_load_si512(at + j), from));
}
inline void pick(const std::int32_t* at, Floats from, Floats beyond, float* to) {
  for (int j = 0; j < group; j += lanes)
    _mm512_store_ps(to + j, _mm512_permutex2var_ps(from, _mm512_load_si512(at + j), beyond));
}

constexpr Ints numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <>
template <>
struct Codec<4>::Opened<false> {
  alignas(64) float first[group], second[group];

  Opened(const Word* __restrict words, const Decoder& decoder) {
    std::uint16_t code[group], level[group];
    alignas(64) std::int32_t codes[group], levels[group];
    for (int j = 0; j < group; ++j) {
      const auto more = static_cast<std::uint16_t>(words[j] + 16);
      code[j] = static_cast<std::uint16_t>(std::uint32_t{more} * 3856 >> 16);  // by 17
      level[j] = static_cast<std::uint16_t>(more - 17 * code[j]);
    }
    for (int j = 0; j < group; ++j) {
      codes[j] = code[j];
      levels[j] = level[j];
    }
    const Ints stored = (numbers > 0) & (decoder.below + numbers * decoder.step);
    const Ints frames = (numbers > 0) & ((stored >> 1) + 0x1fc00000) & (infinity | 0x400000);
    const Floats below = {-128, -105, -84, -65, -48, -33, -20, -9, 0, 9, 20, 33, 48, 65, 84, 105};
    alignas(64) float frame[group];
    pick(codes, reinterpret_cast<Floats>(stored), second);
    pick(codes, reinterpret_cast<Floats>(frames), frame);
    pick(levels, below * decoder.unit, Floats{} + 128 * decoder.unit, first);
    for (int j = 0; j < group; ++j) first[j] *= frame[j];
  }
  void operator()(int j, float& m, float& v) const { m = first[j], v = second[j]; }
};

template <>
inline void Codec<4>::quantize(const Grid& grid, const float* levels, float* __restrict u,
                               float* __restrict parts, std::int32_t* __restrict sizes) {
  const Words differences = grid.twice - reinterpret_cast<Words>(numbers) * grid.step;
  const auto power = reinterpret_cast<Floats>(differences >> 1 & infinity);
  const Floats inverse = (differences & 0x800000) != 0 ? power : power * (2.0f / 3);
  alignas(64) std::int32_t codes[group];
  alignas(64) float factors[group];
  for (int j = 0; j < group; ++j) codes[j] = grid.code(bits_of(parts[j]), levels[j]);
  pick(codes, inverse, factors);
  ADAMAS_INDEPENDENT
  for (int lane = 0; lane < lanes; ++lane) {
    std::int32_t size = 0;
    each_of(lane, [&](int j) __attribute__((always_inline)) {
      parts[j] = float_of(grid.part(codes[j]));
      u[j] *= factors[j];
      size = most(size, size_bits(u[j]));
    });
    sizes[lane] = size;
  }
}

}  // namespace
}  // namespace adamas
#endif
