// Moment formats and split weights in C++: src/adamas/formats.py, name for name. Everything works
// on groups of 64 elements. Loops over a group have a fixed length and no branches, so that the
// compiler vectorises them whole.
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

inline std::int32_t least(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
inline std::int32_t most(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
inline float least(float a, float b) { return a < b ? a : b; }

inline std::int32_t size_bits(float x) { return bits_of(x) & 0x7fffffff; }
inline bool is_nan(std::int32_t bits) { return (bits & 0x7fffffff) > infinity; }

// The dithers of the 64 positions of a group at one step, 16 bits each. They are those of every
// group; a group that begins elsewhere than at a multiple of 64 begins elsewhere in them.
class Dithers {
 public:
  explicit Dithers(std::uint32_t step) : base_(step * by_step_second) {
    for (int j = 0; j < 2 * group; ++j) {
      const auto index = static_cast<std::uint32_t>(j);
      first_[j] = (index * (49u << 26) + step * by_step_first) >> 16;
      second_[j] = (index * (35u << 26) + base_) >> 16;
      levels_[j] = static_cast<float>(static_cast<std::int32_t>(first_[j])) * 0x1p-16f + 1;
    }
  }

  // Of the element at this index in the whole tensor, and those after it.
  const std::uint32_t* first(std::uint32_t index) const { return first_ + index % group; }
  const std::uint32_t* second(std::uint32_t index) const { return second_ + index % group; }
  // One more than the first, as a fraction.
  const float* levels(std::uint32_t index) const { return levels_ + index % group; }
  // Of a group whose first element has this index.
  std::int32_t scale(std::uint32_t index) const {
    return static_cast<std::int32_t>((index / group * by_step_first + base_) >> 16);
  }

 private:
  static constexpr std::uint32_t by_step_first = 2447445413, by_step_second = 3242174889;

  std::uint32_t base_;
  alignas(64) std::uint32_t first_[2 * group], second_[2 * group];
  alignas(64) float levels_[2 * group];
};

// Of v, at least 0 or NaN, as a codec keeps it.
inline std::int32_t bounded_bits(float v) {
  const auto bits = static_cast<std::uint32_t>(bits_of(v));
  constexpr auto bound = static_cast<std::uint32_t>(largest_bits);
  return static_cast<std::int32_t>(bits < bound ? bits : bound);
}

// Rounds a number of less than 2^22 to the nearest, ties to even: in the last bits of the result.
inline std::int32_t nearest(float x) { return bits_of(x + 0x1.8p23f); }

// Of a group the smallest and the largest v, by their bits, and the smallest square of a gradient.
struct Span {
  std::uint32_t lowest = 0xffffffff, highest = 0;
  std::int32_t gradient = infinity;

  void add(float v, float g) {
    const auto b = static_cast<std::uint32_t>(bits_of(v));
    lowest = b < lowest ? b : lowest;
    highest = b > highest ? b : highest;
    gradient = least(gradient, bits_of(g * g));
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
  static constexpr std::int32_t levels = (1 << bits) - 1, largest = bits == 8 ? 127 : 8 * (8 + 8);
  static constexpr std::int32_t edge = (1 << (bits == 8 ? 20 : 16)) - 1;
  static constexpr float settle = bits == 8 ? 0.5f : 0.59375f;

  static std::int32_t quantum(std::int32_t low, std::int32_t high) {
    return most((high - low + levels - 2) / (levels - 1), 1);
  }

  static float curve(float r) {
    if (bits == 8) return r;
    const float first = r * (1.0f / 10) + 1.0f / 16, second = r * (1.0f / 15) + 99.0f / 128;
    return least(least(first, second), r * (1.0f / 21) + 127.0f / 64);
  }

  // What m is relative to, beside a v of these bits: near the root, a power of two or, at 4 bits,
  // also one and a half of it.
  static float frame(std::int32_t v) {
    return float_of(((v >> 1) + 0x1fc00000) & (bits == 8 ? infinity : infinity | 0x400000));
  }

  static float by_frame(float m, std::int32_t v) {
    const float u = m * float_of((0x5fbfffff - (v >> 1)) & infinity);  // by its power of two
    return bits == 8 || v & 0x800000 ? u : u * (2.0f / 3);
  }

  // Reads the moments of one group.
  class Decoder {
   public:
    explicit Decoder(const std::uint16_t* scales)
        : step_(quantum(top_half(scales[0]), top_half(scales[1]))),
          below_(top_half(scales[0]) - step_),
          unit_(float_of(top_half(scales[2])) / largest * (bits == 8 ? 0x1p-24f : 1)) {}

    void operator()(std::int32_t word, float& m, float& v) const {
      const std::int32_t code = bits == 8 ? word >> 8 : ((word + 16) * 241) >> 12;  // by 17
      const std::int32_t positive = below_ + code * step_;
      m = level(word, code) * unit_ * (code ? frame(positive) : 0.0f);
      v = float_of(code ? positive : 0);
    }

   private:
    // Of m; at 8 bits times 2^24, for which unit_ makes up.
    static float level(std::int32_t word, std::int32_t code) {
      if (bits == 8)
        return static_cast<float>(
            static_cast<std::int32_t>(static_cast<std::uint32_t>(word) << 24));
      const auto code_m = static_cast<float>(word - 17 * code + 8);
      return code_m * (float_of(size_bits(code_m)) + 8);
    }

    std::int32_t step_, below_;
    float unit_;
  };

  // Writes the moments of one group: first v, then m, for the scale of m is known only when all of
  // v is written.
  class Encoder {
   public:
    void write_v(const float* m, const float* v, Span span, const float* dither, Word* words,
                 std::uint16_t* scales) {
      const bool special = span.special();
      if (special) span.restrict_to_kept(v);
      const auto highest = static_cast<std::int32_t>(span.highest);
      const std::int32_t high = least((highest + edge) & ~edge, largest_bits);
      const std::int32_t low = static_cast<std::int32_t>(span.lowest) & ~edge;
      scales[0] = static_cast<std::uint16_t>(low >> 16);
      scales[1] = static_cast<std::uint16_t>(high >> 16);
      zeros_ = span.gradient == 0;
      const std::int32_t step = quantum(low, high);
      size_ = special ? encode_v<true>(m, v, dither, low, step, u_, words)
                      : encode_v<false>(m, v, dither, low, step, u_, words);
    }

    void write_m(const float* g, const std::uint32_t* dither, std::int32_t scale_dither,
                 Word* words, std::uint16_t* scales) const {
      const bool poisoned = size_ > largest_bits, kept = size_ >= negligible && !poisoned;
      const std::int32_t rounded = (size_ + scale_dither) >> 16;
      scales[2] = static_cast<std::uint16_t>(kept ? rounded : poisoned ? nan_bits >> 16 : 0);
      if (!kept) return;  // u may be infinite or NaN, and its code is zero
      const float inverse = largest / float_of(size_);
      zeros_ ? encode_m<true>(u_, g, dither, inverse, words)
             : encode_m<false>(u_, g, dither, inverse, words);
    }

   private:
    alignas(64) float u_[group];
    std::int32_t size_;  // the largest of u, by its bits
    bool zeros_;         // whether some gradient is zero
  };

 private:
  // Writes v's codes. Answers with the bits of the largest |u|.
  template <bool special>
  static std::int32_t encode_v(const float* __restrict m, const float* __restrict v,
                               const float* __restrict dither, std::int32_t low, std::int32_t step,
                               float* __restrict u, Word* __restrict words) {
    const float inverse_step = 65535.0f / 65536 / static_cast<float>(step);
    const std::int32_t below = low - step;
    std::int32_t highest = 0;
    for (int j = 0; j < group; ++j) {
      const std::int32_t b = special ? bounded_bits(v[j]) : bits_of(v[j]);
      const float level = static_cast<float>(b - low) * inverse_step + dither[j];
      // A mask: with it, loads stay unconditional, and fast.
      const std::int32_t positive = special ? -b >> 31 : -1;
      const auto code = static_cast<std::int32_t>(level);
      const float relative = by_frame(m[j], below + code * step);
      const auto number = static_cast<std::uint32_t>(code & positive);
      words[j] = static_cast<Word>(bits == 8 ? number << 8 : 17 * number - (8 & positive));
      u[j] = float_of(bits_of(relative) & positive);
      highest = most(highest, size_bits(relative) & positive);
    }
    return highest;
  }

  // Adds m's codes.
  template <bool zeros>
  static void encode_m(const float* __restrict u, const float* __restrict g,
                       const std::uint32_t* __restrict dither, float inverse,
                       Word* __restrict words) {
    for (int j = 0; j < group; ++j) {
      if (bits == 8 && !zeros) {  // as below: rounding to nearest is symmetric
        words[j] |= static_cast<Word>(nearest(u[j] * inverse) & 0xff);
        continue;
      }
      float code = curve(float_of(size_bits(u[j])) * inverse);
      if (zeros) {
        const auto fraction = static_cast<float>(static_cast<std::int32_t>(dither[j]));
        code += g[j] != 0 ? 0.0f : fraction * 0x1p-16f - settle;
        code = code < 0 ? 0.0f : code;
      }
      // Its last byte is the code, and the others are cut off, or away.
      const std::int32_t rounded = bits_of(u[j]) < 0 ? -nearest(code) : nearest(code);
      words[j] = static_cast<Word>(bits == 8 ? words[j] | (rounded & 0xff) : words[j] + rounded);
    }
  }
};

inline void to_bfloat16(const float* __restrict x, const std::uint32_t* __restrict dither,
                        std::uint16_t* __restrict halves) {
  for (int j = 0; j < group; ++j) {
    const auto bits = static_cast<std::uint32_t>(bits_of(x[j]));
    const std::uint32_t rounded = (bits + dither[j]) >> 16;
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

// A bfloat16 weight and the 16 or 8 bits of its master weight that follow it.
template <class Rest>
void split(const float* __restrict x, const std::uint32_t* __restrict dither,
           std::uint16_t* __restrict weights, Rest* __restrict rest) {
  constexpr bool rounds = sizeof(Rest) == 1;
  for (int j = 0; j < group; ++j) {
    auto bits = static_cast<std::uint32_t>(is_nan(bits_of(x[j])) ? nan_bits : bits_of(x[j]));
    if (rounds) bits += is_nan(static_cast<std::int32_t>(bits)) ? 0 : dither[j] >> 8;
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
