// A block of a row in float32: read from whatever the row keeps, and written back to it.
//
// Internal linkage, as rule.hpp.
#pragma once

#include "formats.hpp"
#include "table.hpp"

namespace adamas {
namespace {

inline int size_of(Dtype dtype) {
  return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2;
}

inline int size_of(Moments moments) {  // of the first array
  return moments == Moments::full ? 4 : moments == Moments::int4 ? 1 : 2;
}

inline int size_of(Master master) { return static_cast<int>(master) / 8; }

inline bool has_scales(Moments moments) {
  return moments == Moments::int8 || moments == Moments::int4;
}

// Bytes of 64 elements of an array.
inline int group_bytes(const Types& types, int array) {
  switch (array) {
    case param:
      return group * size_of(types.param);
    case grad:
      return group * size_of(types.grad);
    case exp_avg:
      return group * size_of(types.moments);
    case exp_avg_sq:
      return has_scales(types.moments) ? scale_count * 2 : group * size_of(types.moments);
    case master:
      return group * size_of(types.master);
    default:
      return group * 4;
  }
}

// What follows reads and writes the group that begins with element number `at` of the row.

// Of two bytes each.
inline void load(Dtype dtype, const void* from, int at, float* __restrict x) {
  const auto* halves = static_cast<const std::uint16_t*>(from) + at;
  if (dtype == Dtype::bfloat16)
    from_bfloat16(halves, x);
  else
    for (int j = 0; j < group; ++j) x[j] = from_float16(halves[j]);
}

// The master weights, where there are any, else the parameters.
inline void load_param(const Row& row, int at, float* __restrict p) {
  const auto* weights = static_cast<const std::uint16_t*>(row.arrays[param]) + at;
  const void* beside = row.arrays[master];
  switch (row.types.master) {
    case Master::rest16:
      return join(weights, static_cast<const std::uint16_t*>(beside) + at, p);
    case Master::rest8:
      return join(weights, static_cast<const std::uint8_t*>(beside) + at, p);
    case Master::whole: {
      // Where the parameter is not its rounding, somebody has set the parameter anew.
      const auto* whole = static_cast<const float*>(beside) + at;
      for (int j = 0; j < group; ++j)
        p[j] = to_float16(whole[j]) == weights[j] ? whole[j] : from_float16(weights[j]);
      return;
    }
    case Master::none:
      return load(row.types.param, row.arrays[param], at, p);
  }
}

// Moments in bfloat16, those that there are.
inline void load_moments(const Row& row, int at, float* m, float* v) {
  const auto* first = static_cast<const std::uint16_t*>(row.arrays[exp_avg]);
  const auto* second = static_cast<const std::uint16_t*>(row.arrays[exp_avg_sq]);
  if (first) from_bfloat16(first + at, m);
  if (second) from_bfloat16(second + at, v);
}

// The dithers of a block, wherever its elements are in the whole tensor.
class Placed {
 public:
  Placed(const Dithers& dithers, const Row& row, std::int64_t begin, int size) : dithers_(dithers) {
    std::int64_t within = begin % row.run, base = row.offset + begin / row.run * row.stride;
    index_ = static_cast<std::uint32_t>(base + within);
    whole_ = within + size <= row.run;
    if (whole_) return;
    for (int j = 0; j < size; ++j) {
      const auto index = static_cast<std::uint32_t>(base + within);
      first_[j] = *dithers.first(index);
      second_[j] = *dithers.second(index);
      rests_[j] = *dithers.rests(index);
      levels_[j] = *dithers.levels(index);
      if (j % group == 0) starts_[j / group] = index;
      if (++within == row.run) within = 0, base += row.stride;
    }
  }

  bool whole() const { return whole_; }

  // Of the group whose elements begin at this one of the block.
  const std::uint32_t* first(int at) const {
    return whole_ ? dithers_.first(index_ + at) : first_ + at;
  }
  const std::uint32_t* second(int at) const {
    return whole_ ? dithers_.second(index_ + at) : second_ + at;
  }
  const std::uint32_t* rests(int at) const {
    return whole_ ? dithers_.rests(index_ + at) : rests_ + at;
  }
  const float* levels(int at) const { return whole_ ? dithers_.levels(index_ + at) : levels_ + at; }
  std::int32_t scale(int at) const {
    return dithers_.scale(whole_ ? index_ + at : starts_[at / group]);
  }

 private:
  const Dithers& dithers_;
  std::uint32_t index_, starts_[most_groups];
  bool whole_;  // whether the elements follow one another in the whole tensor
  alignas(64) std::uint32_t first_[block], second_[block], rests_[block];
  alignas(64) float levels_[block];
};

inline void store_param(const Row& row, const Placed& dithers, int at, const float* p) {
  auto* weights = static_cast<std::uint16_t*>(row.arrays[param]) + at;
  switch (row.types.master) {
    case Master::rest16:
      return split(p, dithers.rests(at), weights,
                   static_cast<std::uint16_t*>(row.arrays[master]) + at);
    case Master::rest8:
      return split(p, dithers.rests(at), weights,
                   static_cast<std::uint8_t*>(row.arrays[master]) + at);
    case Master::whole:
      __builtin_memcpy(static_cast<float*>(row.arrays[master]) + at, p, sizeof(float) * group);
      for (int j = 0; j < group; ++j) weights[j] = to_float16(p[j]);
      return;
    case Master::none:
      return row.types.param == Dtype::bfloat16 ? to_bfloat16(p, dithers.second(at), weights)
                                                : to_float16(p, dithers.second(at), weights);
  }
}

inline void store_moments(const Row& row, const Placed& dithers, int at, const float* m,
                          const float* v) {
  auto* first = static_cast<std::uint16_t*>(row.arrays[exp_avg]);
  auto* second = static_cast<std::uint16_t*>(row.arrays[exp_avg_sq]);
  if (first) to_bfloat16(m, dithers.second(at), first + at);
  if (second) to_bfloat16(v, dithers.first(at), second + at);
}

// Fetches 64 elements into the cache. Inlined, or else g++ takes it for a call without effect and
// leaves it out.
template <class T>
__attribute__((always_inline)) inline void fetch_group(const T* from) {
  for (int line = 0; line < group; line += 64 / static_cast<int>(sizeof(T)))
    __builtin_prefetch(from + line);
}

// Fetches into the cache what of a row comes some groups later: late enough to be there still, in a
// cache that a block nearly fills. The processor does so by itself, but not across pages, and
// begins anew in each of a handful of arrays; so it does not keep up where there is more to do than
// in a plain loop.
class Ahead {
 public:
  static constexpr int groups = 6;

  // `bytes` are those of a group of each array.
  Ahead(const Row& part, const int* bytes) {
    for (int i = 0; i < array_count; ++i) {
      const char* const from = static_cast<const char*>(part.arrays[i]) + groups * bytes[i];
      if (bytes[i] == 256)
        wide_[wide_count_++] = from;
      else if (bytes[i] == 128)
        half_[half_count_++] = from;
      else if (bytes[i])
        narrow_[narrow_count_++] = {from, bytes[i]};
    }
  }

  // What comes after group i. Inlined, as above.
  __attribute__((always_inline)) void fetch(int i) const {
    for (int k = 0; k < wide_count_; ++k) {
      const char* const from = wide_[k] + i * 256;
      __builtin_prefetch(from);
      __builtin_prefetch(from + 64);
      __builtin_prefetch(from + 128);
      __builtin_prefetch(from + 192);
    }
    for (int k = 0; k < half_count_; ++k) {
      const char* const from = half_[k] + i * 128;
      __builtin_prefetch(from);
      __builtin_prefetch(from + 64);
    }
    for (int k = 0; k < narrow_count_; ++k)
      __builtin_prefetch(narrow_[k].from + i * narrow_[k].bytes);
  }

 private:
  struct Narrow {
    const char* from;
    int bytes;
  };
  const char *wide_[array_count], *half_[array_count];
  Narrow narrow_[array_count];
  int wide_count_ = 0, half_count_ = 0, narrow_count_ = 0;
};

// The arrays of one block of a row after the other: of up to sixteen whole groups, and last the
// elements of a group that is not whole, in copies that are filled up with zeros, which change no
// scale.
class Window {
 public:
  Window(const Row& row, std::int64_t begin) : part_(row) {
    for (int i = 0; i < array_count; ++i) {
      bytes_[i] = row.arrays[i] ? group_bytes(row.types, i) : 0;
      move(i, begin / group * bytes_[i]);
    }
  }

  // The next block of what is left. Its groups may reach beyond its size.
  const Row& open(std::int64_t left) {
    part_.size = left >= block ? block : left >= group ? left / group * group : left;
    if (left >= group) return part_;
    tail_ = part_;
    for (int i = 0; i < array_count; ++i) {
      if (!bytes_[i]) continue;
      for (char& byte : room_[i]) byte = 0;
      __builtin_memcpy(room_[i], part_.arrays[i], used(i));
      tail_.arrays[i] = room_[i];
    }
    return tail_;
  }

  Ahead ahead() const { return {part_, bytes_}; }

  void close() {
    for (int i = 0; i < array_count; ++i) {
      if (part_.size < group && bytes_[i] && i != grad)
        __builtin_memcpy(part_.arrays[i], room_[i], used(i));
      move(i, part_.size / group * bytes_[i]);
    }
  }

 private:
  void move(int i, std::int64_t bytes) {
    if (bytes) part_.arrays[i] = static_cast<char*>(part_.arrays[i]) + bytes;
  }

  // Of a tail; a group of scales is whole.
  int used(int i) const {
    const bool scales = i == exp_avg_sq && has_scales(part_.types.moments);
    return scales ? bytes_[i] : static_cast<int>(bytes_[i] / group * part_.size);
  }

  Row part_, tail_;
  int bytes_[array_count];  // of a group, 0 where there is no array
  alignas(64) char room_[array_count][group * sizeof(float)];
};

}  // namespace
}  // namespace adamas
