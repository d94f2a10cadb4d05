// The kernel's exp, log, log1p and tanh, for arrays. tests/kernel_bits.py compares them with tests/mirror.py.
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
namespace {
#include "vec.h"

// Calls f with each vector of the arrays a and b and stores the two vectors that it changes. n must be a multiple of 16.
template <class A, class F> void each(A* a, A* b, int64_t n, F f) {
  for (int64_t i = 0; i < n; i += Lanes<A>::W) {
    V<A> x = read(a + i), y = read(b + i);
    f(x, y);
    store(a + i, x);
    store(b + i, y);
  }
}
template <class A> void exps_of(A* x, A* n, int64_t count) {  // n: the power of two that is divided off
  typedef Exp<A> K;
  each(x, n, count, [](V<A>& v, V<A>& by) { exps<A, 1>(&v, K::magic - by, by * (1 / K::log2e) - K::reach); });
}
template <class A> void tanhs_of(A* x, A* slope, int64_t count) {
  each(x, slope, count, [](V<A>& v, V<A>& by) { tanh_and_slope<A, 1>(&v, &by); });
}
}  // namespace

extern "C" {
void exps_float32(float* x, float* n, int64_t count) { exps_of(x, n, count); }
void exps_float64(double* x, double* n, int64_t count) { exps_of(x, n, count); }
void tanh_float32(float* x, float* slope, int64_t count) { tanhs_of(x, slope, count); }
void tanh_float64(double* x, double* slope, int64_t count) { tanhs_of(x, slope, count); }
void exp_float64(double* x, double* unused, int64_t count) {
  each(x, unused, count, [](V<double>& v, V<double>&) { v = exp(v); });
}
void log_float64(double* x, double* unused, int64_t count) {
  each(x, unused, count, [](V<double>& v, V<double>&) { v = log(v); });
}
void log1p_float64(double* x, double* inverse, int64_t count) {
  each(x, inverse, count, [](V<double>& v, V<double>& by) { v = log1p(v, by); });
}
}
