// Steps blocks of groups whose moments a codec keeps.
//
// Internal linkage, as rule.hpp.
#pragma once

#include "block.hpp"
#include "codec.hpp"
#include "rule.hpp"

namespace adamas {
namespace {

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
  std::int32_t scale_dithers[most_groups];
  Span spans[most_groups];
  Grids grids;
  std::int32_t sizes[most_groups];  // the largest |u|, by its bits
  float inverse[most_groups];
  bool zeros[most_groups];  // whether some gradient is zero
  // Whether the loop shall write v, and m; special groups have ways of their own.
  bool usual_v[most_groups], usual_m[most_groups];

  void open(const Row& part, int count, const Placed& dithers) {
    words = part.arrays[exp_avg];
    scales = static_cast<std::uint16_t*>(part.arrays[exp_avg_sq]);
    groups = count;
    levels = dithers.levels(0);
    levels_stride = dithers.whole() ? 0 : group;
    for (int i = 0; i < count; ++i) scale_dithers[i] = dithers.scale(i * group);
  }
};

// Moves blocks through three stages: one is stepped, which waits for square roots and divisions;
// meanwhile the v of that before it gets its codes, and the m of that before. So what is found of
// all groups of a block is there when it is needed.
//
// Of a rule that has only m, v is its square, and neither is what is read of it; of one that has
// only v, m is zero.
template <int bits>
class Coder {
 public:
  using Codec = adamas::Codec<bits>;
  using Word = typename Codec::Word;

  // `arrays` is where the block is in float32, but for m and v.
  template <class Has, bool usual>
  void step(const Row& part, const Place<float>& arrays, int groups, const Placed& dithers,
            const Ahead& ahead, const Coefficients<float>& c) {
    Flight& now = at(0);
    now.open(part, groups, dithers);
    decode(now);
    turn<Has, usual>(arrays, &ahead, c);
  }

  // Of the block that was stepped last, before it goes on.
  Flight& stepped() { return at(0); }

  // To be called after each step; the gradients are those of the block that was stepped.
  void go_on(const float* g, const Placed& dithers) {
    prepare_v(at(0), g, dithers);
    prepare_m(at(1));
    at(2).groups = 0;
    count_ = (count_ + 2) % 3;  // what was stepped is before
  }

  // Writes what is still on its way.
  void drain() {
    while (at(1).groups || at(2).groups) {
      turn<Kind<Rule::sgd, false, false, false>, false>({}, nullptr, {});  // which steps none
      prepare_m(at(1));
      at(2).groups = 0;
      count_ = (count_ + 2) % 3;
    }
  }

 private:
  Flight& at(int ago) { return flights_[(count_ + ago) % 3]; }

  static void decode(Flight& now) {
    const auto* words = static_cast<const Word*>(now.words);
    const typename Codec::Decoders decoders(now.scales, now.groups);
    for (int i = 0; i < now.groups; ++i) {
      alignas(64) std::int32_t codes[group];
      alignas(64) float of_m[group];
      Codec::open(words + i * group, codes, of_m);
      const auto decode = decoders[i];
      float *const m = now.m + i * group, *const v = now.v + i * group;
      ADAMAS_INDEPENDENT
      for (int j = 0; j < group; ++j) decode(codes[j], of_m[j], m[j], v[j]);
    }
  }

  template <class Has, bool usual>
  void turn(const Place<float>& arrays, const Ahead* ahead, const Coefficients<float>& given) {
    const auto c = usual ? without_extras(given) : given;
    Flight &now = at(0), &before = at(1), &first = at(2);
    for (int i = 0; i < most_groups; ++i) {
      const bool steps = Has::coded && i < now.groups,
                 grids = i < before.groups && before.usual_v[i],
                 closes = i < first.groups && first.usual_m[i];
      if (steps && ahead) ahead->fetch(i);
      if (steps && grids && closes) {
        take<Has, Has::coded, true, true>(i, arrays, now, before, first, c);
        continue;
      }
      if (steps) take<Has, Has::coded, false, false>(i, arrays, now, before, first, c);
      if (grids) take<Has, false, true, false>(i, arrays, now, before, first, c);
      if (closes) take<Has, false, false, true>(i, arrays, now, before, first, c);
    }
  }

  // Group i of each of the three, or of some. Inlined, or else g++ finds it too large for that.
  template <class Has, bool steps, bool grids, bool closes>
  __attribute__((always_inline)) static void take(int i, const Place<float>& arrays, Flight& now,
                                                  Flight& before, Flight& first,
                                                  const Coefficients<float>& c) {
    const int begin = i * group;
    float* const p = steps ? arrays.p + begin : nullptr;
    const float* const g = steps ? arrays.g + begin : nullptr;
    float* const w = steps && Has::w ? arrays.w + begin : nullptr;
    float *const m = now.m + begin, *const v = now.v + begin;
    float *const u = before.m + begin, *const parts = before.v + begin;
    const typename Codec::Grid grid(before.grids, grids ? i : 0);
    const float* const levels = grids ? before.levels + i * before.levels_stride : nullptr;
    const float *const last_u = first.m + begin, *const last_parts = first.v + begin;
    const float inverse = first.inverse[i];
    Word* const words = closes ? static_cast<Word*>(first.words) + begin : nullptr;
    alignas(64) std::int32_t wide[group];
    Span span;
    std::int32_t size = 0;
    ADAMAS_INDEPENDENT
    ADAMAS_UNROLLED
    for (int j = 0; j < group; ++j) {
      if (steps) {
        float none = 0, weight = p[j], first_moment = m[j], second = v[j];
        const float grad = g[j];
        apply<Has>(weight, grad, first_moment, second, Has::w ? w[j] : none, c);
        first_moment = Has::m ? first_moment : 0;
        second = Has::v ? second : first_moment * first_moment;
        p[j] = weight;
        m[j] = first_moment;
        v[j] = second;
        span.add(second, Has::m ? grad * grad : 1);
      }
      if (grids) {
        const std::int32_t code = grid.code(bits_of(parts[j]), levels[j]);
        const float relative = grid.relative(u[j], code);
        parts[j] = float_of(grid.part(code));
        u[j] = relative;
        size = most(size, size_bits(relative));
      }
      if (closes) wide[j] = Codec::word(bits_of(last_parts[j]), last_u[j], inverse);
    }
    if (closes) close(wide, words);
    if (steps) now.spans[i] = span;
    if (grids) before.sizes[i] = size;
  }

  static void close(const std::int32_t* __restrict wide, Word* __restrict words) {
    for (int j = 0; j < group; ++j) words[j] = static_cast<Word>(wide[j] ^ Codec::turned);
  }

  static void prepare_v(Flight& now, const float* g, const Placed& dithers) {
    bool bounded[most_groups], special = false;
    for (int i = 0; i < most_groups; ++i) {
      bounded[i] = now.zeros[i] = false;
      now.usual_v[i] = true;
    }
    for (int i = 0; i < now.groups; ++i) special |= now.spans[i].special();
    if (special) find_special(now, g, dithers, bounded);
    Codec::find(now.spans, now.groups, now.grids, now.scales);
    if (!special) return;
    for (int i = 0; i < now.groups; ++i) {
      now.usual_v[i] = !bounded[i];
      if (bounded[i]) write_bounded_v(now, i);
    }
  }

  static void find_special(Flight& now, const float* g, const Placed& dithers, bool* bounded) {
    for (int i = 0; i < now.groups; ++i) {
      if (!now.spans[i].special()) continue;
      const Kept kept(now.v + i * group, g + i * group);
      now.spans[i] = kept.span;
      now.zeros[i] = kept.zeros;
      bounded[i] = kept.bounded;
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
  static void write_bounded_v(Flight& now, int i) {
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
    now.sizes[i] = size;
  }

  static void prepare_m(Flight& before) {
    for (int i = 0; i < before.groups; ++i)
      before.inverse[i] = before.sizes[i] ? Codec::largest / float_of(before.sizes[i]) : 0;
    for (int i = 0; i < before.groups; ++i) {
      const std::int32_t size = before.sizes[i];
      before.scales[i * scale_count + 2] = Codec::scale_of_m(size, before.scale_dithers[i]);
      // Without any m, no dither finds one.
      before.usual_m[i] = !size || (Codec::keeps_m(size) && !before.zeros[i]);
      if (!before.usual_m[i]) write_special_m(before, i, Codec::keeps_m(size));
    }
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
  int count_ = 0;
};

}  // namespace
}  // namespace adamas
