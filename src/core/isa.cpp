#include "isa.hpp"

namespace adamas {

#define ADAMAS_KERNELS(isa)                                                                      \
  namespace isa {                                                                                \
  void kernel(const Row&, const double*, std::int64_t begin, std::int64_t end, Measures* found); \
  double square_sum(const Row&, double scale, std::int64_t begin, std::int64_t end);             \
  }

ADAMAS_KERNELS(baseline)
#ifdef ADAMAS_X86_64
ADAMAS_KERNELS(x86_64_v3)
ADAMAS_KERNELS(x86_64_v4)

// The extensions that tell processors of x86-64-v3 and -v4 from others; the rest of each level
// comes with them.
static bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("popcnt");
}
static bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
#endif

static std::vector<Isa> detect() {
  std::vector<Isa> found;
#ifdef ADAMAS_X86_64
  __builtin_cpu_init();
  if (has_v4()) found.push_back({"x86-64-v4", x86_64_v4::kernel, x86_64_v4::square_sum});
  if (has_v3()) found.push_back({"x86-64-v3", x86_64_v3::kernel, x86_64_v3::square_sum});
#endif
  found.push_back({"baseline", baseline::kernel, baseline::square_sum});
  return found;
}

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = detect();
  return found;
}

}  // namespace adamas
