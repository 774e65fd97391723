// Moment formats and split weights in C++: src/adamas/formats.py, name for name. Everything works
// on blocks of up to eight groups of 64 elements. Loops over a group have a fixed length and no
// branches, so that the compiler vectorises them whole; and what a group must know as a whole
// before it can go on is found for all groups of a block first, so that none waits for another.
//
// Internal linkage and no standard header but of types, for the reason that rule.hpp gives.
#pragma once

#include <cstdint>

namespace adamas {
namespace {

constexpr int group = 64;
constexpr int most_groups = 8, block = most_groups * group;
constexpr int scale_count = 3;

constexpr std::int32_t largest_bits = 0x7f7f0000, nan_bits = 0x7fc00000, infinity = 0x7f800000,
                       negligible = 0x0d800000;
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

inline std::int32_t least(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
inline std::int32_t most(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
inline float least(float a, float b) { return a < b ? a : b; }

inline std::int32_t size_bits(float x) { return bits_of(x) & 0x7fffffff; }
inline bool is_nan(std::int32_t bits) { return (bits & 0x7fffffff) > infinity; }

constexpr std::uint32_t alpha = 3242174889, beta = 2447445413;

struct Multiples {
  std::uint32_t of_alpha[group] = {}, of_beta[group] = {};
  constexpr Multiples() {
    for (int j = 0; j < group; ++j) of_alpha[j] = j * alpha, of_beta[j] = j * beta;
  }
};
alignas(64) constexpr Multiples multiples;

// One dither's words for a group: what is added to each of 64 words. Where elements follow one
// another in the whole tensor, those are the same for all groups, and need not be written down.
struct Dither {
  const std::uint32_t* words;
  std::uint32_t base;

  std::uint32_t operator[](int j) const { return words[j] + base; }
};

// Of v, at least 0 or NaN, as a codec keeps it.
inline std::int32_t bounded_bits(float v) {
  const auto bits = static_cast<std::uint32_t>(bits_of(v));
  constexpr auto bound = static_cast<std::uint32_t>(largest_bits);
  return static_cast<std::int32_t>(bits < bound ? bits : bound);
}

// The bits of 2^floor(exponent / 2) of a number of at least 0, given by its bits.
inline std::int32_t frame(std::int32_t v) { return ((v >> 1) + 0x1fc00000) & infinity; }

// Rounds a number of less than 2^22 to the nearest, ties to even: in the last bits of the result.
inline std::int32_t nearest(float x) { return bits_of(x + 0x1.8p23f); }

// Of a group the smallest and the largest v, by their bits, and the smallest size of a gradient.
struct Span {
  std::uint32_t lowest = 0xffffffff, highest = 0;
  std::int32_t gradient = infinity;

  void add(float v, float g) {
    const auto b = static_cast<std::uint32_t>(bits_of(v));
    lowest = b < lowest ? b : lowest;
    highest = b > highest ? b : highest;
    gradient = least(gradient, size_bits(g));
  }

  // Whether some v is zero, or beyond what a codec keeps.
  bool special() const { return !lowest || highest > largest_bits; }

  // The same of what a codec keeps, without zeros.
  void restrict_to_kept(const float* v) {
    std::uint32_t least_but_one = 0xffffffff;  // which zero is not
    highest = 0;
    for (int j = 0; j < group; ++j) {
      const auto b = static_cast<std::uint32_t>(bounded_bits(v[j]));
      least_but_one = b - 1 < least_but_one ? b - 1 : least_but_one;
      highest = b > highest ? b : highest;
    }
    lowest = least_but_one + 1;
  }
};

template <int bits>
struct WordOf;
template <>
struct WordOf<8> {
  using type = std::uint16_t;
};
template <>
struct WordOf<4> {
  using type = std::uint8_t;
};

template <int bits>
struct Codec {
  using Word = typename WordOf<bits>::type;
  static constexpr std::int32_t levels = (1 << bits) - 1, largest = bits == 8 ? 127 : 7 * (7 + 6),
                                mask = (1 << bits) - 1;
  static constexpr std::int32_t edge = (1 << (bits == 8 ? 20 : 16)) - 1;
  static constexpr float settle = bits == 8 ? 0.5f : 0.625f;

  static std::int32_t quantum(std::int32_t low, std::int32_t high) {
    return most((high - low + levels - 2) / (levels - 1), 1);
  }

  static float curve(float r) {
    if (bits == 8) return r;
    const float first = r * (1.0f / 8) + 21.0f / 256, second = r * (1.0f / 12) + 45.0f / 64;
    return least(least(first, second), r * (1.0f / 17) + 225.0f / 128);
  }

  // Reads the moments of one group.
  class Decoder {
   public:
    Decoder(const Word* words, const std::uint16_t* scales)
        : words_(words),
          low_(top_half(scales[0])),
          step_(quantum(low_, top_half(scales[1]))),
          unit_(float_of(top_half(scales[2])) / largest) {}

    void operator()(int j, float& m, float& v) const {
      const std::int32_t word = words_[j], k = (word >> bits) - 1;
      const std::int32_t stored = (low_ + k * step_) & ~(k >> 31);
      const auto shifted =
          static_cast<std::int32_t>(static_cast<std::uint32_t>(word) << (32 - bits));
      const std::int32_t code = shifted >> (32 - bits), size = code < 0 ? -code : code;
      const std::int32_t level = bits == 8 ? code : code * (size + 6);
      m = static_cast<float>(level) * unit_ * float_of(frame(stored));
      v = float_of(stored);
    }

   private:
    const Word* __restrict words_;
    std::int32_t low_, step_;
    float unit_;
  };

  // Writes the moments of some groups, whose v, and gradients, are said to be so. Each pass is over
  // all groups, so that none waits for what is found of another.
  template <class Dithers>
  static void encode(const float* m, const float* v, const float* g, Span* spans,
                     const Dithers& dithers, int groups, Word* words, std::uint16_t* scales) {
    std::int32_t low[most_groups], step[most_groups], size[most_groups];
    float inverse_step[most_groups], inverse[most_groups];
    alignas(64) float u[block];
    bool special[most_groups];
    for (int i = 0; i < groups; ++i) {
      special[i] = spans[i].special();
      if (special[i]) spans[i].restrict_to_kept(v + i * group);
      const auto highest = static_cast<std::int32_t>(spans[i].highest);
      const std::int32_t high = least((highest + edge) & ~edge, largest_bits);
      low[i] = static_cast<std::int32_t>(spans[i].lowest) & ~edge;
      step[i] = quantum(low[i], high);
      inverse_step[i] = 65535.0f / static_cast<float>(step[i]);
      scales[3 * i] = static_cast<std::uint16_t>(low[i] >> 16);
      scales[3 * i + 1] = static_cast<std::uint16_t>(high >> 16);
    }
    for (int i = 0; i < groups; ++i) {
      const int at = i * group;
      const auto write = special[i] ? encode_v<true> : encode_v<false>;
      size[i] = write(m + at, v + at, dithers.first(at), low[i], step[i], inverse_step[i], u + at,
                      words + at);
    }
    for (int i = 0; i < groups; ++i) {
      const bool poisoned = size[i] > largest_bits, kept = size[i] >= negligible && !poisoned;
      const auto fraction = static_cast<std::int32_t>(dithers.second(i * group)[0] >> 16);
      const std::int32_t scale = kept ? (size[i] + fraction) >> 16 : poisoned ? nan_bits >> 16 : 0;
      scales[3 * i + 2] = static_cast<std::uint16_t>(scale);
      inverse[i] = kept ? largest / float_of(size[i]) : 0.0f;
    }
    for (int i = 0; i < groups; ++i) {
      const int at = i * group;
      if (inverse[i] == 0) continue;  // u may be infinite or NaN, and its code is zero
      if (spans[i].gradient == 0)
        encode_m<true>(u + at, g + at, dithers.second(at), inverse[i], words + at);
      else
        encode_m<false>(u + at, g + at, dithers.second(at), inverse[i], words + at);
    }
  }

 private:
  // Writes v's codes. Answers with the bits of the largest |u|.
  template <bool special>
  static std::int32_t encode_v(const float* __restrict m, const float* __restrict v,
                               const Dither dither, std::int32_t low, std::int32_t step,
                               float inverse_step, float* __restrict u, Word* __restrict words) {
    std::int32_t highest = 0;
    for (int j = 0; j < group; ++j) {
      const std::int32_t b = special ? bounded_bits(v[j]) : bits_of(v[j]);
      const float level = static_cast<float>(b - low) * inverse_step;
      const auto fraction = static_cast<std::int32_t>(dither[j] >> 16);
      const std::int32_t k = (static_cast<std::int32_t>(level) + fraction) >> 16;
      // A mask: with it, loads stay unconditional, and fast.
      const std::int32_t positive = special ? -b >> 31 : -1;
      const float relative = m[j] * float_of(0x7f000000 - frame(low + k * step));
      words[j] = static_cast<Word>(((k + 1) & positive) << bits);
      u[j] = float_of(bits_of(relative) & positive);
      highest = most(highest, size_bits(relative) & positive);
    }
    return highest;
  }

  // Adds m's codes.
  template <bool zeros>
  static void encode_m(const float* __restrict u, const float* __restrict g, const Dither dither,
                       float inverse, Word* __restrict words) {
    for (int j = 0; j < group; ++j) {
      if (bits == 8 && !zeros) {  // as below: rounding to nearest is symmetric
        words[j] |= static_cast<Word>(nearest(u[j] * inverse) & mask);
        continue;
      }
      float code = curve(float_of(size_bits(u[j])) * inverse);
      if (zeros) {
        const auto fraction = static_cast<float>(static_cast<std::int32_t>(dither[j] >> 16));
        code += g[j] != 0 ? 0.0f : fraction * 0x1p-16f - settle;
      }
      const std::int32_t rounded = nearest(code);
      words[j] |= static_cast<Word>((bits_of(u[j]) < 0 ? -rounded : rounded) & mask);
    }
  }
};

inline void to_bfloat16(const float* __restrict x, const Dither dither,
                        std::uint16_t* __restrict halves) {
  for (int j = 0; j < group; ++j) {
    const auto bits = static_cast<std::uint32_t>(bits_of(x[j]));
    const std::uint32_t rounded = (bits + (dither[j] >> 16)) >> 16;
    halves[j] = static_cast<std::uint16_t>(is_nan(bits_of(x[j])) ? nan_bits >> 16 : rounded);
  }
}

inline void from_bfloat16(const std::uint16_t* __restrict halves, int size, float* __restrict x) {
  for (int j = 0; j < size; ++j) x[j] = float_of(top_half(halves[j]));
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

inline void to_float16(const float* __restrict x, const Dither dither,
                       std::uint16_t* __restrict halves) {
  for (int j = 0; j < group; ++j) {
    const std::int32_t size = size_bits(x[j]);
    const std::int32_t exponent = least(most(size >> 23, 113), 254);
    const float fraction =
        static_cast<float>(static_cast<std::int32_t>(dither[j] >> 19)) * 0x1p-13f;
    const std::int32_t finite = (size - infinity) >> 31;  // a mask
    const float counts = float_of(size & finite) * float_of((264 - exponent) << 23) + fraction;
    const float rounded =
        static_cast<float>(static_cast<std::int32_t>(counts)) * float_of((exponent - 10) << 23);
    const std::int32_t kept = (bits_of(rounded) & finite) | (size & ~finite);
    halves[j] = to_float16(float_of(kept | (bits_of(x[j]) & static_cast<std::int32_t>(sign_bit))));
  }
}

// A bfloat16 weight and the 16 or 8 bits of its master weight that follow it.
template <class Rest>
void split(const float* __restrict x, const Dither dither, std::uint16_t* __restrict weights,
           Rest* __restrict rest) {
  constexpr bool rounds = sizeof(Rest) == 1;
  for (int j = 0; j < group; ++j) {
    auto bits = static_cast<std::uint32_t>(is_nan(bits_of(x[j])) ? nan_bits : bits_of(x[j]));
    if (rounds) bits += is_nan(static_cast<std::int32_t>(bits)) ? 0 : dither[j] >> 24;
    weights[j] = static_cast<std::uint16_t>((bits + 0x8000) >> 16);
    rest[j] = static_cast<Rest>(bits >> (rounds ? 8 : 0));
  }
}

template <class Rest>
void join(const std::uint16_t* __restrict weights, const Rest* __restrict rest, int size,
          float* __restrict x) {
  for (int j = 0; j < size; ++j) {
    const std::uint32_t low = static_cast<std::uint32_t>(rest[j]) << (sizeof(Rest) == 1 ? 8 : 0);
    const std::uint32_t bits = static_cast<std::uint32_t>(weights[j]) << 16 | low;
    x[j] = float_of(static_cast<std::int32_t>(bits - ((low & 0x8000) << 1)));
  }
}

}  // namespace
}  // namespace adamas
