// Prints the largest errors of the kernel's exps, exp, log and log1p, in units of the roundoff. The bounds in proof/bounds.py assume them.
#include <stdint.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
namespace {
#include "vec.h"
}

template <class F> double off(double got, long double want, F unit) { return want == 0 ? 0 : (double)(fabsl(got - want) / fabsl(want) / unit); }

int main() {
  const int F = Lanes<float>::W, D = Lanes<double>::W;
  double single = 0, worst[3] = {0, 0, 0};
  float in[F]; int have = 0;
  for (uint32_t bits = 0x80000000u;; bits += 211) {     // floats from -0 to -103.5, the arguments for which the kernel calls it
    float x; std::memcpy(&x, &bits, 4);
    if (!(x >= -103.5f)) break;
    in[have++] = x;
    if (have < F) continue;
    V<float> v = read(in), magic = splat(Exp<float>::magic), low = splat(-Exp<float>::reach);
    exps<float, 1>(&v, magic, low);
    float out[F]; store(out, v);
    for (int i = 0; i < F; i++) single = std::max(single, off(out[i], expl(in[i]) * 0x1p64L, 0x1p-24L));
    have = 0;
  }
  std::mt19937_64 g(1); std::uniform_real_distribution<double> far(-700, 0); std::normal_distribution<double> near(0, 1);
  for (int n = 0; n < 400000 / D; n++) {
    double a[3][D], out[D];
    for (int i = 0; i < D; i++) {
      a[0][i] = n % 2 ? far(g) : -near(g) * std::exp(-20 * near(g));
      if (a[0][i] > 0) a[0][i] = -a[0][i];
      a[0][i] = std::max(a[0][i], -700.0);
      a[1][i] = n % 2 ? 1 + std::fabs(near(g)) * (n % 4 == 1 ? 20000 : 0.5) : std::exp(-40 * std::fabs(near(g)));
      a[2][i] = n % 2 ? std::fabs(near(g)) : std::exp(-40 * std::fabs(near(g)));
    }
    store(out, exp(read(a[0])));   for (int i = 0; i < D; i++) worst[0] = std::max(worst[0], off(out[i], expl(a[0][i]), 0x1p-53L));
    store(out, log(read(a[1])));   for (int i = 0; i < D; i++) worst[1] = std::max(worst[1], off(out[i], logl(a[1][i]), 0x1p-53L));
    store(out, log1p(read(a[2]), 1 / (1 + read(a[2])))); for (int i = 0; i < D; i++) worst[2] = std::max(worst[2], off(out[i], log1pl(a[2][i]), 0x1p-53L));
  }
  std::printf("%.3f %.3f %.3f %.3f\n", single, worst[0], worst[1], worst[2]);
}
