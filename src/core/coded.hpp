// Steps blocks of groups whose moments a codec keeps.
//
// Internal linkage, as rule.hpp.
#pragma once

#include "codec.hpp"
#include "lookup.hpp"
#include "stage.hpp"

namespace adamas {
namespace {

constexpr int block_lanes = most_groups * lanes;

struct Least {
  template <class T>
  T operator()(T a, T b) const {
    return least(a, b);
  }
};
struct Most {
  template <class T>
  T operator()(T a, T b) const {
    return most(a, b);
  }
};

template <class Choice, int count, class T>
inline void halve(const T* __restrict from, T* __restrict to) {
  for (int k = 0; k < count; ++k) to[k] = Choice{}(from[2 * k], from[2 * k + 1]);
}

// The one of each group's lanes.
template <class Choice, class T>
inline void across(const T* __restrict of_lanes, T* __restrict of_groups) {
  alignas(64) T eight[most_groups * 8], four[most_groups * 4], two[most_groups * 2];
  halve<Choice, most_groups * 8>(of_lanes, eight);
  halve<Choice, most_groups * 4>(eight, four);
  halve<Choice, most_groups * 2>(four, two);
  halve<Choice, most_groups>(two, of_groups);
}

// A block between its step and its last code.
struct Flight {
  // The moments; then m relative to its frame, and what words have of v's codes.
  alignas(64) float m[block], v[block];
  alignas(64) float settled[block];  // what codes of m get where a gradient is zero
  void* words;
  std::uint16_t* scales;
  int groups = 0;  // that are not yet written
  // Of the block's elements, one group's or all of them.
  const float* levels;
  int levels_stride;
  std::int32_t scale_dithers[most_groups] = {};
  Grids grids;
  float inverse[most_groups];
  // Truths, as wide as what they are found of. Whether some gradient is zero; whether the loop
  // shall write v, and m: special groups have ways of their own.
  std::int32_t zeros[most_groups], usual_v[most_groups], usual_m[most_groups];
  bool all_v, all_m;  // of all groups

  bool has_v(int i) const { return i < groups && usual_v[i]; }
  bool has_m(int i) const { return i < groups && usual_m[i]; }
  bool whole_v() const { return groups == most_groups && all_v; }
  bool whole_m() const { return groups == most_groups && all_m; }

  void open(const Row& part, int count, const Placed& dithers) {
    words = part.arrays[exp_avg];
    scales = static_cast<std::uint16_t*>(part.arrays[exp_avg_sq]);
    groups = count;
    levels = dithers.levels(0);
    levels_stride = dithers.whole() ? 0 : group;
    for (int i = 0; i < count; ++i) scale_dithers[i] = dithers.scale(i * group);
  }
};

// What is found in lanes, by bits: of the block that is stepped the smallest v, or 0 where some
// gradient is zero, and the largest; of that before it the largest |u|.
struct Extremes {
  alignas(64) std::uint32_t lowest[block_lanes], highest[block_lanes];
  alignas(64) std::int32_t sizes[block_lanes];
};

// Moves blocks through three stages: one is stepped, which waits for square roots and divisions;
// meanwhile the v of that before it gets its codes, and the m of that before. So what is found of
// all groups of a block is there when it is needed.
//
// Of a rule that has only m, v is its square, and neither is what is read of it; of one that has
// only v, m is zero.
template <int bits, class Has, bool in_pairs>
class Coder {
 public:
  using Codec = adamas::Codec<bits>;
  using Word = typename Codec::Word;

  template <bool usual>
  void step(Stage& stage, const Row& part, int groups, const Placed& dithers, const Ahead& ahead,
            const Coefficients<float>& given) {
    const auto c = usual ? without_extras(given) : given;
    Flight &now = at(0), &before = at(1), &first = at(2);
    now.open(part, groups, dithers);
    const typename Codec::Decoders decoders(now.scales, groups);
    const bool whole = groups == most_groups && before.whole_v() && first.whole_m();
    // Steps group i, and meanwhile writes group k of the blocks before.
    const auto turn = [&](int i, int k, bool steps, bool v, bool m) __attribute__((always_inline)) {
      alignas(64) float denominators[group];
      if (steps) ahead.fetch(i);
      if (steps) stage.template load<in_pairs>(i * group);
      if (steps) average(i, stage, now, decoders[i], c, denominators);
      if (m) write_m(first, k);
      if (v) write_v(before, k);
      if (steps) move(i, stage, now, c, denominators);
    };
    // The usual case has no condition. What codes go by was only just found: at 4 bits they are
    // written a turn late, so that the first need not wait; at 8 bits that gains nothing.
    constexpr int late = bits == 4 ? 1 : 0;
    if (late && whole) {
      // Loops, even of one turn: outside of any, lanes are unrolled and no longer vectorised.
      for (int i = 0; i < late; ++i) turn(i, i, true, false, false);
      for (int i = late; i < most_groups; ++i) turn(i, i - late, true, true, true);
      for (int i = most_groups - late; i < most_groups; ++i) turn(i, i, false, true, true);
    } else {
      for (int i = 0; i < most_groups; ++i)
        whole ? turn(i, i, true, true, true)
              : turn(i, i, i < groups, before.has_v(i), first.has_m(i));
    }
    stage.template store_all<in_pairs>(dithers, groups);
  }

  // Of the block that was stepped last, before it goes on.
  Flight& stepped() { return at(0); }

  // To be called after each step; the gradients are those of the block that was stepped.
  void go_on(const float* g, const Placed& dithers) {
    prepare_m(at(1));
    prepare_v(at(0), g, dithers);  // which may find sizes of the next turn
    go_on();
  }

  // Writes what is still on its way.
  void drain() {
    while (at(1).groups || at(2).groups) {
      for (int i = 0; i < most_groups; ++i) {
        if (at(1).has_v(i)) write_v(at(1), i);
        if (at(2).has_m(i)) write_m(at(2), i);
      }
      prepare_m(at(1));
      go_on();
    }
  }

 private:
  Flight& at(int ago) { return flights_[(count_ + ago) % 3]; }

  void go_on() {
    at(2).groups = 0;
    count_ = (count_ + 2) % 3;  // what was stepped is before
  }

  // The averages of a group, and what its update is divided by.
  __attribute__((always_inline)) void average(int i, const Stage& stage, Flight& now,
                                              const typename Codec::Decoder& decoder,
                                              const Coefficients<float>& c,
                                              float* __restrict denominators) {
    const int begin = i * group;
    const float *const p = stage.p + begin, *const g = stage.g + begin;
    constexpr bool has_w = Has::rule == Rule::adam && Has::w;
    float* const w = has_w ? stage.w + begin : nullptr;
    float *const m = now.m + begin, *const v = now.v + begin;
    const typename Codec::template Opened<in_pairs> opened(
        static_cast<const Word*>(now.words) + begin, decoder);
    ADAMAS_INDEPENDENT
    for (int lane = 0; lane < lanes; ++lane) {
      std::uint32_t low = 0xffffffff, high = 0;
      float least_square = 1;
      each_of(lane, [&](int j) __attribute__((always_inline)) {
        const float grad = g[j];
        float none = 0, first, second;
        opened(j, first, second);
        denominators[j] = adamas::average<Has>(p[j], grad, first, second, has_w ? w[j] : none, c);
        first = Has::m ? first : 0;
        second = Has::v ? second : first * first;
        m[j] = first;
        v[j] = second;
        const auto b = static_cast<std::uint32_t>(bits_of(second));
        low = least(low, b);
        high = most(high, b);
        if (Has::m) least_square = least(least_square, grad * grad);
      });
      extremes_.lowest[i * lanes + lane] = least_square != 0 ? low : 0;
      extremes_.highest[i * lanes + lane] = high;
    }
  }

  __attribute__((always_inline)) static void move(int i, const Stage& stage, const Flight& now,
                                                  const Coefficients<float>& c,
                                                  const float* __restrict denominators) {
    const int begin = i * group;
    float* const p = stage.p + begin;
    const float *const g = stage.g + begin, *const m = now.m + begin;
    constexpr bool has_w = Has::rule == Rule::rmsprop && Has::w;
    float* const w = has_w ? stage.w + begin : nullptr;
    ADAMAS_INDEPENDENT
    for (int j = 0; j < group; ++j) {
      float none = 0;
      adamas::move<Has>(p[j], g[j], m[j], denominators[j], has_w ? w[j] : none, c);
    }
  }

  __attribute__((always_inline)) void write_v(Flight& before, int i) {
    const typename Codec::Grid grid(before.grids, i);
    const float* const levels = before.levels + i * before.levels_stride;
    Codec::quantize(grid, levels, before.m + i * group, before.v + i * group,
                    extremes_.sizes + i * lanes);
  }

  __attribute__((always_inline)) static void write_m(const Flight& first, int i) {
    const float *const u = first.m + i * group, *const parts = first.v + i * group;
    const float inverse = first.inverse[i];
    alignas(64) std::int32_t wide[group];
    ADAMAS_INDEPENDENT
    for (int j = 0; j < group; ++j) wide[j] = Codec::word(bits_of(parts[j]), u[j], inverse);
    close(wide, static_cast<Word*>(first.words) + i * group);
  }

  static void close(const std::int32_t* __restrict wide, Word* __restrict words) {
    if constexpr (in_pairs)
      close_pairs(wide, words, Codec::turned);
    else
      for (int j = 0; j < group; ++j) words[j] = static_cast<Word>(wide[j] ^ Codec::turned);
  }

  void prepare_v(Flight& now, const float* g, const Placed& dithers) {
    Spans spans;
    for (int k = now.groups * lanes; k < block_lanes; ++k)
      extremes_.lowest[k] = extremes_.highest[k] = 1;
    across<Least>(extremes_.lowest, spans.lowest);
    across<Most>(extremes_.highest, spans.highest);
    for (int i = 0; i < most_groups; ++i) {
      now.zeros[i] = false;
      now.usual_v[i] = true;
    }
    std::uint32_t lowest = 0xffffffff, highest = 0;
    for (int i = 0; i < most_groups; ++i) {
      lowest = least(lowest, spans.lowest[i]);
      highest = most(highest, spans.highest[i]);
    }
    const bool special = is_special(lowest, highest);
    now.all_v = !special;
    if (special) find_special(now, g, dithers, spans);
    Codec::find(spans, now.groups, now.grids, now.scales);
    if (!special) return;
    for (int i = 0; i < now.groups; ++i)
      if (!now.usual_v[i]) write_bounded_v(now, i);
  }

  static void find_special(Flight& now, const float* g, const Placed& dithers, Spans& spans) {
    for (int i = 0; i < now.groups; ++i) {
      if (!is_special(spans.lowest[i], spans.highest[i])) continue;
      const Kept kept(now.v + i * group, g + i * group);
      spans.lowest[i] = kept.lowest;
      spans.highest[i] = kept.highest;
      now.zeros[i] = kept.zeros;
      now.usual_v[i] = !kept.bounded;
      if (kept.zeros) settle(now.settled + i * group, g + i * group, dithers.second(i * group));
    }
  }

  static void settle(float* __restrict settled, const float* __restrict g,
                     const std::uint32_t* __restrict dither) {
    for (int j = 0; j < group; ++j) {
      const auto fraction = static_cast<float>(static_cast<std::int32_t>(dither[j]));
      const float less = fraction * 0x1p-16f - Codec::settle;
      settled[j] = g[j] != 0 ? 0.0f : less;
    }
  }

  // Of a group some v of which is zero or too large.
  void write_bounded_v(Flight& now, int i) {
    const typename Codec::Grid grid(now.grids, i);
    const float* const levels = now.levels + i * now.levels_stride;
    float *const u = now.m + i * group, *const parts = now.v + i * group;
    std::int32_t size = 0;
    ADAMAS_INDEPENDENT
    for (int j = 0; j < group; ++j) {
      const std::int32_t b = bounded_bits(parts[j]);
      // A mask: with it, loads stay unconditional, and fast.
      const std::int32_t positive = -b >> 31;
      const std::int32_t code = grid.code(b, levels[j]);
      const std::int32_t relative = bits_of(grid.relative(u[j], code)) & positive;
      // A word without v is 0, whatever `join` takes away.
      parts[j] = float_of(grid.part(code & positive) + (bits == 8 ? 0 : 8 & ~positive));
      u[j] = float_of(relative);
      size = most(size, relative & 0x7fffffff);
    }
    for (int lane = 0; lane < lanes; ++lane) extremes_.sizes[i * lanes + lane] = size;
  }

  void prepare_m(Flight& before) {
    alignas(64) std::int32_t sizes[most_groups];
    for (int k = before.groups * lanes; k < block_lanes; ++k) extremes_.sizes[k] = 0;
    across<Most>(extremes_.sizes, sizes);
    alignas(64) std::int32_t scales[most_groups];
    unsigned special = 0;
    for (int i = 0; i < most_groups; ++i) {
      const std::int32_t size = sizes[i];
      before.inverse[i] = Codec::largest / float_of(most(size, negligible));
      scales[i] = Codec::scale_of_m(size, before.scale_dithers[i]);
      // Without any m, no dither finds one.
      const std::int32_t usual = (size == 0) | (Codec::keeps_m(size) & (before.zeros[i] == 0));
      before.usual_m[i] = usual;
      special |= usual == 0;
    }
    for (int i = 0; i < before.groups; ++i)
      before.scales[i * scale_count + 2] = static_cast<std::uint16_t>(scales[i]);
    before.all_m = !special;
    if (!special) return;
    for (int i = 0; i < before.groups; ++i)
      if (!before.usual_m[i]) write_special_m(before, i, Codec::keeps_m(sizes[i]));
  }

  // Of a group some gradient of which is zero, so that m decays by the dither; or of one whose m is
  // not kept, where u may be infinite or NaN.
  static void write_special_m(Flight& before, int i, bool keeps) {
    const float *const u = before.m + i * group, *const parts = before.v + i * group;
    const float* const settled = before.settled + i * group;
    const float inverse = before.inverse[i];
    Word* const words = static_cast<Word*>(before.words) + i * group;
    alignas(64) std::int32_t wide[group];
    ADAMAS_INDEPENDENT
    for (int j = 0; j < group; ++j) {
      const float code = Codec::curve(float_of(size_bits(u[j])) * inverse) + settled[j];
      wide[j] = Codec::join(bits_of(parts[j]), keeps && code > 0 ? code : 0.0f, keeps ? u[j] : 0);
    }
    close(wide, words);
  }

  Flight flights_[3];
  Extremes extremes_;
  int count_ = 0;
};

}  // namespace
}  // namespace adamas
