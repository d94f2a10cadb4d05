// Vectors of the instruction set for which this file is compiled, conversions of the storage types, exp, tanh, log and log1p, and sums.
// kernel.cpp alone includes it, inside its anonymous namespace, so that each object file has its own copy of every function.
//
// It assumes a compiler with vector types of GCC (gcc or clang), -ffp-contract=off, and the rounding mode to nearest even. All functions
// give the same bits for every instruction set: they use no function of libm but fma, which is exact, and call fma wherever a product and a
// sum are to be rounded once.
#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX2__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define ALWAYS inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of a lambda
#define ALONE __attribute__((noinline))         // one copy in the code instead of one for each caller
#define RARE __attribute__((noinline, cold))    // as ALONE, and compiled to be small

// Virtual vectors have 64 bytes for every instruction set and consist of U native vectors, so that sums have the same order everywhere. Four
// are computed together, a group, to hide the latency of the instructions.
template <class A> struct Lanes {  // W lanes in a native vector, L in a virtual one
  typedef A V __attribute__((vector_size(WIDTH)));
  static constexpr int W = WIDTH / sizeof(A), L = 64 / sizeof(A), U = L / W;
};
template <class A> using V = typename Lanes<A>::V;
typedef uint32_t V32 __attribute__((vector_size(WIDTH)));
typedef uint64_t V64 __attribute__((vector_size(WIDTH)));
typedef float VHalf __attribute__((vector_size(WIDTH / 2)));

template <class To, class From> ALWAYS To bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "");
  To t;
  __builtin_memcpy(&t, &v, sizeof t);
  return t;
}
template <class A> ALWAYS V<A> splat(A a) { return a - V<A>{}; }
template <class A> ALWAYS V<A> read(const A* p) {
  V<A> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class A> ALWAYS void store(A* p, V<A> v) { __builtin_memcpy(p, &v, sizeof v); }
template <class X> ALWAYS X least(X a, X b) { return a < b ? a : b; }

template <class A> ALWAYS V<A> fma(V<A> a, V<A> b, V<A> c);  // a b + c, rounded once on every processor, so that the bits agree
#if defined(__AVX512F__)
template <> ALWAYS V<float> fma<float>(V<float> a, V<float> b, V<float> c) {
  return (V<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
template <> ALWAYS V<double> fma<double>(V<double> a, V<double> b, V<double> c) {
  return (V<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
template <> ALWAYS V<float> fma<float>(V<float> a, V<float> b, V<float> c) {
  return (V<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
template <> ALWAYS V<double> fma<double>(V<double> a, V<double> b, V<double> c) {
  return (V<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#elif defined(__aarch64__)
template <> ALWAYS V<float> fma<float>(V<float> a, V<float> b, V<float> c) {
  return (V<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
template <> ALWAYS V<double> fma<double>(V<double> a, V<double> b, V<double> c) {
  return (V<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else  // without such an instruction: the slow function of libm. In each place, these instructions would be most of the code
template <> ALONE V<double> fma<double>(V<double> a, V<double> b, V<double> c) {
  for (int i = 0; i < 2; i++) a[i] = __builtin_fma(a[i], b[i], c[i]);
  return a;
}
template <> ALONE V<float> fma<float>(V<float> a, V<float> b, V<float> c) {
  // In double the product is exact. The sum is rounded to odd, so that the rounding to float gives the correctly rounded result.
  typedef double D __attribute__((vector_size(32)));
  typedef int64_t I __attribute__((vector_size(32)));
  D p = __builtin_convertvector(a, D) * __builtin_convertvector(b, D), q = __builtin_convertvector(c, D), s = p + q, v = s - p;
  D e = (p - (s - v)) + (q - v);  // s + e = p + q, exactly
  I i = (I)s, even = (i & 1) - 1, inexact = (I)(e < 0) | (I)(e > 0), away = (I)(e > 0) ^ (I)(s > 0);
  return __builtin_convertvector((D)(i + (even & inexact & (away | 1))), V<float>);
}
#endif

template <class X> ALWAYS void past_caches(void* p, X v) {  // p aligned to the vector
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return _mm512_stream_si512((__m512i*)p, bits<__m512i>(v));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof v == 32) return _mm256_stream_si256((__m256i*)p, bits<__m256i>(v));
#endif
#if defined(__SSE2__)
  if constexpr (sizeof v == 16) return _mm_stream_si128((__m128i*)p, bits<__m128i>(v));
#endif
  __builtin_memcpy(p, &v, sizeof v);
}
ALWAYS void fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Storage types. S is the type in memory, A the type of the computation, and Slot an unsigned integer with the size of A that holds an S.
// load reads a vector of values from adjacent elements. A vector of memory holds PER vectors of values, which pack converts. widen and
// narrow convert between slots and values. All round to nearest even.
template <class X> struct plain {
  typedef X A;
  typedef X S;
  typedef X Slot;
  static constexpr int PER = 1;
  static ALWAYS V<A> widen(V<A> v) { return v; }
  static ALWAYS V<A> narrow(V<A> v) { return v; }
  static ALWAYS V<A> load(const S* p) { return read(p); }
  static ALWAYS V<A> pack(const V<A>* v) { return *v; }
  static constexpr S low = -(X)__builtin_inff();
};
typedef plain<float> f32;
typedef plain<double> f64;
typedef uint16_t Halves __attribute__((vector_size(WIDTH / 2)));
typedef uint16_t Whole16 __attribute__((vector_size(WIDTH)));
ALWAYS V32 slots_of(const uint16_t* p) {
#if defined(__AVX512F__)
  return (V32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (V32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#else
  Halves b;
  __builtin_memcpy(&b, p, sizeof b);
  return __builtin_convertvector(b, V32);
#endif
}
ALWAYS Whole16 joined(V32 a, V32 b) {  // the slots of two vectors
#if defined(__AVX512F__)
  return (Whole16)_mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), _mm512_packus_epi32((__m512i)a, (__m512i)b));
#elif defined(__AVX2__)
  return (Whole16)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)a, (__m256i)b), 0xd8);
#else
  struct {
    Halves a, b;
  } both = {__builtin_convertvector(a, Halves), __builtin_convertvector(b, Halves)};
  return bits<Whole16>(both);
#endif
}
template <class Half> struct half {
  typedef float A;
  typedef uint16_t S;
  typedef uint32_t Slot;
  static constexpr int PER = 2;
  static ALWAYS V<float> load(const S* p) { return Half::widen(slots_of(p)); }
  static ALWAYS Whole16 pack(const V<A>* v) { return joined(Half::narrow(v[0]), Half::narrow(v[1])); }
};
struct bf16 : half<bf16> {
  static ALWAYS V<float> widen(V32 b) { return bits<V<float>>(b << 16); }
  static ALWAYS V32 narrow(V<float> v) {
    V32 b = bits<V32>(v), round = b + 0x7fff + (b >> 16 & 1);
    return (v == v ? round : b | 0x400000) >> 16;
  }
  static constexpr S low = 0xff80;
};
struct f16 : half<f16> {
#if defined(__AVX512F__)
  static ALWAYS V<float> load(const S* p) { return (V<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static ALWAYS Whole16 pack(const V<A>* v) {
    const __m256i a = _mm512_cvtps_ph((__m512)v[0], 0), b = _mm512_cvtps_ph((__m512)v[1], 0);
    return (Whole16)_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
  }
#elif defined(__F16C__)
  static ALWAYS V<float> load(const S* p) { return (V<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static ALWAYS Whole16 pack(const V<A>* v) {
    return (Whole16)_mm256_set_m128i(_mm256_cvtps_ph((__m256)v[1], 0), _mm256_cvtps_ph((__m256)v[0], 0));
  }
#endif
  static ALWAYS V<float> widen(V32 b) {
    typedef int32_t Ints __attribute__((vector_size(WIDTH)));
    const V32 sign = (b & 0x8000) << 16, mag = b & 0x7fff, up = mag < 0x7c00 ? V32{} + (112u << 23) : V32{} + (224u << 23);
    const V<float> tiny = __builtin_convertvector((Ints)mag, V<float>) * 0x1p-24f;  // no float is subnormal, which would be slow
    return bits<V<float>>(sign | (mag < 0x400 ? bits<V32>(tiny) : (mag << 13) + up));
  }
  static ALWAYS V32 narrow(V<float> v) {
    V32 b = bits<V32>(v), sign = b & 0x80000000, mag = b ^ sign;
    V32 normal = (mag + 0xfff + (mag >> 13 & 1) - (112u << 23)) >> 13;
    V32 tiny = bits<V32>(bits<V<float>>(mag) + 0.5f) - bits<uint32_t>(0.5f);  // the addition rounds to multiples of 2^-24
    V32 h = mag < 113u << 23 ? tiny : normal;
    h = mag >= 0x477ff000 ? 0x7c00 - V32{} : h;
    h = mag > 0x7f800000 ? mag >> 13 | 0x7e00 : h;
    return (h & 0x7fff) | sign >> 16;
  }
  static constexpr S low = 0xfc00;
};

// Constants of e^x = 2^n e^r, where x = n ln 2 + r. Exponentials are computed multiplied by `lift`, a power of two, so that none is
// subnormal, which would be slow and inexact. e^-reach is 0 in the type. If |max| >= big = 2 reach, then z - max is exact wherever it is at
// least -reach (Sterbenz's lemma).
template <class A> struct Exp;
template <> struct Exp<float> {
  typedef V32 I;
  static constexpr int mantissa = 23, degree = 6;
  static constexpr float log2e = 0x1.715476p0f, ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f, reach = 104, big = 208;
  static constexpr float magic = 0x1.8p23f + 127 + 64, lift = 0x1p64f, bias = 0x1.8p23f + 127;
  static constexpr float c[] = {0x1.6a2434p-10f, 0x1.1239e2p-7f, 0x1.5558f2p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f, 1, 1};
};
template <> struct Exp<double> {
  typedef V64 I;
  static constexpr int mantissa = 52, degree = 11;
  static constexpr double log2e = 0x1.71547652b82fep0, ln2_hi = 0x1.62e42fefp-1, ln2_lo = 0x1.473de6af278edp-34, reach = 746, big = 1492;
  static constexpr double magic = 0x1.8p52 + 1023 + 128, lift = 0x1p128, bias = 0x1.8p52 + 1023;
  static constexpr double c[] = {0x1.ad7f6f0799ee2p-26,
                                 0x1.28ad72cc30daap-22,
                                 0x1.71df2552390c2p-19,
                                 0x1.a0199a0c677acp-16,
                                 0x1.a01a012a57b51p-13,
                                 0x1.6c16c1842a11dp-10,
                                 0x1.1111111127be5p-7,
                                 0x1.555555555087cp-5,
                                 0x1.55555555554fap-3,
                                 0x1.000000000000ap-1,
                                 1,
                                 1};
};

// The shift of the exponentials of a row or block whose largest logit is m = scale top: e^(scale (z - sub) - n ln 2). Where the scale is 1 and
// |m| is small, nothing is subtracted from z and the shift is a power of two, so that nothing is rounded. Where |m| is large, z - top is exact
// wherever the exponential is not 0, even if m or z - top is beyond the range of the type. With a scale the product is rounded, which costs
// least digits if it is that of the difference. m - scale z is rest - scale (z - sub).
template <class A> struct Shift {
  V<A> sub, n, rest, magic, low;
  ALWAYS Shift(V<A> top, A scale) {
    typedef Exp<A> K;
    const V<A> zero = {}, one = splat<A>(1);
    V<A> far = scale == 1 ? ((top < 0 ? -top : top) < K::big ? zero : one) : one, nothing = top == -(A)__builtin_inff() ? one : zero;
    sub = far > 0 ? (nothing > 0 ? zero : top) : zero;
    n = far > 0 ? zero : fma<A>(top, splat<A>(K::log2e), splat<A>(K::magic)) - K::magic;
    rest = far > 0 ? zero : top;
    magic = K::magic - n;
    low = rest - K::reach;
  }
};

// Computes x := lift e^(x - shift) for N vectors together. NaN stays NaN. With `cut`, the result is set to 0 below -reach; a tiny value
// would underflow later.
template <class A, int N, bool cut = true> ALWAYS void exps(V<A>* x, V<A> magic, V<A> low) {
  typedef Exp<A> K;
  V<A> t[N], r[N], q[N];
  for (int i = 0; i < N; i++) t[i] = fma<A>(x[i], splat<A>(K::log2e), magic);  // round(x / ln 2) - n, in the low bits
  for (int i = 0; i < N; i++) q[i] = t[i] - magic;
  for (int i = 0; i < N; i++) r[i] = fma<A>(q[i], splat<A>(-K::ln2_hi), x[i]);
  for (int i = 0; i < N; i++) r[i] = fma<A>(q[i], splat<A>(-K::ln2_lo), r[i]);
  for (int i = 0; i < N; i++) q[i] = splat<A>(K::c[0]);
  for (int c = 1; c <= K::degree; c++)
    for (int i = 0; i < N; i++) q[i] = fma<A>(q[i], r[i], splat<A>(K::c[c]));
  for (int i = 0; i < N; i++) q[i] = q[i] * bits<V<A>>(bits<typename K::I>(t[i]) << K::mantissa);
  for (int i = 0; i < N; i++) x[i] = cut && x[i] < low ? V<A>{} : q[i];
}
// Whether an entry of N vectors is above the limit.
template <class A, int N> ALWAYS bool any_above(const V<A>* v, A limit) {
#if defined(__AVX512F__)
  uint32_t any = 0;
  for (int i = 0; i < N; i++)
    if constexpr (sizeof(A) == 4)
      any |= _mm512_cmp_ps_mask((__m512)v[i], (__m512)splat<A>(limit), _CMP_GT_OQ);
    else
      any |= _mm512_cmp_pd_mask((__m512d)v[i], (__m512d)splat<A>(limit), _CMP_GT_OQ);
  return any;
#else
  auto above = v[0] > limit;
  for (int i = 1; i < N; i++) above |= v[i] > limit;
  const V64 parts = bits<V64>(above);
  uint64_t any = 0;
  for (int i = 0; i < WIDTH / 8; i++) any |= parts[i];
  return any;
#endif
}

// Constants of tanh. If x^2 <= near, tanh x = x + x^3 c(x^2), with a polynomial c that is exact to 0.2 units. Beyond far, e^(-2x) is
// computed as 0.
template <class A> struct Tanh;
template <> struct Tanh<float> {
  static constexpr int degree = 5;
  static constexpr float near = 0.765625, far = 44;
  static constexpr float c[] = {0x1.67656ep-10f, -0x1.caf6f8p-8f, 0x1.58581cp-6f, -0x1.b86a4p-5f, 0x1.1104b4p-3f, -0x1.555518p-2f};
  static ALWAYS V<float> twice_inverse(V<float> w) {  // 2 / (1 + w) for w < 0.1738: exact to 2^-12.9, and twice the digits after a step
    const V<float> half = fma<float>(w, splat(0.5f), splat(0.5f));
    V<float> d = fma<float>(fma<float>(splat(0x1.90abep0f), w, splat(-0x1.f9205cp0f)), w, splat(0x1.ffef2cp0f));
    return fma<float>(d, fma<float>(-half, d, splat(1.0f)), d);
  }
};
template <> struct Tanh<double> {
  static constexpr int degree = 9;
  static constexpr double near = 0.25, far = 354.5;
  static constexpr double c[] = {0x1.dc83856c74dfcp-15, -0x1.c8d5f6b4dc2f0p-13, 0x1.31d1a60fef032p-11, -0x1.7d49273e4696bp-10,
                                 0x1.d6cdf95854d1ep-9,  -0x1.226e163b9cde6p-7,  0x1.664f47b4b0b1cp-6,  -0x1.ba1ba1b709ffbp-5,
                                 0x1.111111110e2a2p-3,  -0x1.5555555555537p-2};
  static ALWAYS V<double> twice_inverse(V<double> w) { return 2 / (1 + w); }
};

// Computes x := tanh x and slope := 1 - tanh^2 x of N vectors. Near 0 it is x and a polynomial. Elsewhere tanh and the slope are 1 - h and h d
// with d = 2 / (1 + w), h = w d and w = e^(-2|x|), so that nothing cancels; that is left out if no entry needs it. Measured: tanh has 1.4 ULP
// (float64: 3.1) and the slope 5.1.
template <class A, int N> ALWAYS void tanh_and_slope(V<A>* x, V<A>* slope) {
  typedef Exp<A> K;
  typedef Tanh<A> C;
  const V<A> one = splat<A>(1);
  V<A> given[N], square[N], q[N];
  for (int i = 0; i < N; i++) given[i] = x[i];
  for (int i = 0; i < N; i++) square[i] = given[i] * given[i];
  for (int i = 0; i < N; i++) q[i] = splat(C::c[0]);
  for (int c = 1; c <= C::degree; c++)
    for (int i = 0; i < N; i++) q[i] = fma<A>(q[i], square[i], splat(C::c[c]));
  for (int i = 0; i < N; i++) q[i] = q[i] * square[i];
  for (int i = 0; i < N; i++) x[i] = fma<A>(x[i], q[i], x[i]);
  for (int i = 0; i < N; i++) slope[i] = fma<A>(-x[i], x[i], one);
  if (__builtin_expect(!any_above<A, N>(square, C::near), 1)) return;  // most logits are smaller than the cap
  V<A> t[N], r[N], w[N], d[N];
  for (int i = 0; i < N; i++) {
    const V<A> size = given[i] < 0 ? -given[i] : given[i];
    r[i] = -2 * (size > C::far ? splat(C::far) : size);
  }
  for (int i = 0; i < N; i++) t[i] = fma<A>(r[i], splat(K::log2e), splat(K::bias));
  for (int i = 0; i < N; i++) q[i] = t[i] - K::bias;
  for (int i = 0; i < N; i++) r[i] = fma<A>(q[i], splat(-K::ln2_hi), r[i]);
  for (int i = 0; i < N; i++) r[i] = fma<A>(q[i], splat(-K::ln2_lo), r[i]);
  for (int i = 0; i < N; i++) q[i] = splat(K::c[0]);
  for (int c = 1; c <= K::degree; c++)
    for (int i = 0; i < N; i++) q[i] = fma<A>(q[i], r[i], splat(K::c[c]));
  for (int i = 0; i < N; i++) w[i] = q[i] * bits<V<A>>(bits<typename K::I>(t[i]) << K::mantissa);
  for (int i = 0; i < N; i++) d[i] = C::twice_inverse(w[i]);
  for (int i = 0; i < N; i++) {
    const V<A> h = w[i] * d[i], tanh = 1 - h;
    x[i] = square[i] > C::near ? (given[i] < 0 ? -tanh : tanh) : x[i];
    slope[i] = square[i] > C::near ? h * d[i] : slope[i];
  }
}

ALWAYS V<double> exp(V<double> x) {  // for x <= 40
  exps<double, 1>(&x, splat(Exp<double>::magic), splat(-Exp<double>::reach));
  return x * (1 / Exp<double>::lift);
}
ALWAYS V<double> log(V<double> x) {                   // the algorithm of fdlibm; x is normal, or 0, which gives -inf
  V64 k = (bits<V64>(x) + 0x00195f619980c433) >> 52;  // the exponent, such that the mantissa is in [sqrt 1/2, sqrt 2)
  V<double> n = bits<V<double>>(k + 0x4330000000000000) - (0x1p52 + 1024);
  V<double> u = bits<V<double>>(bits<V64>(x) - (k << 52) + (1024ull << 52)) - 1;
  V<double> s = u / (u + 2), z = s * s, h = 0.5 * u * u;
  constexpr double c[] = {0x1.2f112df3e5244p-3, 0x1.39a09d078c69fp-3, 0x1.7466496cb03dep-3, 0x1.c71c51d8e78afp-3,
                          0x1.2492494229359p-2, 0x1.999999997fa04p-2, 0x1.5555555555593p-1};
  V<double> q = splat(c[0]);
  for (int i = 1; i < 7; i++) q = fma<double>(q, z, splat(c[i]));
  V<double> y = n * 0x1.62e42fee00000p-1 - ((h - (s * (h + z * q) + n * 0x1.a39ef35793c76p-33)) - u);
  return x == 0 ? splat(-__builtin_inf()) : x < __builtin_inf() ? y : x;
}
// log(1 + x) for x >= 0, where `inverse` is 1 / (1 + x), which the caller has anyway. The second term corrects the rounding of 1 + x.
ALWAYS V<double> log1p(V<double> x, V<double> inverse) {
  const V<double> u = 1 + x;
  return fma<double>(x - (u - 1), inverse, log(u));
}

#if defined(__AVX512F__)  // gcc 12 compiles the general form to eight instructions
ALWAYS V<double> widen(VHalf v) { return (V<double>)_mm512_cvtps_pd((__m256)v); }
#elif defined(__AVX2__)
ALWAYS V<double> widen(VHalf v) { return (V<double>)_mm256_cvtps_pd((__m128)v); }
#else
ALWAYS V<double> widen(VHalf v) { return __builtin_convertvector(v, V<double>); }
#endif

// Sums with one float64 for each virtual lane.
template <class A> struct Sum {
  static constexpr int K = sizeof(A) == 8 ? 1 : 2;
  V<double> at[Lanes<A>::U * K] = {};
  ALWAYS void add(int u, V<A> v) {
    if constexpr (K == 1)
      at[u] += v;
    else {
      struct Two {
        VHalf low, high;
      } h = bits<Two>(v);
      at[2 * u] += widen(h.low);
      at[2 * u + 1] += widen(h.high);
    }
  }
  ALWAYS void add(int u, const V<A>* v) { add(u, (v[0] + v[1]) + (v[2] + v[3])); }
  ALWAYS void add_products(int u, const V<A>* v, const V<A>* w) {
    add(u, fma<A>(v[1], w[1], v[0] * w[0]) + fma<A>(v[3], w[3], v[2] * w[2]));
  }
  ALWAYS void lanes(double* out) const {
    for (int i = 0; i < Lanes<A>::U * K; i++) store(out + i * Lanes<double>::W, at[i]);
  }
  ALWAYS double total() const {  // adds up the lanes in a fixed order, as a tree
    double a[Lanes<A>::L];
    lanes(a);
    for (int w = Lanes<A>::L / 2; w; w /= 2)
      for (int i = 0; i < w; i++) a[i] += a[i + w];
    return a[0];
  }
};
