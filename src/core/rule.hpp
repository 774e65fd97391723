// The update rules in C++: src/adamas/equations.py, name for name and in the same order.
//
// Internal linkage throughout: this header is compiled once for each instruction set, and a shared
// inline function would let the linker put AVX-512 code where an older processor runs it. For the
// same reason no standard header.
#pragma once

namespace adamas {
namespace {

// The order is that of hyper.Coefficients; there it arrives as float64 and already rounded to T.
template <class T>
struct Coefficients {
  T beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, denom_scale, eps, decay, l2,
      maximize, unscale, clip;
};

// The same where these terms are off anyway, and the compiler shall know it.
template <class T>
Coefficients<T> without_extras(Coefficients<T> c) {
  c.l2 = c.maximize = 0;
  c.unscale = c.clip = 1;
  return c;
}

inline float sqrt(float x) { return __builtin_sqrtf(x); }
inline double sqrt(double x) { return __builtin_sqrt(x); }

template <class T>
inline T maximum(T a, T b) {  // keeps NaN, as numpy.maximum does
  return a >= b || a != a ? a : b;
}

template <bool amsgrad, class T>
inline void adam(T& p, T grad, T& m, T& v, T& v_max, const Coefficients<T>& c) {
  T g = grad * c.unscale * c.clip;
  g = c.maximize != 0 ? -g : g;
  g = c.l2 != 0 ? g + c.l2 * p : g;
  m = c.beta1 * m + c.one_minus_beta1 * g;
  v = c.beta2 * v + c.one_minus_beta2 * (g * g);
  if (amsgrad) v_max = maximum(v_max, v);
  const T d = sqrt(amsgrad ? v_max : v) * c.denom_scale + c.eps;
  T u = c.step_size * m / d;
  u = c.decay != 0 ? u + c.decay * p : u;
  p = p - u;
}

}  // namespace
}  // namespace adamas
