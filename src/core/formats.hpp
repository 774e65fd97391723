// Moment formats, rounding and split weights in C++: src/adamas/formats.py and rounding.py, name
// for name. Everything works on groups of 64 elements. Loops over a group have a fixed length and
// no branches, so that the compiler vectorises them whole.
//
// Internal linkage and no standard header but of types, for the reason that rule.hpp gives.
#pragma once

#include <cstdint>

// Says of the loop that follows that no iteration reads what another writes.
#ifdef __clang__
#define ADAMAS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define ADAMAS_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace adamas {
namespace {

constexpr int group = 64;
constexpr int most_groups = 16, block = most_groups * group;
constexpr int scale_count = 3;

constexpr std::int32_t largest_bits = 0x7f7f0000, nan_bits = 0x7fc00000, infinity = 0x7f800000,
                       negligible = 0x21800000;
constexpr std::uint32_t sign_bit = 0x80000000;

inline std::int32_t bits_of(float x) {
  std::int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(std::int32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// The float32 number whose top half this is, as bits.
inline std::int32_t top_half(std::uint32_t half) { return static_cast<std::int32_t>(half << 16); }

template <class T>
inline T least(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T most(T a, T b) {
  return a > b ? a : b;
}

inline std::int32_t size_bits(float x) { return bits_of(x) & 0x7fffffff; }
inline bool is_nan(std::int32_t bits) { return (bits & 0x7fffffff) > infinity; }

// The dithers of the 64 positions of a group at one step, 16 bits each. They are those of every
// group; a group that begins elsewhere than at a multiple of 64 begins elsewhere in them.
class Dithers {
 public:
  // In pairs, elements are in the order of pairs.hpp, and groups begin at a multiple of 64.
  Dithers(std::uint32_t step, bool in_pairs) : base_(step * by_step_second) {
    for (int j = 0; j < 2 * group; ++j) {
      const int of_pair = j % (group / 2) * 2 + j % group / (group / 2);
      const auto index = static_cast<std::uint32_t>(in_pairs ? of_pair : j);
      first_[j] = (index * (49u << 26) + step * by_step_first) >> 16;
      second_[j] = (index * (35u << 26) + base_) >> 16;
      rests_[j] = (second_[j] >> 8) + 0x8000;
      levels_[j] = static_cast<float>(static_cast<std::int32_t>(first_[j])) * 0x1p-16f + 1;
    }
  }

  // Of the element at this index in the whole tensor, and those after it.
  const std::uint32_t* first(std::uint32_t index) const { return first_ + index % group; }
  const std::uint32_t* second(std::uint32_t index) const { return second_ + index % group; }
  // Of the second the 8 bits that round a master weight, and half a bfloat16 weight's last place.
  const std::uint32_t* rests(std::uint32_t index) const { return rests_ + index % group; }
  // One more than the first, as a fraction.
  const float* levels(std::uint32_t index) const { return levels_ + index % group; }
  // Of a group whose first element has this index.
  std::int32_t scale(std::uint32_t index) const {
    return static_cast<std::int32_t>((index / group * by_step_first + base_) >> 16);
  }

 private:
  static constexpr std::uint32_t by_step_first = 2447445413, by_step_second = 3242174889;

  std::uint32_t base_;
  alignas(64) std::uint32_t first_[2 * group], second_[2 * group], rests_[2 * group];
  alignas(64) float levels_[2 * group];
};

// Of v, at least 0 or NaN, as a codec keeps it.
inline std::int32_t bounded_bits(float v) {
  const auto bits = static_cast<std::uint32_t>(bits_of(v));
  constexpr auto bound = static_cast<std::uint32_t>(largest_bits);
  return static_cast<std::int32_t>(bits < bound ? bits : bound);
}

inline void to_bfloat16(const float* __restrict x, const std::uint32_t* __restrict dither,
                        std::uint16_t* __restrict halves) {
  for (int j = 0; j < group; ++j) {
    const auto bits = static_cast<std::uint32_t>(bits_of(x[j]));
    const std::uint32_t rounded = (bits + dither[j]) >> 16;
    halves[j] = static_cast<std::uint16_t>(is_nan(bits_of(x[j])) ? nan_bits >> 16 : rounded);
  }
}

inline void from_bfloat16(const std::uint16_t* __restrict halves, float* __restrict x) {
  for (int j = 0; j < group; ++j) x[j] = float_of(top_half(halves[j]));
}

inline float from_float16(std::uint16_t half) {
  const std::int32_t size = half & 0x7fff;
  // Multiplied by 2^112, a number whose exponent was shifted in has its own; infinities apart.
  const std::int32_t finite = bits_of(float_of(size << 13) * 0x1p112f);
  const std::int32_t bits = size >= 0x7c00 ? (size << 13) + 0x70000000 : finite;
  return float_of(bits | top_half(half & 0x8000));
}

// To nearest, ties to even.
inline std::uint16_t to_float16(float x) {
  const std::int32_t size = size_bits(x);
  // Below 2^-14 the spacing is 2^-24, that of numbers from 1/2 on.
  const std::int32_t small = bits_of(float_of(size) + 0.5f) - 0x3f000000;
  const std::int32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  const std::int32_t large = size > infinity ? 0x7e00 | (size >> 13 & 0x1ff) : 0x7c00;
  const std::int32_t half = size < 0x38800000 ? small : size < 0x47800000 ? normal : large;
  return static_cast<std::uint16_t>(half | (bits_of(x) >> 16 & 0x8000));
}

inline void to_float16(const float* __restrict x, const std::uint32_t* __restrict dither,
                       std::uint16_t* __restrict halves) {
  for (int j = 0; j < group; ++j) {
    const std::int32_t size = size_bits(x[j]);
    const std::int32_t exponent = least(most(size >> 23, 113), 254);
    const float fraction = static_cast<float>(static_cast<std::int32_t>(dither[j] >> 3)) * 0x1p-13f;
    const std::int32_t finite = (size - infinity) >> 31;  // a mask
    const float counts = float_of(size & finite) * float_of((264 - exponent) << 23) + fraction;
    const float rounded =
        static_cast<float>(static_cast<std::int32_t>(counts)) * float_of((exponent - 10) << 23);
    const std::int32_t kept = (bits_of(rounded) & finite) | (size & ~finite);
    halves[j] = to_float16(float_of(kept | (bits_of(x[j]) & static_cast<std::int32_t>(sign_bit))));
  }
}

// A bfloat16 weight and the 16 or 8 bits of its master weight that follow it. Half of the weight's
// last place, which rounds it, is added once for both: of the rest it turns the first bit.
template <class Rest>
void split(const float* __restrict x, const std::uint32_t* __restrict rests,
           std::uint16_t* __restrict weights, Rest* __restrict rest) {
  constexpr bool rounds = sizeof(Rest) == 1;
  constexpr Rest first = rounds ? 0x80 : 0x8000;
  ADAMAS_INDEPENDENT
  for (int j = 0; j < group; ++j) {
    const auto exact = static_cast<std::uint32_t>(bits_of(x[j]));
    const std::uint32_t rounded = exact + (rounds ? rests[j] : 0x8000);
    const std::uint32_t bits = x[j] == x[j] ? rounded : nan_bits + 0x8000u;
    weights[j] = static_cast<std::uint16_t>(bits >> 16);
    rest[j] = static_cast<Rest>(static_cast<Rest>(bits >> (rounds ? 8 : 0)) ^ first);
  }
}

template <int bytes>
struct SignedOf;
template <>
struct SignedOf<1> {
  using type = std::int8_t;
};
template <>
struct SignedOf<2> {
  using type = std::int16_t;
};

// The weight was rounded up where the first bit of the rest is set: so the rest, read as a signed
// number, is what to add.
template <class Rest>
void join(const std::uint16_t* __restrict weights, const Rest* __restrict rest,
          float* __restrict x) {
  using Signed = typename SignedOf<sizeof(Rest)>::type;
  constexpr std::int32_t unit = sizeof(Rest) == 1 ? 1 << 8 : 1;
  ADAMAS_INDEPENDENT
  for (int j = 0; j < group; ++j) {
    const auto low = static_cast<std::uint32_t>(static_cast<Signed>(rest[j]) * unit);
    x[j] =
        float_of(static_cast<std::int32_t>((static_cast<std::uint32_t>(weights[j]) << 16) + low));
  }
}

}  // namespace
}  // namespace adamas
