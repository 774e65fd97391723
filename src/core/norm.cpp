#include "norm.hpp"

#include <cmath>
#include <cstring>
#include <mutex>

#include "formats.hpp"
#include "pieces.hpp"
#include "pool.hpp"

namespace adamas {
namespace {

// A sum kept in two float64, so that adding up pieces adds no error that counts.
struct Pair {
  double high = 0, low = 0;

  void add(double x) {  // Knuth's two-sum
    const double sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }
};

// Makes every digit but the last less than 2^32.
void carry(Digits& digits) {
  for (std::size_t k = 0; k + 1 < digits.size(); ++k) {
    digits[k + 1] += digits[k] >> 32;
    digits[k] &= 0xffffffff;
  }
}

// Adds a finite number of at least 0: its 53 bits, shifted, lie in three digits.
void add(Digits& digits, double x) {
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const auto exponent = static_cast<int>(bits >> 52 & 0x7ff);  // a NaN may bear a sign
  const std::uint64_t fraction = bits & ((std::uint64_t{1} << 52) - 1);
  const std::uint64_t mantissa = exponent ? fraction | std::uint64_t{1} << 52 : fraction;
  const int position = exponent ? exponent - 1 : 0;  // of the last bit, in 2^-1074
  const int shift = position % 32;
  const std::uint64_t low = (mantissa & 0xffffffff) << shift, high = (mantissa >> 32) << shift;
  std::int64_t* digit = digits.data() + position / 32;
  digit[0] += low & 0xffffffff;
  digit[1] += (low >> 32) + (high & 0xffffffff);
  digit[2] += high >> 32;
}

float value_of(float x) { return x; }
double value_of(double x) { return x; }

struct Bfloat16 {
  std::uint16_t half;
};
float value_of(Bfloat16 x) { return float_of(top_half(x.half)); }

struct Float16 {
  std::uint16_t half;
};
float value_of(Float16 x) { return from_float16(x.half); }

template <class T>
void add_squares(Digits& digits, const Row& row, double scale, std::int64_t begin,
                 std::int64_t end) {
  const T* g = static_cast<const T*>(row.arrays[grad]);
  const auto factor = static_cast<decltype(value_of(T{}))>(scale);
  constexpr std::int64_t most = 1 << 28;  // digits of 64 bits hold so many without a carry
  for (std::int64_t i = begin; i < end; ++i) {
    const double x = value_of(g[i]) * factor;
    add(digits, x * x);
    if ((i - begin) % most == most - 1) carry(digits);
  }
}

}  // namespace

Estimate square_sum(const Row* rows, std::int64_t row_count, double scale, SquareSum kernel,
                    int threads, std::int64_t grain) {
  Pieces pieces(rows, row_count, grain, threads);
  Pair total;
  std::mutex mutex;
  run(pieces.threads() - 1, [&] {
    Pair mine;
    pieces.each([&](const Row& row, std::int64_t begin, std::int64_t end) {
      mine.add(kernel(row, scale, begin, end));
    });
    const std::lock_guard<std::mutex> lock(mutex);
    total.add(mine.high);
    total.low += mine.low;
  });
  // A sum that is not finite has made the second half NaN.
  const double sum = std::isfinite(total.high) ? total.high + total.low : total.high;
  // Twice the roundings that an element can go through, for those of the pairs and of this line.
  const double roundings = 2.0 * (80 + static_cast<double>(pieces.most() / square_sum_block));
  return {sum, sum * (roundings * 0x1p-53)};  // in this order it overflows only where the sum does
}

Digits exact_square_sum(const Row* rows, std::int64_t row_count, double scale, int threads,
                        std::int64_t grain) {
  Pieces pieces(rows, row_count, grain, threads);
  Digits total{};
  std::mutex mutex;
  run(pieces.threads() - 1, [&] {
    Digits mine{};
    pieces.each([&](const Row& row, std::int64_t begin, std::int64_t end) {
      switch (row.types.grad) {
        case Dtype::float64:
          add_squares<double>(mine, row, scale, begin, end);
          break;
        case Dtype::float32:
          add_squares<float>(mine, row, scale, begin, end);
          break;
        case Dtype::bfloat16:
          add_squares<Bfloat16>(mine, row, scale, begin, end);
          break;
        case Dtype::float16:
          add_squares<Float16>(mine, row, scale, begin, end);
      }
      carry(mine);
    });
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t k = 0; k < total.size(); ++k) total[k] += mine[k];
    carry(total);
  });
  return total;
}

}  // namespace adamas
