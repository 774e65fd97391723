// The codec of formats.py in C++, name for name: both moments of a group of 64 elements in words of
// two codes, with three scales. What is done to an element works on 32-bit lanes throughout: words
// are opened and closed by loops of their own, since a loop over two widths is vectorised for the
// narrow one, and then runs out of registers for the other.
//
// Internal linkage, as formats.hpp.
#pragma once

#include "formats.hpp"
#include "pairs.hpp"

namespace adamas {
namespace {

// What is looked for in a group is first found of each lane, by the group's four elements in it,
// and then of all lanes, for all groups of a block at once.
constexpr int lanes = 16;

// Not a loop, which clang would not unroll before it looks for vectors.
template <class Use>
__attribute__((always_inline)) inline void each_of(int lane, const Use& use) {
  static_assert(group == 4 * lanes, "four elements in each");
  use(lane);
  use(lane + lanes);
  use(lane + 2 * lanes);
  use(lane + 3 * lanes);
}

// Whether of such v some is zero or beyond what a codec keeps, or some gradient's square is zero.
inline bool is_special(std::uint32_t lowest, std::uint32_t highest) {
  return lowest == 0 || highest > largest_bits;
}

// Of each of a block's groups the smallest and the largest v, by their bits, which the grids of its
// codes go by.
struct Spans {
  alignas(64) std::uint32_t lowest[most_groups];  // 0 where some gradient is zero
  alignas(64) std::uint32_t highest[most_groups];
};

// What makes a group special, and its span: of what a codec keeps, without zeros.
struct Kept {
  std::uint32_t lowest, highest;
  bool zeros, bounded;  // whether some gradient is zero; whether some v is, or too large

  Kept(const float* v, const float* g) {
    std::uint32_t least_but_one = 0xffffffff, most_bits = 0, smallest = 0xffffffff, inactive = 0;
    for (int j = 0; j < group; ++j) {
      const auto b = static_cast<std::uint32_t>(bits_of(v[j]));
      const auto kept = static_cast<std::uint32_t>(bounded_bits(v[j]));
      least_but_one = least(least_but_one, kept - 1);  // which zero is not
      most_bits = most(most_bits, b);
      smallest = least(smallest, b);
      inactive |= size_bits(g[j]) ? 0 : 1;
    }
    bounded = !smallest || most_bits > largest_bits;
    zeros = inactive;
    lowest = least_but_one + 1;
    highest = least(most_bits, static_cast<std::uint32_t>(largest_bits));
  }
};

// The grids of v of a block's groups.
struct Grids {
  std::int32_t low[most_groups];
  std::uint32_t step[most_groups], twice[most_groups];
  float inverse_step[most_groups];
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

  // The codes of v in a group's words, and the levels of m; at 8 bits times 2^24, for which the
  // decoder makes up.
  static void open(const Word* __restrict words, std::int32_t* __restrict codes,
                   float* __restrict of_m) {
    if (bits == 8) {
      for (int j = 0; j < group; ++j) {
        const std::int32_t word = words[j];
        codes[j] = word >> 8;
        of_m[j] =
            static_cast<float>(static_cast<std::int32_t>(static_cast<std::uint32_t>(word) << 24));
      }
      return;
    }
    std::uint16_t code[group];
    std::int16_t level[group];
    for (int j = 0; j < group; ++j) {
      const auto more = static_cast<std::uint16_t>(words[j] + 16);
      code[j] = static_cast<std::uint16_t>(std::uint32_t{more} * 3856 >> 16);  // by 17
      const auto m = static_cast<std::int16_t>(words[j] - 17 * code[j] + 8);
      level[j] = static_cast<std::int16_t>(m * ((m < 0 ? -m : m) + 8));
    }
    for (int j = 0; j < group; ++j) {
      codes[j] = code[j];
      of_m[j] = level[j];
    }
  }

  // As `open`, in pairs.
  static void open_pairs(const Word* __restrict words, std::int32_t* __restrict codes,
                         float* __restrict of_m) {
    static_assert(bits == 8, "two words to a number");
    ADAMAS_INDEPENDENT
    for (int j = 0; j < pairs; ++j) {
      const std::uint32_t two = reinterpret_cast<const Pair*>(words)[j];
      codes[j] = static_cast<std::int32_t>(two >> 8 & 0xff);
      codes[j + pairs] = static_cast<std::int32_t>(two >> 24);
      of_m[j] = static_cast<float>(static_cast<std::int32_t>(two << 24));
      of_m[j + pairs] = static_cast<float>(static_cast<std::int32_t>(two << 8 & 0xff000000));
    }
  }

  // Finds v and m of a code and a level.
  struct Decoder {
    std::int32_t step, below;
    float unit;

    void operator()(std::int32_t code, float level, float& m, float& v) const {
      const std::int32_t stored = code ? below + code * step : 0;
      // What m is relative to: near the root, a power of two or, at 4 bits, also one and a half.
      constexpr std::int32_t kept = bits == 8 ? infinity : infinity | 0x400000;
      const std::int32_t frame = ((stored >> 1) + 0x1fc00000) & kept;
      // At 8 bits the level of a code without v is 0.
      m = level * unit * float_of(bits == 8 || code ? frame : 0);
      v = float_of(stored);
    }
  };

  // The moments of a group, as they are read.
  template <bool in_pairs>
  struct Opened {
    alignas(64) std::int32_t codes[group];
    alignas(64) float of_m[group];
    Decoder decoder;

    Opened(const Word* words, const Decoder& of_group) : decoder(of_group) {
      if constexpr (in_pairs)
        open_pairs(words, codes, of_m);
      else
        open(words, codes, of_m);
    }
    void operator()(int j, float& m, float& v) const { decoder(codes[j], of_m[j], m, v); }
  };

  // Those of a block's groups, worked out side by side.
  class Decoders {
   public:
    Decoders(const std::uint16_t* scales, int groups) {
      alignas(64) std::int32_t low[most_groups] = {}, high[most_groups] = {},
                               most_u[most_groups] = {};
      for (int i = 0; i < groups; ++i) {
        low[i] = top_half(scales[i * scale_count]);
        high[i] = top_half(scales[i * scale_count + 1]);
        most_u[i] = top_half(scales[i * scale_count + 2]);
      }
      for (int i = 0; i < most_groups; ++i) {
        step_[i] = quantum(low[i], high[i]);
        below_[i] = low[i] - step_[i];
        unit_[i] = float_of(most_u[i]) / largest * (bits == 8 ? 0x1p-24f : 1);
      }
    }

    Decoder operator[](int i) const { return {step_[i], below_[i], unit_[i]}; }

   private:
    alignas(64) std::int32_t step_[most_groups], below_[most_groups];
    alignas(64) float unit_[most_groups];
  };

  // A group's grid of v: finds its code, and m relative to its frame as stored.
  struct Grid {
    std::int32_t low;
    std::uint32_t step, twice;
    float inverse_step;

    Grid(const Grids& grids, int i)
        : low(grids.low[i]),
          step(grids.step[i]),
          twice(grids.twice[i]),
          inverse_step(grids.inverse_step[i]) {}

    std::int32_t code(std::int32_t b, float dither) const {
      return static_cast<std::int32_t>(static_cast<float>(b - low) * inverse_step + dither);
    }

    // By the frame's power of two, whose bits are (0x5fbfffff - (stored >> 1)) & infinity. With
    // 0xbf7fffff odd, that is (0xbf7fffff - stored) >> 1, for an even and for an odd number.
    float relative(float m, std::int32_t code) const {
      const std::uint32_t difference = twice - static_cast<std::uint32_t>(code) * step;
      const float power = float_of(static_cast<std::int32_t>(difference >> 1) & infinity);
      // 0xbf7fffff ends in 23 ones with a zero before them: that bit is the stored number's.
      return m * (bits == 8 || difference & 0x800000 ? power : power * (2.0f / 3));
    }

    // What a word has of a code, but for what `join` adds.
    static std::int32_t part(std::int32_t code) { return bits == 8 ? code << 8 : 17 * code; }
  };

  // Finds of v what words have of its codes, and of m what it is relative to its frame; of each
  // lane the largest size of the latter.
  __attribute__((always_inline)) static void quantize(const Grid& grid, const float* levels,
                                                      float* __restrict u, float* __restrict parts,
                                                      std::int32_t* __restrict sizes) {
    ADAMAS_INDEPENDENT
    for (int lane = 0; lane < lanes; ++lane) {
      std::int32_t size = 0;
      each_of(lane, [&](int j) __attribute__((always_inline)) {
        const std::int32_t code = grid.code(bits_of(parts[j]), levels[j]);
        const float relative = grid.relative(u[j], code);
        parts[j] = float_of(grid.part(code));
        u[j] = relative;
        size = most(size, size_bits(relative));
      });
      sizes[lane] = size;
    }
  }

  // Those that the spans ask for. Writes the scales.
  static void find(const Spans& spans, int groups, Grids& grids, std::uint16_t* scales) {
    alignas(64) std::int32_t high[most_groups];
    for (int i = 0; i < most_groups; ++i) {
      high[i] = least((static_cast<std::int32_t>(spans.highest[i]) + edge) & ~edge, largest_bits);
      grids.low[i] = static_cast<std::int32_t>(spans.lowest[i]) & ~edge;
      const std::int32_t step = quantum(grids.low[i], high[i]);
      grids.inverse_step[i] = 65535.0f / 65536 / static_cast<float>(step);
      grids.step[i] = static_cast<std::uint32_t>(step);
      grids.twice[i] = 0xbf7fffff + grids.step[i] - static_cast<std::uint32_t>(grids.low[i]);
    }
    for (int i = 0; i < groups; ++i) {
      scales[i * scale_count] = static_cast<std::uint16_t>(grids.low[i] >> 16);
      scales[i * scale_count + 1] = static_cast<std::uint16_t>(high[i] >> 16);
    }
  }

  static float curve(float r) {
    if (bits == 8) return r;
    const float first = r * (1.0f / 10) + 1.0f / 16, second = r * (1.0f / 15) + 99.0f / 128;
    return least(least(first, second), r * (1.0f / 21) + 127.0f / 64);
  }

  // A word of its part and of m's code before it is rounded, with the sign of u: the last bits of
  // the sum, of which one is yet to be turned at 8 bits; with 128 added, no code borrows from the
  // part. To nearest, ties to even, is the same beside any even number, and on both sides of zero.
  static constexpr float beside = bits == 8 ? 0x1.8p23f + 128 : 0x1.8p23f - 8;
  static constexpr std::int32_t turned = bits == 8 ? 0x80 : 0;

  static std::int32_t join(std::int32_t part, float size, float u) {
    const std::int32_t sign = bits_of(u) & static_cast<std::int32_t>(sign_bit);
    return part + bits_of(float_of(bits_of(size) | sign) + beside);
  }

  // As `join`, of u itself.
  static std::int32_t word(std::int32_t part, float u, float inverse) {
    if (bits == 8) return part + bits_of(u * inverse + beside);
    return join(part, curve(float_of(size_bits(u)) * inverse), u);
  }

  static std::int32_t scale_of_m(std::int32_t size, std::int32_t dither) {
    const std::int32_t kept = size >= negligible ? (size + dither) >> 16 : 0;
    return size > largest_bits ? nan_bits >> 16 : kept;
  }
  // Else the codes of m are zero.
  static bool keeps_m(std::int32_t size) { return (size >= negligible) & (size <= largest_bits); }
};

}  // namespace
}  // namespace adamas
