// The update rules in C++: those of src/adamas/equations.py, in the same order, each in two halves.
//
// Internal linkage throughout: this header is compiled once for each instruction set, and a shared
// inline function would let the linker put AVX-512 code where an older processor runs it. For the
// same reason no standard header.
#pragma once

#include "table.hpp"

namespace adamas {
namespace {

// A rule, and which of its averages m, v and w there are.
template <Rule rule_, bool m_, bool v_, bool w_>
struct Kind {
  static constexpr Rule rule = rule_;
  static constexpr bool m = m_, v = v_, w = w_;
  // Whether a codec can keep m and v: both of Adam's, else one.
  static constexpr bool coded = rule == Rule::adam ? m && v : m != v;
};

// Elements, and where each average of theirs is, null where there is none.
template <class T>
struct Place {
  T* p;
  const T* g;
  T *m, *v, *w;
};

// The place n elements later.
template <class Has, class T>
Place<T> after(const Place<T>& at, std::int64_t n) {
  return {at.p + n, at.g + n, Has::m ? at.m + n : nullptr, Has::v ? at.v + n : nullptr,
          Has::w ? at.w + n : nullptr};
}

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

template <class T>
inline T gradient(T p, T grad, const Coefficients<T>& c) {
  T g = grad * c.unscale * c.clip;
  g = c.maximize != 0 ? -g : g;
  return c.l2 != 0 ? g + c.l2 * p : g;
}

// A rule is in two halves, `average` and `move`, so that what lies between them need not wait for a
// square root: the first renews the averages and finds what the second divides by.
template <class Has, class T>
inline T average(T p, T grad, T& m, T& v, T& w, const Coefficients<T>& c) {
  const T g = gradient(p, grad, c);
  if constexpr (Has::rule == Rule::adam) {
    m = c.beta1 * m + c.one_minus_beta1 * g;
    v = c.beta2 * v + c.one_minus_beta2 * (g * g);
    if (Has::w) w = maximum(w, v);
    return sqrt(Has::w ? w : v) * c.denom_scale + c.eps;
  } else if constexpr (Has::rule == Rule::sgd) {
    if (Has::m) m = c.beta1 * m + c.one_minus_beta1 * g;
    return 1;  // which nothing is divided by
  } else {
    T s = v = c.beta2 * v + c.one_minus_beta2 * (g * g);
    if (Has::m) {
      m = c.beta2 * m + c.one_minus_beta2 * g;
      s = maximum(v - m * m, T(0));
    }
    return sqrt(s) + c.eps;
  }
}

// `w` is RMSprop's momentum.
template <class Has, class T>
inline void move(T& p, T grad, T m, T d, T& w, const Coefficients<T>& c) {
  if constexpr (Has::rule == Rule::adam) {
    T u = c.step_size * m / d;
    u = c.decay != 0 ? u + c.decay * p : u;
    p = p - u;
    return;
  }
  const T g = gradient(p, grad, c);
  T u = g;
  if constexpr (Has::rule == Rule::sgd) {
    if (Has::m) u = c.beta2 != 0 ? g + c.beta2 * m : m;
  } else {
    u = g / d;
    if (Has::w) u = w = c.beta1 * w + u;
  }
  p = p - c.step_size * u;
}

// The rule itself, on an element; averages that there are none of are left alone.
template <class Has, class T>
inline void apply(T& p, T grad, T& m, T& v, T& w, const Coefficients<T>& c) {
  const T d = average<Has>(p, grad, m, v, w, c);
  move<Has>(p, grad, m, d, w, c);
}

}  // namespace
}  // namespace adamas
