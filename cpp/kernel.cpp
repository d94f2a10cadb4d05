// The kernel: softmax cross-entropy of the rows of a matrix, its gradient and second derivative. bind.cpp calls `run` through the table at
// the end of this file, for some rows, or for one phase of a long row. This source is compiled once for each instruction set
// (-DSOFTXENT_NAME=avx2 -mavx2 ...). Everything is in an anonymous namespace and calls no inline function of a library, so that the linker
// cannot merge a symbol with AVX-512 code into an object for other processors (a test checks this with nm).
//
// It assumes that the Job is consistent (bind.cpp checks it), that z and dz are the same memory or do not overlap, and that the scratch
// memory has scratch_bytes(cols, capped) bytes and is aligned to 64. The equations, as in formula.py:
//
//   truth_k = y [k == label] + r off_k,   loss = - sum_k truth_k log yhat_k + q/2 lse^2
//   dz_k = a yhat_k + e yhat_k (lse - z_k) - c off_k, and h + e yhat_t nll at the label t
//
// The label's column is kept apart from the others, in whose sums it counts as -inf, so that nothing cancels where yhat is near 1. Softmax
// is applied to scale x, where x is the logit in memory, or, with a softcap, to scale y, where y = tanh(unit x). y and its slope are then
// computed once, into the scratch memory. The scale multiplies differences of x or y, never a large x alone, so that no
// difference is lost in a rounding, and none is infinite, however large x and scale are. With scale = 1 nothing is rounded that would not be
// without it.
#include "kernel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace softxent {
namespace {
#include "vec.h"

#define SHAPE              \
  typedef typename T::A A; \
  typedef typename T::S S; \
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L, G = 4 * L;
constexpr double INF = __builtin_inf();

struct Tile {                    // up to TILE rows, between the pass that sums and the pass that writes dz; one double for each row
  double part[PARTS][TILE];      // the sums of the row (partials.py), but m and zt as they are before the scale
  double scale[TILE];            // a e^(m - lse): the factor of e^(z - m) in dz, if the entropy has no gradient
  double unit[TILE];             // e^(m - lse)
  double a[TILE], e[TILE];       // the coefficients of dz, and
  double over[TILE];             // lse - m, with m = scale top
  double drop[TILE], hot[TILE];  // c, and dz at the label
  double live[TILE];             // whether a coefficient is not 0
  double wide[TILE];             // what of the row is computed in wide numbers: a sum of InWide
  int64_t label[TILE];
};
struct Blocks {  // the blocks of a long row, or the only block of each row of the tile; one double for each block
  // the row's largest x; the block's, its shift (scale sub + n ln 2) and sums; the largest x while sums are merged; e^(shift - scale top)
  double *top, *m, *sub, *n, *s, *o, *d, *u, *merged_m, *down;
};
template <class A> struct Scratch {
  Tile& x;
  Blocks b;
  A* e;          // the exponentials; if lanes are rows, a panel of them
  A *y, *slope;  // with a softcap: tanh(unit z), and its slope divided by the unit
  Scratch(void* p, const Job& j) : x(*(Tile*)p) {
    const int64_t some = (TILE + blocks_of(j.cols) + 7) / 8 * 8;
    double* q = (double*)((char*)p + 4096);
    double** field[] = {&b.top, &b.m, &b.sub, &b.n, &b.s, &b.o, &b.d, &b.u, &b.merged_m, &b.down};
    for (double** f : field) {
      *f = q;
      q += some;
    }
    const int64_t size = tile_of(j.cols) * whole(j.cols);
    e = (A*)q;
    y = j.capped ? e + size : nullptr;
    slope = j.capped ? y + size : nullptr;
  }
};

ALWAYS double number(const Job& j, Number kind, int64_t i) {
  return kind < j.number_count ? j.numbers[kind * j.number_step + i * j.number_row] : 0;
}
ALWAYS int64_t label(const Job& j, int64_t i) { return j.label[i * j.label_step]; }
ALWAYS bool ignored(const Job& j, int64_t i) { return label(j, i) == IGNORED; }
ALWAYS int64_t from(int64_t t, int64_t k) { return (int64_t)((uint64_t)t - (uint64_t)k); }
ALWAYS bool within(int64_t t, int64_t n) { return (uint64_t)t < (uint64_t)n; }
template <class T> ALWAYS const typename T::S* row(const Job& j, int64_t i) { return (const typename T::S*)j.z + i * j.z_step; }
template <class O> ALWAYS const typename O::S* off(const Job& j, int64_t i) {
  return j.off ? (const typename O::S*)j.off + i * j.off_step : nullptr;
}
template <class T> ALWAYS typename T::A get(const typename T::S* p) { return T::widen(decltype(T::narrow(V<typename T::A>{})){*p})[0]; }
template <class T> ALWAYS void put(typename T::S* p, typename T::A v) { *p = T::narrow(splat(v))[0]; }

// Computes y and its slope for one logit; without a softcap, they are the logit and 1.
template <class T> ALWAYS typename T::A softcapped(const Job& j, const typename T::S* p, typename T::A& slope) {
  typedef typename T::A A;
  slope = 1;
  if (!j.capped) return get<T>(p);
  V<A> y = splat(get<T>(p)) * (A)j.unit, s;
  tanh_and_slope<A, 1>(&y, &s);
  slope = s[0];
  return y[0];
}

// Returns `size` columns of a row of n, from column k on: a pointer into the row or, if they contain the label t or the end of the row, a
// copy in which these columns are `fill`.
template <class S> ALWAYS const S* columns_without_label(const S* z, int64_t k, int64_t n, int64_t t, int size, S fill, S* copy) {
  if (__builtin_expect(k + size <= n && !within(from(t, k), size), 1)) return z + k;
  for (int64_t i = 0; i < size; i++) copy[i] = k + i < n && k + i != t ? z[k + i] : fill;  // compiled to masked vectors
  return copy;
}

// load reads native vector u of each of the 4 virtual vectors of a group of z. load_off reads it for a unit (PER virtual vectors) of off,
// in the order of the elements of T. `place` is where `load` puts column k.
template <class T> ALWAYS void load(const typename T::S* p, int u, V<typename T::A>* v) {
  SHAPE
  for (int i = 0; i < 4; i += T::PER) T::load(p + i * L + T::PER * u * W, v + i);
}
template <class T, class O> ALWAYS void load_off(const typename O::S* p, int u, V<typename T::A>* v) {
  SHAPE
  if constexpr (T::PER == O::PER)
    O::load(p + T::PER * u * W, v);
  else
    for (int w = 0; w < W; w++) {
      v[0][w] = p[2 * (u * W + w)];
      v[1][w] = p[2 * (u * W + w) + 1];
    }
}
template <class T> ALWAYS int64_t place(int64_t k) {
  constexpr int64_t L = Lanes<typename T::A>::L, unit = T::PER * L;
  return k / unit * unit + k % T::PER * L + k % unit / T::PER;
}

#include "wide.h"

// ---- one block of a row; vector lanes are columns ----

// Computes y and its slope for all columns, in the order of `load`; y is -inf at the label and after the end of the row.
template <class T> ALONE void softcap(const Job& j, const typename T::S* z, int64_t n, int64_t t, typename T::A* y, typename T::A* slope) {
  SHAPE
  for (int64_t k = 0; k < n; k += G) {
    S copy[G];
    const S* q = columns_without_label<S>(z, k, n, -1, G, 0, copy);
    EACH(u) {
      V<A> v[4], s[4];
      load<T>(q, u, v);
      FOUR(c) v[c] = v[c] * (A)j.unit;
      tanh_and_slope<A, 4>(v, s);
      FOUR(c) {
        store(y + k + c * L + u * W, v[c]);
        store(slope + k + c * L + u * W, s[c]);
      }
    }
  }
  for (int64_t k = n; k < (n + G - 1) / G * G; k++) y[place<T>(k)] = -INF;
  if (within(t, n)) y[place<T>(t)] = -INF;
}

template <class A> ALWAYS A largest_of(V<A>* m) {  // the largest entry of four vectors
  constexpr int W = Lanes<A>::W;
  A a[W];
  m[0] = m[0] > m[1] ? m[0] : m[1];
  m[2] = m[2] > m[3] ? m[2] : m[3];
  store(a, m[0] > m[2] ? m[0] : m[2]);
  for (int w = W / 2; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
  return a[0] + 0;  // turns -0 into 0, so that the order of the comparisons does not matter
}

// Returns the largest logit except the label's. With `copy_to`, copies the logits, in the order of `load`, with -inf at the label and after
// the end of the row.
template <class T, bool with_copy = false>
ALWAYS typename T::A top(const typename T::S* z, int64_t n, int64_t t, typename T::A* copy_to = nullptr) {
  SHAPE
  V<A> m[4];
  FOUR(c) m[c] = splat<A>(-INF);
  for (int64_t k = 0; k < n; k += G) {
    S copy[G];
    const S* q = columns_without_label(z, k, n, t, G, T::low, copy);
    if (with_copy)
      for (int i = 0; i < G * (int)sizeof(S); i += 64) __builtin_prefetch((const char*)(z + k + 2 * n) + i, 0, 3);
    EACH(u) {
      V<A> v[4];
      load<T>(q, u, v);
      if (with_copy)
        FOUR(c) store(copy_to + k + c * L + u * W, v[c]);
      FOUR(c) m[c] = v[c] > m[c] ? v[c] : m[c];
    }
  }
  return largest_of<A>(m);
}

// Returns the first column with the largest value; 0 if all are -inf or NaN. Stores the largest value of each block, unless `tops` is null.
template <class T> ALONE int64_t largest(const typename T::S* z, int64_t n, double* tops) {
  constexpr int64_t STEP = 512, FINE = 64;
  typename T::A most = -INF;
  int64_t at = 0;
  for (int64_t k = 0; k < n; k += STEP) {
    const typename T::A m = top<T>(z + k, least(n - k, STEP), -1);
    if (tops) tops[k / BLOCK] = k % BLOCK && tops[k / BLOCK] > m ? tops[k / BLOCK] : m;
    if (m > most) {
      most = m;
      at = k;
    }
  }
  if (most == -INF) return 0;
  while (top<T>(z + at, least(n - at, FINE), -1) != most) at += FINE;
  while (get<T>(z + at) != most) at++;
  return at;
}

// A softcap bounds the logits: |scale y| <= scale. Up to MODEST, their exponentials need no shift, so that y, slope and exponential of a
// logit are computed in one pass. They are multiplied by 2^LIFT: then all of them, and their products with a slope, are normal numbers, and
// sums of four, times 2 MODEST, are finite.
constexpr double MODEST = 40;
constexpr int LIFT = 58;
ALWAYS bool one_pass(const Job& j) { return j.capped && j.scale <= MODEST && !j.off; }
enum Keep { NOTHING, PRODUCT, EACH_OF_THEM };  // what is stored: nothing; the exponential times the slope; both, and y

template <class T, Keep keep, bool hide>
ALWAYS void softcapped_group(const typename T::S* q, typename T::A unit, typename T::A scale, const typename T::S* hidden,
                             V<typename T::A>* most, Sum<typename T::A>& s, typename T::A* y, typename T::A* slope, typename T::A* e) {
  SHAPE
  const V<A> magic = splat<A>(Exp<A>::bias + LIFT);
  EACH(u) {
    V<A> v[4], by[4];
    load<T>(q, u, v);
    FOUR(c) v[c] = v[c] * unit;
    tanh_and_slope<A, 4>(v, by);
    if (hide) {
      V<A> none[4];
      load<T>(hidden, u, none);
      FOUR(c) v[c] = v[c] + none[c];
    }
    FOUR(c) most[c] = v[c] > most[c] ? v[c] : most[c];
    if (keep == EACH_OF_THEM)
      FOUR(c) {
        store(y + c * L + u * W, v[c]);
        store(slope + c * L + u * W, by[c]);
      }
    FOUR(c) v[c] = v[c] * scale;
    exps<A, 4, hide>(v, magic, splat<A>(-2 * MODEST));
    s.add(u, v);
    if (keep == EACH_OF_THEM)
      FOUR(c) store(e + c * L + u * W, v[c]);
    if (keep == PRODUCT)
      FOUR(c) store(e + c * L + u * W, v[c] * by[c]);
  }
}

// Computes 2^LIFT e^(scale y) of a block and stores what `keep` says. Returns the sum of the former and, as `top`, the largest y.
template <class T, Keep keep>
ALONE double softcapped_exponentials(const Job& j, const typename T::S* z, int64_t n, int64_t t, typename T::A* y, typename T::A* slope,
                                     typename T::A* e, typename T::A& top, const char* out) {
  SHAPE
  const A unit = j.unit, scale = j.scale;
  Sum<A> s;
  V<A> m[4];
  FOUR(c) m[c] = splat<A>(-INF);
  for (int64_t k = 0; k < n; k += G) {
    for (int i = 0; i < G * (int)sizeof(S); i += 64) __builtin_prefetch((const char*)(z + k + n) + i, 0, 2);
    if (out)
      for (int i = 0; i < G * (int)sizeof(S); i += 64) __builtin_prefetch(out + k * sizeof(S) + i, 1, 2);
    if (__builtin_expect(k + G <= n && !within(from(t, k), G), 1)) {
      softcapped_group<T, keep, false>(z + k, unit, scale, nullptr, m, s, y + k, slope + k, e + k);
      continue;
    }
    S copy[G], hidden[G];  // 0, or -inf at the label and after the end of the row
    const S* q = columns_without_label<S>(z, k, n, -1, G, 0, copy);
    for (int64_t i = 0; i < G; i++) hidden[i] = k + i < n && k + i != t ? (S)0 : T::low;
    softcapped_group<T, keep, true>(q, unit, scale, hidden, m, s, y + k, slope + k, e + k);
  }
  top = largest_of<A>(m);
  return s.total();
}

template <class A> ALWAYS V<A> times(V<A> w, V<A> v) { return w == 0 ? V<A>{} : w * v; }  // 0 where w is 0, even if v is not finite
ALWAYS double times(double w, double v) { return w == 0 ? 0 : w * v; }

// Computes e := lift e^(scale z - shift) and returns the sum of e^(scale z - shift); with_u also the sum of e^(scale z - shift) (rest - scale
// (z - sub)), see Shift. Prefetches `next`, which is read next, and unless it is null `out`, which is written later (without that, [8192, 1000] took 30 % more
// time); both have elements of SIZE bytes.
template <class T, Op op, int SIZE, bool scaled, bool with_u>
ALWAYS double exponentials(const typename T::S* z, int64_t n, int64_t t, const Shift<typename T::A>& shift, typename T::A scale,
                           typename T::A* e, double& sum_u, const char* next, const char* out) {
  SHAPE
  Sum<A> s, su;
  for (int64_t k = 0; k < n; k += G) {
    S copy[G];
    const S* q = columns_without_label(z, k, n, t, G, T::low, copy);
    for (int i = 0; i < G * SIZE; i += 64)
      __builtin_prefetch(next + k * SIZE + i, 0, op == FORWARD || T::PER > 1 ? 2 : 3);  // into L2 or L1, whichever was faster
    if (out)
      for (int i = 0; i < G * SIZE; i += 64) __builtin_prefetch(out + k * SIZE + i, 1, 2);
    EACH(u) {
      V<A> v[4], below[4];
      load<T>(q, u, v);
      FOUR(c) v[c] = v[c] - shift.sub;
      if (with_u)
        FOUR(c) below[c] = fma<A>(splat(-scale), v[c], shift.rest);
      if (scaled)
        FOUR(c) v[c] = v[c] * scale;
      if (with_u)
        FOUR(c) below[c] = v[c] < shift.low ? V<A>{} : below[c];  // because 0 times infinity is not 0
      exps<A, 4>(v, shift.magic, shift.low);
      if (op != FORWARD)
        FOUR(c) store(e + k + c * L + u * W, v[c]);
      if (op != BACKWARD) s.add(u, v);
      if (with_u) su.add_products(u, v, below);
    }
  }
  if (with_u) sum_u = su.total() * (1 / Exp<A>::lift);
  return op == BACKWARD ? 0 : s.total() * (1 / Exp<A>::lift);
}

template <class T, Op op, int SIZE>
ALWAYS double sums(const typename T::S* z, int64_t n, int64_t t, const Shift<typename T::A> shift, typename T::A scale, typename T::A* e,
                   double& sum_u, bool with_u, const char* next, const char* out) {
  if (with_u) return exponentials<T, op, SIZE, true, true>(z, n, t, shift, scale, e, sum_u, next, out);
  if (scale != 1) return exponentials<T, op, SIZE, true, false>(z, n, t, shift, scale, e, sum_u, next, out);
  return exponentials<T, op, SIZE, false, false>(z, n, t, shift, scale, e, sum_u, next, out);
}

// Computes o := sum off and d := sum off (top - z) / 2, over the columns except the label's; z may be given as y.
template <class T, class O>
ALWAYS void dot(const typename T::S* z, const typename T::A* y, const typename O::S* w, int64_t n, int64_t t, typename T::A top, double& o,
                double& d) {
  SHAPE
  Sum<A> so, sd;
  for (int64_t k = 0; k < n; k += G) {
    S copy[G];
    typename O::S other[G];
    const S* q = columns_without_label<S>(z, k, n, -1, G, 0, copy);
    const typename O::S* p = columns_without_label<typename O::S>(w, k, n, t, G, 0, other);
    EACH(u) {
      V<A> a[4], b[4];
      for (int i = 0; i < 4; i += T::PER) load_off<T, O>(p + i * L, u, a + i);
      if (y)
        FOUR(c) b[c] = read(y + k + c * L + u * W);
      else
        load<T>(q, u, b);
      FOUR(c) b[c] = times<A>(a[c], fma<A>(splat((A)-0.5), b[c], splat(top * (A)0.5)));  // halves, because top - z may overflow
      so.add(u, a);
      sd.add(u, b);
    }
  }
  o = so.total();
  d = sd.total();
}
// Whether products in float that were added up may have overflowed or lost digits as subnormal numbers.
template <class A> ALWAYS bool are_inexact(double o, double d) {
  auto tiny = [](double x) { return x != 0 && x < 0x1p-60 && x > -0x1p-60; };
  return sizeof(A) == 4 && __builtin_expect(!(d - d == 0) || tiny(o) || tiny(d), 0);
}
// As `dot`, in double.
template <class T, class O>
ALONE void dot_in_double(const Job& j, const typename T::S* z, const typename O::S* w, int64_t n, int64_t t, double top, double& o,
                         double& d) {
  o = d = 0;
  for (int64_t k = 0; k < n; k++) {
    typename T::A slope;
    const double off = k == t ? 0 : (double)get<O>(w + k * j.off_column);
    o += off;
    d += times(off, 0.5 * top - 0.5 * softcapped<T>(j, z + k * j.z_column, slope));
  }
}

// The factor of e, of a row in each lane (X: V<double>) or of one row (double). It is divided by the lift of e and multiplied by `power`, a
// power of two, as two factors, so that no product is beyond the range, or subnormal unless the result is.
template <class A, class X> struct Scale {
  X first, last;
  ALWAYS explicit Scale(X scale, double power = 1) {
    const X zero = {}, one = zero + 1;
    const double by = power / Exp<A>::lift;
    const auto less = scale < 1 ? (scale > -1 ? one : zero) : zero;
    first = less > 0 ? scale : scale * by;
    last = less > 0 ? zero + by : one;
  }
};

// Computes dz := slope (scale e - drop off). Stores past the caches must be aligned. If a 16-bit dz is not, it is first written into the
// memory of e.
template <class T, class O, bool with_off, bool with_slope>
ALWAYS void write(typename T::A* e, double scale, double power, double drop, const typename O::S* w, const typename T::A* slope,
                  typename T::S* dz, int64_t n, bool stream, const typename T::S* next) {
  SHAPE
  constexpr int64_t per = T::PER * W, unit = T::PER * L;  // entries of dz: a vector, a unit
  const Scale<A, double> by(scale, power);
  const A first = by.first, last = by.last, minus = -drop;
  const int64_t head = stream ? -((uintptr_t)dz / sizeof(S)) % per : 0;
  const bool detour = T::PER > 1 && head;  // two elements share a slot, so a unit cannot begin anywhere
  S* to = detour ? (S*)e : dz;
  int64_t k = 0;
  auto value = [&](const typename O::S* p, int u) {
    V<A> v[T::PER], away[T::PER];
    for (int i = 0; i < T::PER; i++) v[i] = read(e + k + i * L + u * W) * first * last;
    if (with_off) {
      load_off<T, O>(p, u, away);
      for (int i = 0; i < T::PER; i++) v[i] = fma<A>(splat(minus), away[i], v[i]);
    }
    if (with_slope)
      for (int i = 0; i < T::PER; i++) v[i] = v[i] * read(slope + k + i * L + u * W);
    return T::pack(v);
  };
  auto part = [&](int64_t stop) {  // the columns up to `stop`, less than a unit
    S copy[unit];
    typename O::S other[unit];
    const typename O::S* p = with_off ? columns_without_label<typename O::S>(w, k, n, -1, unit, 0, other) : w;
    EACH(u) {
      const auto v = value(p, u);
      __builtin_memcpy(copy + u * per, &v, sizeof v);
    }
    for (int64_t i = 0; k < stop;) to[k++] = copy[i++];
  };
  if (head && !detour) part(least(head, n));
  if (stream && !detour)
    for (; k + unit <= n; k += unit)
      EACH(u) {
        if (T::PER == 1 && next) __builtin_prefetch(next + k + u * per, 0, 2);  // prefetches the next row (no gain for 16-bit types)
        past_caches(dz + k + u * per, value(w + k, u));
      }
  for (; k + unit <= n; k += unit)
    EACH(u) {
      const auto v = value(w + k, u);
      __builtin_memcpy(to + k + u * per, &v, sizeof v);
    }
  part(n);
  if (!detour) return;
  for (k = 0; k < least(head, n); k++) dz[k] = to[k];
  for (; k + per <= n; k += per) {
    V<A> v;
    __builtin_memcpy(&v, to + k, sizeof v);
    past_caches(dz + k, v);
  }
  for (; k < n; k++) dz[k] = to[k];
}

// Calls f(k, u, p) for each vector of the columns of a block, in units, and stores what it returns at dz. f may read z, y, e, v and off of
// this place: p has the unit's columns of z, off and v, or copies at the end of the row.
template <class A, class Z, class O> struct Unit {
  const Z* z;
  const O* off;
  const A* v;
};
template <class T, class O, class F>
ALWAYS void each_unit(const typename T::S* z, const typename O::S* w, const typename T::A* v, typename T::S* dz, int64_t n, bool stream,
                      F f) {
  SHAPE
  constexpr int64_t per = T::PER * W, unit = T::PER * L;
  int64_t k = 0;
  auto part = [&](int64_t stop) {  // the columns up to `stop`, less than a unit
    S copy[unit], result[unit];
    typename O::S other[unit];
    A more[unit];
    const Unit<A, S, typename O::S> p = {columns_without_label<S>(z, k, n, -1, unit, 0, copy),
                                         w ? columns_without_label<typename O::S>(w, k, n, -1, unit, 0, other) : w,
                                         v ? columns_without_label<A>(v, k, n, -1, unit, 0, more) : v};
    EACH(u) {
      const auto packed = f(k, u, p);
      __builtin_memcpy(result + u * per, &packed, sizeof packed);
    }
    for (int64_t i = 0; k < stop; k++, i++)
      if (dz) dz[k] = result[i];
  };
  const int64_t head = stream ? -((uintptr_t)dz / sizeof(S)) % per : 0;
  if (T::PER > 1 && head)
    stream = false;  // two elements share a slot, so a unit cannot begin anywhere
  else if (head)
    part(least(head, n));
  for (; k + unit <= n; k += unit) {
    const Unit<A, S, typename O::S> p = {z + k, w ? w + k : w, v ? v + k : v};
    decltype(f(k, 0, p)) packed[Lanes<A>::U];
    EACH(u) packed[u] = f(k, u, p);
    if (stream)
      EACH(u) past_caches(dz + k + u * per, packed[u]);
    else if (dz)
      __builtin_memcpy(dz + k, packed, sizeof packed);
  }
  if (k < n) part(n);
}

// Reads the values of a unit that are multiplied by scale: y, if there is a softcap, or z.
template <class T> ALWAYS void load_unit(const typename T::S* z, const typename T::A* y, int64_t k, int u, V<typename T::A>* v) {
  SHAPE
  if (y)
    for (int i = 0; i < T::PER; i++) v[i] = read(y + k + i * L + u * W);
  else
    T::load(z + T::PER * u * W, v);
}

// As `write`, with a gradient of the entropy: dz := slope (unit e (a + entropy (rest - scale (z - sub))) - drop off), see Shift.
template <class T, class O>
ALONE void write_general(const Job& j, const typename T::S* z, const typename T::A* y, const typename T::A* slope, const typename T::A* e,
                         double unit, double power, double a, double entropy, const Shift<typename T::A>& shift, double drop,
                         const typename O::S* w, typename T::S* dz, int64_t n) {
  SHAPE
  const double size = a < 0 ? -a : a, other = entropy < 0 ? -entropy : entropy, amplitude = size > other ? size : other;
  const double by = amplitude > 0 ? amplitude : 1;  // the larger of the two, so that the scale of e has the size of the result
  const Scale<A, double> factor(unit * by, power);
  const A first = factor.first, last = factor.last, minus = -drop, constant = a / by, linear = entropy / by, scale = j.scale;
  each_unit<T, O>(z, w, nullptr, dz, n, j.stream, [&](int64_t k, int u, const auto& p) {
    V<A> v[T::PER], x[T::PER], away[T::PER];
    if (w) load_off<T, O>(p.off, u, away);
    load_unit<T>(p.z, y, k, u, x);
    for (int i = 0; i < T::PER; i++) {
      v[i] = read(e + k + i * L + u * W) * first * last;
      const V<A> below = linear == 0 ? V<A>{} : linear * fma<A>(splat(-scale), x[i] - shift.sub, shift.rest);
      v[i] = times<A>(v[i], constant + below);
      if (w) v[i] = fma<A>(splat(minus), away[i], v[i]);
      if (slope) v[i] = v[i] * read(slope + k + i * L + u * W);
    }
    return T::pack(v);
  });
}

// ---- from the sums of a row to its results ----

// Returns scale (a - b), also where a - b is beyond the range of the type, but the product is not.
template <class A> ALWAYS V<A> scaled_difference(V<A> a, V<A> b, A scale) { return ((A)0.5 * a - (A)0.5 * b) * (2 * scale); }

// Computes down := e^(shift - scale top), and 0 for a block of -inf.
ALWAYS void lower(const Blocks& b, int64_t n, double scale) {
  typedef Exp<double> K;
  for (int64_t i = 0; i < n; i += Lanes<double>::W) {
    V<double> m = read(b.m + i), k = read(b.n + i);
    V<double> x = fma<double>(k, splat(K::ln2_hi), scaled_difference(read(b.sub + i), read(b.top + i), scale));
    store(b.down + i, m == -INF ? V<double>{} : exp(fma<double>(k, splat(K::ln2_lo), x)));
  }
}

// What follows from the sums of rows alone, as in partials.finish, with m = scale top. With the log-odds against the label, a = scale (top -
// zt) + log s, and w = e^-|a|:
//   nll = log(1 + e^a), miss = 1 - yhat_t = 1 / (1 + e^-a), over = lse - m = log s + log(1 + e^-a), unit = e^(m - lse)
// Where a is beyond the range of the type and a / 2 is not, nll and over are divided by `factor` = 2.
struct Finished {
  V<double> nll, miss, hit, over, lse, unit, factor;  // hit = yhat_t
};
ALWAYS Finished finished(V<double> top, V<double> s, V<double> zt, double scale) {
  const V<double> zero = {}, one = splat(1.0), log_s = log(s), m = 0.5 * top, z = 0.5 * zt;
  const V<double> half = zt == INF ? z - z : m - z, back = half - m, lost = (m - (half - back)) - (z + back);  // m - z = half + lost
  V<double> gap = half * (2 * scale);
  const V<double> low = fma<double>(half, splat(2 * scale), -gap) + lost * (2 * scale);
  Finished f;
  f.factor = half - half == 0 ? (gap - gap == 0 ? one : splat(2.0)) : one;
  gap = f.factor == 1 ? gap : half * scale;
  V<double> a = gap + log_s, w = exp(a < 0 ? gap : -gap);
  w += low - low == 0 ? (a < 0 ? w * low : -w * low) : zero;
  const V<double> inverse_s = 1 / s, odds = a < 0 ? s * w : w * inverse_s, inverse = 1 / (1 + odds), soft = log1p(odds, inverse);
  f.nll = (a < 0 ? zero : a) + soft;
  f.miss = (a < 0 ? odds : one) * inverse;
  f.hit = (a < 0 ? one : odds) * inverse;
  f.over = a < 0 ? soft - gap : (log_s + soft) / f.factor;
  f.lse = zt > top ? zt * scale + f.nll : top * scale + f.over * f.factor;
  f.unit = s == 0 ? f.miss : f.miss * inverse_s;
  return f;
}
// Numbers whose sizes have a sum of at most `most`, and that of factors of off not below `least`, are those of ordinary rows; wide.h has the
// others. No product of them and of an entry overflows in the type of the computation, or loses digits as a subnormal number.
struct Ordinary {
  double least, most;
  ALWAYS explicit Ordinary(const Job& j) : least(j.type == F64 ? 0x1p-900 : 0x1p-60), most(j.type == F64 ? 0x1p900 : 0x1p110) {}
  ALWAYS V<double> outside(V<double> sizes, V<double> factor) const {  // 1, or 0 for ordinary numbers
    const V<double> zero = {}, one = splat(1.0);
    return sizes <= most ? (factor >= least ? zero : factor == 0 ? zero : one) : one;
  }
};
enum InWide { SUM_WITH_OFF = 1, SUMS = 2, GRADIENT = 4 };
ALWAYS V<double> size(V<double> x) { return x < 0 ? -x : x; }
ALWAYS V<double> finite_size(V<double> x) { return x == -INF ? V<double>{} : size(x); }
ALWAYS V<double> entropy_of(const Finished& f, V<double> s, V<double> u) {
  return times<double>(f.hit, f.nll) + times<double>(f.unit, u + times<double>(s, f.over));
}

// Returns a number of the parts, scale x, before the scale. Here it is `local`, unless the number is that of other columns.
ALWAYS double unscaled(double part, double local, double scale) { return local * scale == part ? local : part / scale; }

// Computes what the rows give and the coefficients of dz, for `some` rows from `first` on, as formula.outputs and formula.coefficients do.
// If op is BACKWARD, m and zt are those of the given columns, and become those of the row.
template <Op op> ALONE void finish(const Job& j, Tile& x, int64_t first, int some, double scale) {
  double number_of[NUMBERS][TILE], output[OUTPUTS][TILE];
  const V<double> zero = {}, one = splat(1.0);
  for (int k = 0; k < j.number_count; k++) {
    const double* p = j.numbers + k * j.number_step + first * j.number_row;
    if (j.number_row)
      for (int g = 0; g < some; g++) number_of[k][g] = p[g * j.number_row];
    else
      for (int g = 0; g < some; g += Lanes<double>::W) store(number_of[k] + g, splat(*p));
  }
  for (int g = 0; g < some; g++) {
    if (!__builtin_expect(ignored(j, first + g), 0)) continue;
    for (int k = 0; k < j.number_count; k++) number_of[k][g] = 0;
    for (int k = 0; k < PARTS && op != BACKWARD; k++) x.part[k][g] = k == M || k == ZT ? -INF : 0;
  }
  if (j.parts)
    for (int k = 0; k < PARTS; k++) {
      double *p = j.parts + k * j.parts_step + first, *of = x.part[k];
      const double by = k == M || k == ZT ? scale : 1;
      for (int g = 0; g < some; g++)
        op == BACKWARD ? (void)(of[g] = by == 1 ? p[g] : unscaled(p[g], of[g], by)) : (void)(p[g] = of[g] * by);
    }
  const Ordinary ordinary(j);
  for (int g = 0; g < some; g += Lanes<double>::W) {
    const V<double> m = read(x.part[M] + g), s = read(x.part[S] + g), o = read(x.part[O] + g), d = read(x.part[D] + g),
                    zt = read(x.part[ZT] + g);
    const V<double> y = read(number_of[Y] + g), r = read(number_of[R] + g), q = read(number_of[Q] + g), up = read(number_of[G] + g);
    const Finished f = finished(m, s, zt, scale);
    const V<double> at = y + r * read(x.part[WT] + g), lift = q == 0 ? zero : q * f.lse, rest = r * o + lift, mass = at + rest,
                    drop = up * r;
    V<double> a = times<double>(up, mass), hot = times<double>(up, times<double>(rest, f.hit) - times<double>(at, f.miss)), e = zero,
              entropy = zero;
    if (j.entropy) entropy = entropy_of(f, s, read(x.part[U] + g));
    if (j.number_count > 4) {
      const V<double> l = read(number_of[GRAD_LSE] + g), b = read(number_of[GRAD_LOGPROB] + g);
      e = read(number_of[GRAD_ENTROPY] + g);
      const V<double> down = times<double>(e, entropy), by_entropy = times<double>(e, f.nll) - down;
      a = ((a + l) - b) - down;
      hot = hot + times<double>(l, f.hit) + times<double>(b, f.miss) + (by_entropy == 0 ? zero : times<double>(f.hit, by_entropy));
    }
    if (op != BACKWARD) {
      const V<double> loss = times<double>(at, f.nll) + times<double>(r, d / f.factor + times<double>(o, f.over));
      store(output[LOSS] + g, loss * f.factor + 0.5 * times<double>(lift, f.lse));
      store(output[LSE] + g, f.lse);
      if (j.result_count > 2) {
        store(output[LOGPROB] + g, -f.nll * f.factor);
        store(output[ENTROPY] + g, entropy);
        store(output[CORRECT] + g, zt >= m ? (zt > -INF ? one : zero) : zero);
      }
    }
    const V<double> cold = drop / j.temperature, factor = a * f.unit / j.temperature;
    V<double> wide = zero;
    if (j.type == F64) {
      wide = (double)SUMS * ordinary.outside(finite_size(m) + finite_size(zt) + (r == 0 ? zero : o), r == 0 ? one : o);
      if (op != BACKWARD) wide += d == INF ? (r == 0 ? zero : splat((double)SUM_WITH_OFF)) : zero;
    }
    if (op != FORWARD) {
      const V<double> sizes = size(factor) + size(e) + size(cold) + size(cold) * o + (j.number_count > 4 ? size(a) : zero);
      wide += (double)GRADIENT * ordinary.outside(sizes, j.off ? (r == 0 ? one : size(cold)) : one);
    }
    store(x.wide + g, s == s ? wide : zero);
    if (op == FORWARD) continue;
    store(x.scale + g, factor);
    store(x.e + g, e);
    if (j.number_count > 4) {
      store(x.unit + g, f.unit / j.temperature);
      store(x.a + g, a);
      store(x.over + g, f.over);
    }
    store(x.drop + g, cold);
    store(x.hot + g, hot / j.temperature);
    store(x.live + g, a == 0 ? (e == 0 ? (drop == 0 ? (hot == 0 ? zero : one) : one) : one) : one);
  }
  if (op == BACKWARD) return;
  for (int g = 0; g < some; g++)
    if (__builtin_expect(ignored(j, first + g), 0))
      for (int k = 0; k < j.result_count; k++) output[k][g] = 0;
  for (int k = 0; k < j.result_count; k++)
    for (int g = 0; g < some; g++) j.result[k * j.result_step + first + g] = output[k][g];
}

// ---- the phases of a row; vector lanes are columns ----

// Rows with up to so many columns are copied by the pass that finds the largest logit. The next pass then has no label and no end to look
// for: their copies and mispredicted branches cost more (12 % of the time of [16384, 300]).
constexpr int64_t COPIED = 1024;

// Returns the label of row i. LARGEST stands for the column with the largest off or, if off is not given for each row, the largest logit.
template <class T, class O> ALWAYS int64_t find_label(const Job& j, int64_t i, double* tops = nullptr) {
  const int64_t t = label(j, i);
  if (t != LARGEST) return t;
  return j.off_by_row ? largest<O>(off<O>(j, i), j.cols, nullptr) : largest<T>(row<T>(j, i), j.cols, tops);
}

ALWAYS bool needs_all(const Job& j) { return j.number_count > 4 || j.entropy; }
template <class T, Op op>
ALWAYS double softcapped(const Job& j, const typename T::S* z, int64_t n, int64_t t, typename T::A* y, typename T::A* slope,
                         typename T::A* e, typename T::A& top, const char* out) {
  if (needs_all(j)) return softcapped_exponentials<T, EACH_OF_THEM>(j, z, n, t, y, slope, e, top, out);
  return softcapped_exponentials<T, op == FORWARD ? NOTHING : PRODUCT>(j, z, n, t, y, slope, e, top, out);
}

// Returns the sum of e scale (top - y).
template <class A> ALONE double below_top(const A* y, const A* e, int64_t n, A scale, A top) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  Sum<A> su;
  for (int64_t k = 0; k < n; k += 4 * L)
    EACH(u) {
      V<A> v[4], b[4];
      FOUR(c) {
        v[c] = read(e + k + c * L + u * W);
        b[c] = scale * (top - read(y + k + c * L + u * W));
        b[c] = b[c] < (A)(3 * MODEST) ? b[c] : V<A>{};  // it is infinite in a column that is hidden, where e is 0
      }
      su.add_products(u, v, b);
    }
  return su.total();
}

// Computes the exponentials and the sums of block b of row i, whose label is t; with_off: also of off.
template <class T, class O, Op op>
ALONE void sum_block(const Job& j, Scratch<typename T::A>& f, int64_t i, int64_t t, int g, int64_t b, bool once, bool with_off,
                     bool top_is_known = false) {
  SHAPE
  const int64_t k = b * BLOCK, n = least(j.cols - k, BLOCK), at = g + b, place = g * whole(j.cols) + k;
  t = from(t, k);
  const S* z = row<T>(j, i) + k;
  const A scale = j.scale;
  A *y = f.y ? f.y + place : nullptr, *e = f.e + place;
  const int64_t padded = (n + G - 1) / G * G;
  const bool with_u = op != BACKWARD && j.entropy, copied = !y && j.cols <= COPIED;
  const char *next = (const char*)(z + (top_is_known ? j.z_step : n)),
             *out = !j.dz || j.stream ? nullptr : (const char*)((S*)j.dz + i * j.dz_step + k);
  double u = 0, s;
  A most;
  if (once)
    s = softcapped<T, op>(j, z, n, t, y, f.slope + place, e, most, out);
  else if (y) {
    softcap<T>(j, z, n, t, y, f.slope + place);
    most = top<plain<A>>(y, padded, -1);
  } else if (copied)
    most = top<T, true>(z, n, t, e);
  else
    most = top_is_known && !within(t, n) ? (A)f.b.top[at] : top<T>(z, n, t);
  const Shift<A> shift(splat(most), scale);
  f.b.m[at] = most;
  f.b.sub[at] = once ? 0 : shift.sub[0];
  f.b.n[at] = once ? Shift<A>(splat(most * scale), 1).n[0] : shift.n[0];
  f.b.o[at] = f.b.d[at] = f.b.u[at] = 0;
  if (once) {
    const double power = power_of_two(-f.b.n[at] - LIFT);
    s *= power;
    if (with_u) u = below_top(y, e, padded, scale, most) * power;
  } else if (y || copied)
    s = sums<plain<A>, op, sizeof(S)>(y ? y : e, padded, -1, shift, scale, e, u, with_u, next, out);
  else
    s = sums<T, op, sizeof(S)>(z, n, t, shift, scale, e, u, with_u, next, out);
  f.b.s[at] = s;
  f.b.u[at] = u;
  if (op != BACKWARD && with_off) {
    const typename O::S* w = off<O>(j, i) + k;
    const A finite_top = most == -(A)INF ? 0 : most;
    dot<T, O>(z, y, w, n, t, finite_top, f.b.o[at], f.b.d[at]);
    if (are_inexact<A>(f.b.o[at], f.b.d[at])) dot_in_double<T, O>(j, z, w, n, t, finite_top, f.b.o[at], f.b.d[at]);
    f.b.d[at] *= 2 * j.scale;
  }
}

// Sums over some columns of rows, a row in each lane: partials.Partials without the label's column.
struct Sums {
  V<double> m, s, o, d, u;
};
// Merges the sums over other columns of the same rows, as partials.merge does, with m before the scale.
ALWAYS Sums merged(const Sums& a, const Sums& b, double scale) {
  const V<double> zero = {}, one = splat(1.0), m = a.m > b.m ? a.m : b.m;
  const V<double> below_a = a.m == m ? zero : scaled_difference(m, a.m, scale),
                  below_b = b.m == m ? zero : scaled_difference(m, b.m, scale);
  const V<double> by_a = a.m == m ? one : exp(-below_a), by_b = b.m == m ? one : exp(-below_b);
  return {m, a.s * by_a + b.s * by_b, a.o + b.o, (a.d + times<double>(a.o, below_a)) + (b.d + times<double>(b.o, below_b)),
          times<double>(by_a, a.u + times<double>(a.s, below_a)) + times<double>(by_b, b.u + times<double>(b.s, below_b))};
}

// Merges the sums of the first `count` blocks into those of the first: pairs of neighbours, then pairs of these, and so on. So the blocks k
// to k + 2^n, where k is a multiple of 2^n, give the same sums in another process (softxent/shards.py).
ALONE void merge_pairs(const Blocks& f, int64_t count, double scale) {
  constexpr int W = Lanes<double>::W;
  double* const field[] = {f.merged_m, f.s, f.o, f.d, f.u};
  for (int64_t width = 1; width < count; width *= 2)
    for (int64_t k = 0; k + width < count; k += 2 * width * W) {
      V<double> pair[2][5] = {};
      auto at = [&](int lane) { return k + 2 * width * lane; };
      auto there = [&](int lane) { return k + 2 * width * lane + width < count; };
      for (int lane = 0; lane < W && there(lane); lane++)
        for (int i = 0; i < 5; i++) {
          pair[0][i][lane] = field[i][at(lane)];
          pair[1][i][lane] = field[i][at(lane) + width];
        }
      auto sums = [](const V<double>* p) { return Sums{p[0], p[1], p[2], p[3], p[4]}; };
      const Sums both = merged(sums(pair[0]), sums(pair[1]), scale);
      const V<double> found[] = {both.m, both.s, both.o, both.d, both.u};
      for (int lane = 0; lane < W && there(lane); lane++)
        for (int i = 0; i < 5; i++) field[i][at(lane)] = found[i][lane];
    }
}

// Computes top, down and, unless op is BACKWARD, the merged sums of `rows` rows: the sums at index g are those of the g-th row.
template <Op op> ALWAYS void merge_blocks(const Job& j, const Blocks& b, int64_t first, int64_t rows) {
  const int64_t blocks = blocks_of(j.cols), count = rows - 1 + blocks;
  double most = -INF;
  for (int64_t k = 0; k < count; k++) {
    b.top[k] = b.m[k];
    most = b.m[k] > most ? b.m[k] : most;
  }
  for (int64_t k = 0; op == BACKWARD && k < count; k++)
    b.top[k] = unscaled(j.parts[M * j.parts_step + first + (blocks > 1 ? 0 : k)], blocks > 1 ? most : b.m[k], j.scale);
  lower(b, count, j.scale);
  if (op == BACKWARD) return;
  for (int64_t k = 0; k < count; k++) {
    b.s[k] *= b.down[k];
    b.u[k] = j.entropy ? times(b.down[k], b.u[k]) : 0;
    b.merged_m[k] = b.m[k];
  }
  if (blocks == 1) return;
  merge_pairs(b, blocks, j.scale);
  for (int64_t k = 0; k < blocks; k++) b.top[k] = b.merged_m[0];
  lower(b, blocks, j.scale);
}

// Puts the merged sums of row i, whose label is t, into its parts.
template <class T, class O> ALWAYS void put_parts(const Job& j, Scratch<typename T::A>& f, int64_t i, int64_t t, int g) {
  const Blocks& b = f.b;
  const bool hit = within(t, j.cols);
  typename T::A slope;
  const double zt = hit ? (double)softcapped<T>(j, row<T>(j, i) + t, slope) : -INF;
  const double part[PARTS] = {b.top[g], b.s[g], b.o[g], b.d[g], zt, hit && j.off ? (double)get<O>(off<O>(j, i) + t) : 0, b.u[g]};
  for (int k = 0; k < PARTS; k++) f.x.part[k][g] = part[k];
}

ALWAYS bool needs(const Tile& x, int g, int what) { return (int)x.wide[g] & what; }
// Whether row first + g, in the tile's index g, is computed in wide numbers. A truth at a hidden class makes a sum infinite: it stays so.
template <class T> ALWAYS bool is_wide(const Job& j, Tile& x, int64_t first, int g, int64_t t) {
  if (__builtin_expect(x.wide[g] == 0, 1) || ignored(j, first + g)) return false;
  if (needs(x, g, SUM_WITH_OFF) && WideRow(j, row<T>(j, first + g), first + g).has_truth_at_hidden(t)) x.wide[g] -= SUM_WITH_OFF;
  return x.wide[g] != 0;
}
ALWAYS void in_wide(WideRow row, Op op, int64_t t, const Tile& x, int g) {
  if (needs(x, g, SUMS)) return row.loss_and_gradient(op, t);
  if (needs(x, g, SUM_WITH_OFF)) row.loss_and_gradient(FORWARD, t);
  if (needs(x, g, GRADIENT)) row.gradient(t, x.part, g);
}

// Merges the sums of the blocks of each row and computes its results, and the gradient of a row in wide numbers.
template <class T, class O, Op op>
ALONE void finish_rows(const Job& j, Scratch<typename T::A>& f, int64_t first, const int64_t* labels, int some) {
  merge_blocks<op>(j, f.b, first, some);
  for (int g = 0; g < some; g++)
    if (op != BACKWARD || (j.scale != 1 && !ignored(j, first + g))) put_parts<T, O>(j, f, first + g, labels[g], g);
  finish<op>(j, f.x, first, some, j.scale);
  for (int g = 0; g < some; g++)
    if (is_wide<T>(j, f.x, first, g, labels[g])) in_wide(WideRow(j, row<T>(j, first + g), first + g), op, labels[g], f.x, g);
}

// Merges sums over different columns of the same rows, [count, PARTS, rows], in the given order: for each pair of indices, those of the
// second into those of the first. Writes the parts and results of the rows. The sums are overwritten.
static void merge_shards(const Job& j, double* sums, const int64_t* pairs, int64_t count) {
  constexpr int W = Lanes<double>::W;
  Tile x = {};
  auto at = [&](int64_t shard, int part) { return sums + (shard * PARTS + part) * j.rows; };
  for (int64_t first = 0; first < j.rows; first += W) {
    const int some = least<int64_t>(W, j.rows - first);
    auto load = [&](int64_t shard, int part) {
      V<double> lanes = {};
      for (int g = 0; g < some; g++) lanes[g] = at(shard, part)[first + g];
      return lanes;
    };
    auto keep = [&](int64_t shard, int part, V<double> lanes) {
      for (int g = 0; g < some; g++) at(shard, part)[first + g] = lanes[g];
    };
    auto sums_of = [&](int64_t shard) {
      return Sums{load(shard, M), load(shard, Part::S), load(shard, Part::O), load(shard, D), load(shard, U)};
    };
    for (int64_t k = 0; k < count; k++) {
      const int64_t a = pairs[2 * k], b = pairs[2 * k + 1];
      const Sums both = merged(sums_of(a), sums_of(b), 1);
      const V<double> za = load(a, ZT), zb = load(b, ZT);
      keep(a, M, both.m);
      keep(a, Part::S, both.s);
      keep(a, Part::O, both.o);
      keep(a, D, both.d);
      keep(a, U, both.u);
      keep(a, ZT, za == za && !(zb <= za) ? zb : za);
      keep(a, WT, load(a, WT) + load(b, WT));
    }
    for (int part = 0; part < PARTS; part++) store(x.part[part], load(0, part));
    finish<FORWARD>(j, x, first, some, 1);
  }
}

// Returns scale z - (rest + scale sub), see Shift.
ALWAYS double above(double z, double sub, double rest, double scale) { return scaled_difference(splat(z), splat(sub), scale)[0] - rest; }

// Returns lse - (rest + scale sub) of row g of a tile and its block b, see Shift.
template <class A> ALWAYS double lse_below(const Scratch<A>& f, int g, int64_t b, double sub, double rest, double scale) {
  if (f.b.m[b] == -INF || f.x.unit[g] == 0) return 0;
  return above(f.b.top[b], sub, rest, scale) + f.x.over[g];
}

// Writes block b of the gradient of row i, whose label is t.
template <class T, class O> ALONE void write_block(const Job& j, Scratch<typename T::A>& f, int64_t i, int64_t t, int g, int64_t b) {
  typedef typename T::A A;
  constexpr int W = Lanes<A>::W;
  const int64_t k = b * BLOCK, n = least(j.cols - k, BLOCK), place = g * whole(j.cols) + k;
  t = from(t, k);
  typename T::S* dz = (typename T::S*)j.dz + i * j.dz_step + k;
  if (__builtin_expect(needs(f.x, g, SUMS | GRADIENT), 0) && !ignored(j, i)) return;
  if (!f.x.live[g]) {
    for (int64_t c = 0; c < n; c++) dz[c] = 0;
    return;
  }
  const typename T::S* z = row<T>(j, i) + k;
  const typename O::S* w = off<O>(j, i);
  A *e = f.e + place, slope = 1;
  const double down = f.b.down[g + b];
  if (within(t, n)) softcapped<T>(j, z + t, slope);  // before dz, which may be z, is written
  const typename T::S* next = j.ahead ? row<T>(j, i + 1) + k : nullptr;
  const bool once = one_pass(j);
  const double power = once ? power_of_two(-f.b.n[g + b] - LIFT) * Exp<A>::lift : 1, scale = f.x.scale[g] * down;
  if (f.x.e[g] != 0) {
    const Shift<A> shift(splat((A)f.b.m[g + b]), (A)j.scale);
    const double a = f.x.a[g] + times(f.x.e[g], lse_below(f, g, g + b, shift.sub[0], shift.rest[0], j.scale));
    write_general<T, O>(j, z, f.y ? f.y + place : nullptr, f.y ? f.slope + place : nullptr, e, f.x.unit[g] * down, power, a, f.x.e[g],
                        shift, f.x.drop[g], w ? w + k : w, dz, n);
  } else if (w && f.y)
    write<T, O, true, true>(e, scale, power, f.x.drop[g], w + k, f.slope + place, dz, n, j.stream, next);
  else if (w)
    write<T, O, true, false>(e, scale, power, f.x.drop[g], w + k, nullptr, dz, n, j.stream, next);
  else if (f.y && !once)
    write<T, O, false, true>(e, scale, power, 0, w, f.slope + place, dz, n, j.stream, next);
  else {
    if (once && needs_all(j))  // else e is the product already
      for (int64_t c = 0; c < whole(n); c += W) store(e + c, read(e + c) * read(f.slope + place + c));
    write<T, O, false, false>(e, scale, power, 0, w, nullptr, dz, n, j.stream, next);
  }
  if (within(t, n)) put<T>(dz + t, (A)(f.x.hot[g] * slope));
}

// ---- short rows; vector lanes are rows ----

// Up to L short rows, a row in each lane: the virtual vector c of an array holds their columns c. Unused lanes repeat the last row.
template <class A> struct Panel {
  static constexpr int L = Lanes<A>::L;
  A *e, *off, *slope, *z, *v;       // e: the logits, and then their exponentials
  A apart[L];                       // the column that is kept apart, or -1
  A at[L], off_at[L], slope_at[L];  // the logit, off and the slope in this column; -inf, 0 and 1 if there is none
  A m[L], sub[L], n[L], rest[L];    // the largest logit of the other columns, and the shift of the exponentials
  double s[L], o[L], d[L], sum_u[L];
  explicit Panel(A* scratch) {
    A** array[] = {&e, &off, &slope, &z, &v};
    for (A** a : array) {
      *a = scratch;
      scratch += L * (SHORT_ROW + 4);
    }
  }
};

template <class X> struct FourOf {
  typedef X V __attribute__((vector_size(4 * sizeof(X))));
};
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Index{i, j, k, l})
#endif
template <class X> ALWAYS void transpose(typename FourOf<X>::V* v) {  // four vectors of four
  typedef decltype(v[0] == v[0]) Index;
  const auto a = SHUFFLE(v[0], v[1], 0, 4, 1, 5), b = SHUFFLE(v[2], v[3], 0, 4, 1, 5);
  const auto c = SHUFFLE(v[0], v[1], 2, 6, 3, 7), d = SHUFFLE(v[2], v[3], 2, 6, 3, 7);
  v[0] = SHUFFLE(a, b, 0, 1, 4, 5);
  v[1] = SHUFFLE(a, b, 2, 3, 6, 7);
  v[2] = SHUFFLE(c, d, 0, 1, 4, 5);
  v[3] = SHUFFLE(c, d, 2, 3, 6, 7);
}

// Copies n columns of `some` rows of any strides to a panel, as slots. Where rows are adjacent, a column of the panel is read at once.
template <class T>
ALONE void strided_to_panel(const typename T::S* z, int64_t step, int64_t column, int64_t n, int some, typename T::A* panel) {
  SHAPE
  typename T::Slot slots[L];
  if (step == 1 && some == L)
    for (int64_t c = 0; c < n; c++, z += column) {
      __builtin_prefetch(z + 2 * L, 0, 3);
      for (int g = 0; g < L; g++) slots[g] = z[g];
      __builtin_memcpy(panel + c * L, slots, sizeof slots);
    }
  else
    for (int64_t c = 0; c < n; c++, z += column) {
      for (int g = 0; g < L; g++) slots[g] = z[least(g, some - 1) * step];
      __builtin_memcpy(panel + c * L, slots, sizeof slots);
    }
}
// Copies n columns of a panel of slots to `some` rows of any strides.
template <class T>
ALONE void panel_to_strided(const typename T::A* panel, int64_t n, typename T::S* dz, int64_t step, int64_t column, int some) {
  SHAPE
  typename T::Slot slots[L];
  for (int64_t c = 0; c < n; c++, dz += column) {
    __builtin_memcpy(slots, panel + c * L, sizeof slots);
    if (step == 1 && some == L)
      for (int g = 0; g < L; g++) dz[g] = slots[g];
    else
      for (int g = 0; g < some; g++) dz[g * step] = slots[g];
  }
}
// Copies n columns of `some` rows to a panel, as slots. Where columns are adjacent, four columns of four rows are moved at a time; the last
// four may overlap others.
template <class T>
ALWAYS void rows_to_panel(const typename T::S* z, int64_t step, int64_t column, int64_t n, int some, typename T::A* panel) {
  SHAPE
  typedef typename T::Slot Slot;
  if (column != 1) return strided_to_panel<T>(z, step, column, n, some, panel);
  for (int g = 0; g < L; g += 4) {
    const S* rows[4];
    FOUR(i) rows[i] = z + least(g + i, some - 1) * step;
    for (int64_t c = 0; n < 4 && c < n; c++)
      FOUR(i) {
        const Slot slot = rows[i][c];
        __builtin_memcpy(panel + c * L + g + i, &slot, sizeof slot);
      }
    for (int64_t next = 0; n >= 4 && next < n; next += 4) {
      const int64_t c = least(next, n - 4);
      typename FourOf<Slot>::V v[4];
      FOUR(i) {
        typename FourOf<S>::V stored;
        __builtin_memcpy(&stored, rows[i] + c, sizeof stored);
        v[i] = __builtin_convertvector(stored, typename FourOf<Slot>::V);
      }
      transpose<Slot>(v);
      FOUR(i) __builtin_memcpy(panel + (c + i) * L + g, v + i, sizeof v[i]);
    }
  }
}
// Copies n columns of a panel of slots to `some` rows.
template <class T>
ALWAYS void panel_to_rows(const typename T::A* panel, int64_t n, typename T::S* dz, int64_t step, int64_t column, int some) {
  SHAPE
  typedef typename T::Slot Slot;
  if (column != 1) return panel_to_strided<T>(panel, n, dz, step, column, some);
  for (int g = 0; g < some; g += 4) {
    for (int64_t c = 0; n < 4 && c < n; c++)
      for (int i = 0; i < 4 && g + i < some; i++) {
        Slot slot;
        __builtin_memcpy(&slot, panel + c * L + g + i, sizeof slot);
        dz[(g + i) * step + c] = slot;
      }
    for (int64_t next = 0; n >= 4 && next < n; next += 4) {
      const int64_t c = least(next, n - 4);
      typename FourOf<Slot>::V v[4];
      FOUR(i) __builtin_memcpy(v + i, panel + (c + i) * L + g, sizeof v[i]);
      transpose<Slot>(v);
      for (int i = 0; i < 4 && g + i < some; i++) {
        const auto stored = __builtin_convertvector(v[i], typename FourOf<S>::V);
        __builtin_memcpy(dz + (g + i) * step + c, &stored, sizeof stored);
      }
    }
  }
}
template <class T> ALWAYS void widen(typename T::A* panel, int64_t n) {  // converts slots to values
  typedef typename T::A A;
  if (sizeof(typename T::S) < sizeof(A))
    for (int64_t k = 0; k < n; k += Lanes<A>::W) {
      decltype(T::narrow(V<A>{})) slots;
      __builtin_memcpy(&slots, panel + k, sizeof slots);
      store(panel + k, T::widen(slots));
    }
}

// Whether a call needs the loss and lse alone, of logits as they are, without off. Such calls are compiled separately for short rows.
ALWAYS bool is_plain(const Job& j) { return !j.off && !j.capped && j.scale == 1 && !j.entropy && j.number_count == 4; }

// Puts the first column with the largest value into each lane that asks for it; 0 if all are -inf or NaN.
template <class A> ALWAYS void put_largest(const A* panel, int64_t n, const bool* asks, A* column_of) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  A found[L];
  EACH(u) {
    V<A> most = splat<A>(-INF), at = {}, column = {};
    for (int64_t k = u * W; k < n * L; k += L) {
      const V<A> v = read(panel + k);
      at = v > most ? column : at;
      most = v > most ? v : most;
      column = column + 1;
    }
    store(found + u * W, at);
  }
  for (int g = 0; g < L; g++) column_of[g] = asks[g] ? found[g] : column_of[g];
}

// Reads `some` rows from `first` on: their labels, or -1, off, and the logits or, with a softcap, y and its slope.
template <class T, class O>
ALWAYS void fill(const Job& j, Panel<typename T::A>& p, int64_t first, int some, bool with_off, bool capped, typename T::A* label_of) {
  SHAPE
  rows_to_panel<T>(row<T>(j, first), j.z_step, j.z_column, j.cols, some, p.e);
  widen<T>(p.e, j.cols * L);
  if (with_off) {
    rows_to_panel<O>(off<O>(j, first), j.off_step, j.off_column, j.cols, some, p.off);
    widen<O>(p.off, j.cols * L);
  }
  bool asks[L], any = false;
  for (int g = 0; g < L; g++) {
    const int64_t t = label(j, first + least(g, some - 1));
    label_of[g] = within(t, j.cols) ? (A)t : -1;
    any |= asks[g] = t == LARGEST;
  }
  if (any) put_largest<A>(with_off && j.off_by_row ? p.off : p.e, j.cols, asks, label_of);
  for (int64_t k = 0; capped && k < j.cols * L; k += W) {
    V<A> y = read(p.e + k) * (A)j.unit, by;
    tanh_and_slope<A, 1>(&y, &by);
    store(p.e + k, y);
    store(p.slope + k, by);
  }
}

// Takes the column `apart` of each row out of e and off, where it is then -inf and 0, and finds the largest of the other logits. Fills the
// columns up to a multiple of four in the same way.
template <class A> ALWAYS void take_apart(Panel<A>& p, int64_t cols, bool with_off, bool capped) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  const int64_t padded = (cols + 3) / 4 * 4;
  EACH(u) {
    V<A> most = splat<A>(-INF), at = most, off_at = {}, slope_at = splat<A>(1), column = {};
    const V<A> apart = read(p.apart + u * W);
    for (int64_t k = u * W; k < cols * L; k += L) {
      V<A> v = read(p.e + k);
      at = column == apart ? v : at;
      v = column == apart ? splat<A>(-INF) : v;
      store(p.e + k, v);
      most = v > most ? v : most;
      if (with_off) {
        const V<A> w = read(p.off + k);
        off_at = column == apart ? w : off_at;
        store(p.off + k, column == apart ? V<A>{} : w);
      }
      if (capped) slope_at = column == apart ? read(p.slope + k) : slope_at;
      column = column + 1;
    }
    store(p.m + u * W, most + 0);  // turns -0 into 0
    store(p.at + u * W, at);
    store(p.off_at + u * W, off_at);
    store(p.slope_at + u * W, slope_at);
    for (int64_t k = cols * L + u * W; k < padded * L; k += L) {
      store(p.e + k, splat<A>(-INF));
      if (with_off) store(p.off + k, V<A>{});
    }
  }
}

// Computes the exponentials and their sums, as `exponentials` and `dot` do.
template <class A> ALWAYS void sum_panel(Panel<A>& p, int64_t cols, A scale, bool with_sum, bool with_off, bool with_u) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  Sum<A> ss, so, sd, su;
  EACH(u) {
    A *e = p.e + u * W, *off = p.off + u * W;
    const V<A> most = read(p.m + u * W), finite = most == -(A)INF ? V<A>{} : most;
    const Shift<A> shift(most, scale);
    for (int64_t c = 0; c < cols; c += 4) {
      V<A> v[4], a[4], b[4];
      FOUR(k) v[k] = read(e + (c + k) * L);
      if (with_off) {
        FOUR(k) {
          a[k] = read(off + (c + k) * L);
          b[k] = times<A>(a[k], fma<A>(splat((A)-0.5), v[k], finite * (A)0.5));
        }
        so.add(u, a);
        sd.add(u, b);
      }
      FOUR(k) v[k] = v[k] - shift.sub;
      if (with_u)
        FOUR(k) b[k] = fma<A>(splat(-scale), v[k], shift.rest);
      FOUR(k) v[k] = v[k] * scale;
      exps<A, 4>(v, shift.magic, shift.low);
      FOUR(k) store(e + (c + k) * L, v[k]);
      if (with_sum) ss.add(u, v);
      if (with_u) {
        FOUR(k) b[k] = times<A>(v[k], b[k]);
        su.add(u, b);
      }
    }
    store(p.sub + u * W, shift.sub);
    store(p.n + u * W, shift.n);
    store(p.rest + u * W, shift.rest);
  }
  ss.lanes(p.s);
  so.lanes(p.o);
  sd.lanes(p.d);
  su.lanes(p.sum_u);
}

// Puts the sums of the rows, with the factor e^(shift - scale top), into their parts. `m` has the m of the caller, or is null.
template <class A>
ALWAYS void put_panel_parts(Scratch<A>& f, const Panel<A>& p, double scale, const double* m, bool with_sum, bool with_u) {
  constexpr int L = Lanes<A>::L;
  for (int g = 0; g < L; g++) {
    f.b.m[g] = p.m[g];
    f.b.sub[g] = p.sub[g];
    f.b.n[g] = p.n[g];
    f.b.top[g] = m ? unscaled(m[g], p.m[g], scale) : p.m[g];
    f.x.part[M][g] = p.m[g];
    f.x.part[ZT][g] = p.at[g];
  }
  lower(f.b, L, scale);
  for (int g = 0; g < L && with_sum; g++) {
    const double down = f.b.down[g], sum = p.s[g] * (1 / Exp<A>::lift);
    f.x.part[Part::S][g] = sum * down;
    f.x.part[Part::O][g] = p.o[g];
    f.x.part[D][g] = 2 * scale * p.d[g];
    f.x.part[WT][g] = p.off_at[g];
    f.x.part[U][g] = with_u ? times(down, p.sum_u[g] * (1 / Exp<A>::lift)) : 0;
  }
}

// The rows of a panel that are computed in wide numbers, after the others are written. dz may be z, so they are copied if there are any.
template <class T> struct WideRows {
  typedef typename T::S S;
  const Job& j;
  const int64_t first;
  bool wide[Lanes<typename T::A>::L], any = false;
  S z[Lanes<typename T::A>::L][SHORT_ROW];
  template <class F> WideRows(const Job& j, int64_t first, int some, F is_wide) : j(j), first(first) {
    for (int g = 0; g < Lanes<typename T::A>::L; g++) {
      wide[g] = g < some && is_wide(g);
      any = any || wide[g];
      for (int64_t k = 0; wide[g] && k < j.cols; k++) z[g][k] = row<T>(j, first + g)[k * j.z_column];
    }
  }
  template <class F> void each(F f) const {
    for (int g = 0; any && g < Lanes<typename T::A>::L; g++)
      if (wide[g]) f(WideRow(j, z[g], first + g, 1), g);
  }
};

// Computes up to L short rows from `first` on, in all phases.
template <class T, class O, Op op, bool plain> ALONE void short_rows(const Job& j, Scratch<typename T::A>& f, int64_t first, int some) {
  SHAPE
  const int64_t C = j.cols;
  const double exact_scale = plain ? 1 : j.scale;
  const A scale = exact_scale;
  const bool capped = !plain && j.capped, keep_z = !plain && op != FORWARD && j.number_count > 4,
             with_u = !plain && op != BACKWARD && j.entropy, with_off = !plain && j.off;
  Panel<A> p(f.e);
  fill<T, O>(j, p, first, some, with_off, capped, p.apart);
  take_apart<A>(p, C, with_off, capped);
  if (keep_z) __builtin_memcpy(p.z, p.e, C * L * sizeof(A));
  sum_panel<A>(p, C, scale, op != BACKWARD, op != BACKWARD && with_off, with_u);
  for (int g = 0; g < some && with_off && op != BACKWARD; g++) {
    if (!are_inexact<A>(p.o[g], p.d[g])) continue;
    const A top = p.m[g] == -(A)INF ? 0 : p.m[g];
    dot_in_double<T, O>(j, row<T>(j, first + g), off<O>(j, first + g), C, p.apart[g], top, p.o[g], p.d[g]);
  }
  double top[L];
  for (int g = 0; g < L && op == BACKWARD; g++) top[g] = j.parts[M * j.parts_step + first + least(g, some - 1)];
  put_panel_parts<A>(f, p, exact_scale, op == BACKWARD ? top : nullptr, op != BACKWARD, with_u);
  finish<op>(j, f.x, first, some, exact_scale);
  WideRows<T> wide(j, first, some, [&](int g) { return is_wide<T>(j, f.x, first, g, p.apart[g]); });
  if (op == FORWARD) return wide.each([&](const WideRow& row, int g) { in_wide(row, op, p.apart[g], f.x, g); });
  double by[L], constant_of[L], linear_of[L];
  for (int g = 0; g < L; g++) {
    by[g] = 1;
    if (!keep_z) continue;
    const double a = f.x.a[g] + times(f.x.e[g], lse_below(f, g, g, p.sub[g], p.rest[g], exact_scale)), size = a < 0 ? -a : a,
                 other = f.x.e[g] < 0 ? -f.x.e[g] : f.x.e[g];
    by[g] = size > other ? size : other;
    by[g] = by[g] > 0 ? by[g] : 1;
    constant_of[g] = a / by[g];
    linear_of[g] = f.x.e[g] / by[g];
  }
  double factors[2][L];
  for (int g = 0; g < L; g += Lanes<double>::W) {
    const V<double> of_e = (keep_z ? read(f.x.unit + g) * read(by + g) : read(f.x.scale + g)) * read(f.b.down + g);
    const Scale<A, V<double>> scale_of(of_e);
    store(factors[0] + g, scale_of.first);
    store(factors[1] + g, scale_of.last);
  }
  A first_factor[L], last_factor[L], minus[L], hot[L], live[L], constant[L], linear[L];
  for (int g = 0; g < L; g++) {
    first_factor[g] = factors[0][g];
    last_factor[g] = factors[1][g];
    minus[g] = -f.x.drop[g];
    hot[g] = f.x.hot[g] * p.slope_at[g];
    live[g] = f.x.live[g];
    if (!keep_z) continue;
    constant[g] = constant_of[g];
    linear[g] = linear_of[g];
  }
  EACH(u) {
    const int at = u * W;
    V<A> column = {};
    for (int64_t k = at; k < C * L; k += L) {
      V<A> v = read(p.e + k) * read(first_factor + at) * read(last_factor + at);
      if (keep_z) {
        const V<A> of_gap = read(linear + at),
                   below = times<A>(of_gap, fma<A>(splat(-scale), read(p.z + k) - read(p.sub + at), read(p.rest + at)));
        v = times<A>(v, read(constant + at) + below);
      }
      if (with_off) v = fma<A>(read(minus + at), read(p.off + k), v);
      if (capped) v = v * read(p.slope + k);
      v = column == read(p.apart + at) ? read(hot + at) : v;
      v = read(live + at) == 0 ? V<A>{} : v;
      column = column + 1;
      auto slots = T::narrow(v);
      __builtin_memcpy(p.e + k, &slots, sizeof slots);
    }
  }
  panel_to_rows<T>(p.e, C, (S*)j.dz + first * j.dz_step, j.dz_step, j.dz_column, some);
  wide.each([&](const WideRow& row, int g) { in_wide(row, op, p.apart[g], f.x, g); });
}

// ---- one row at a time, with its most probable class j0 kept apart: log-softmax and the curvature ----

// Computes the exponentials of the row, which only FUSED keeps, and its sums, in f.b and f.x.part.
template <class T, class O, Op op> ALWAYS void most_probable_apart(const Job& j, Scratch<typename T::A>& f, int64_t i, int64_t j0) {
  const int64_t blocks = blocks_of(j.cols);
  for (int64_t b = 0; b < blocks; b++) sum_block<T, O, op>(j, f, i, j0, 0, b, false, false);
  merge_blocks<op>(j, f.b, i, 1);
  put_parts<T, O>(j, f, i, j0, 0);
}

// Computes dz := number log yhat, from (z_j0 - z_k) + nll, so that values near 0 keep their digits.
template <class T> ALONE void log_softmax(const Job& j, Scratch<typename T::A>& f, int64_t i) {
  SHAPE
  const S* z = row<T>(j, i);
  S* dz = (S*)j.dz + i * j.dz_step;
  most_probable_apart<T, T, FORWARD>(j, f, i, largest<T>(z, j.cols, nullptr));
  const double most = f.x.part[ZT][0];
  const Finished x = finished(splat(f.x.part[M][0]), splat(f.x.part[Part::S][0]), splat(most), j.scale);
  const A scale = j.scale, z0 = most, by = number(j, (Number)0, i), lift = x.nll[0];
  // A distance from the largest logit is a number of the type, unless a factor makes it one.
  if (most > -INF && !((by == 1 || scale <= 1) && most >= -0x1p100 && most <= 0x1p100)) return WideRow(j, z, i).log_softmax();
  auto unit = [&](int64_t k, int u, const auto& p) {
    V<A> v[T::PER];
    load_unit<T>(p.z, (const A*)nullptr, k, u, v);
    for (int c = 0; c < T::PER; c++) {
      V<A> y = v[c], s;
      if (j.capped) {
        y = y * (A)j.unit;
        tanh_and_slope<A, 1>(&y, &s);
      }
      v[c] = times<A>(splat(by), scaled_difference(y, splat(z0), scale) - lift);
    }
    return T::pack(v);
  };
  each_unit<T, plain<A>>(z, (const A*)nullptr, (const A*)nullptr, dz, j.cols, j.stream, unit);
}

// Whether the second derivative of y counts.
ALWAYS bool is_bent(const Job& j) { return j.cap < INF && !j.gauss_newton; }

template <class A> ALWAYS A clamped_power(int64_t k) {  // 2^k, or the closest power of two that is a normal number
  constexpr int64_t most = sizeof(A) == 4 ? 126 : 1022;
  return power_of_two(k < -most ? -most : k > most ? most : k);
}
// What the product of the Hessian and v needs of rows, a row in each lane: of short rows, or one long row in all lanes. j0 is the most
// probable class, t the label. v is the given one divided by 2^size, and times the slope of y where that is said. All coefficients of an
// entry, FIRST to ENDS_LINEAR, are divided by the same number, so that they have the size of 1; `factor` is the rest of the factor of yhat,
// and OFF_BY, with two powers of two, that of off.
enum Coefficient {
  FIRST,
  LINEAR,
  START,
  SHIFT,
  LEAD,
  ENDS,
  ENDS_LINEAR,
  TOP,
  TOP_V,
  LAST,
  AND_LAST,
  OFF_BY,
  OFF_LAST,
  OFF_AND_LAST,
  LIVE,
  COEFFICIENTS
};
template <class A> struct Curved {
  static constexpr int L = Lanes<A>::L;
  double number[NUMBERS][L];
  double m[L], s[L], u[L];        // the sums of the row without j0; m, z0 and zt before the scale
  double p[L], q[L];              // sum e^(z - m) (v_j0 - v) and sum e^(z - m) (z_j0 - z) (v_j0 - v), without j0
  double all_off[L], off_v[L];    // sum off and sum off (v - v_j0)
  double z0[L], zt[L];            // the logits of j0 and of t
  double v0[L], vt[L], size[L];   // v times the slope, of both; the exponent of v
  double slope0[L], slope_t[L];   // the slopes of y
  double bent0[L], bent_t[L];     // the second derivatives of y, times v and the cap
  double off0[L], off_t[L];       // off of both
  double labelled[L], at_top[L];  // whether t is a class, and whether it is j0
  double product[PRODUCTS][L], of[COEFFICIENTS][L], unit[L];  // the results; unit is e^(m - lse)
  double at_j0[L], at_t[L];                                   // the entries of the product in these columns
  Wide factor[L];
  double most_v[2][L];  // the largest |v| where the prediction is not 0, and of all
  double wide[L];       // whether the row is computed in wide numbers
};

// With apart_k = v_k - mean and away_k = lse - z_k, the product is slope yhat_k ((a - e + e away_k) apart_k + da), plus, with a softcap, its
// second derivative times v and dz.
template <class A> ALONE void curve(const Job& j, Curved<A>& c, int lanes) {
  constexpr int W = Lanes<double>::W;
  const V<double> zero = {}, one = splat(1.0);
  const Wide cool = Wide(1) / Wide(j.temperature), bend = Wide(1) / Wide(j.cap), larger = j.temperature < j.cap ? cool : bend;
  const double by_t = (cool / larger).value(), by_cap = (bend / larger).value();
  for (int k = 0; k < lanes; k += W) {
    auto number = [&](Number n) { return read(c.number[n] + k); };
    const V<double> m = read(c.m + k), s = read(c.s + k), u = read(c.u + k), z0 = read(c.z0 + k), zt = read(c.zt + k), v0 = read(c.v0 + k),
                    all_off = read(c.all_off + k), off_t = read(c.off_t + k), labelled = read(c.labelled + k), at_top = read(c.at_top + k);
    const Finished x = finished(m, s, z0, j.scale);
    const V<double> unit = s == 0 ? zero : x.unit, gap = s == 0 ? zero : scaled_difference(z0, m, j.scale);
    const V<double> lead = read(c.p + k) * unit, q = read(c.q + k) * unit, mean = v0 - lead;
    const V<double> below = unit * (u + times<double>(s, gap));  // sum yhat (z_j0 - z)
    const V<double> by_entropy = times<double>(lead, below) - q;
    const V<double> nll_t = labelled == 0 ? zero : at_top > 0 ? x.nll : scaled_difference(z0, zt, j.scale) + x.nll;
    const V<double> hit_t = labelled == 0 ? zero : at_top > 0 ? x.hit : exp(-nll_t);
    const V<double> apart_t = labelled == 0 ? zero : at_top > 0 ? lead : (read(c.vt + k) - v0) + lead;
    const V<double> by_off = read(c.off_v + k) + all_off * lead;
    const V<double> g = number(Number::G), r = number(R), e = number(GRAD_ENTROPY), lift = times<double>(number(Q), x.lse);
    const V<double> rest = r * (all_off - off_t) + lift, at = number(Y) + r * off_t, mass = at + rest;
    const V<double> entropy = times<double>(x.hit, x.nll) + times<double>(unit, u + times<double>(s, gap + x.nll));
    const V<double> a = times<double>(g, mass) + number(GRAD_LSE) - number(GRAD_LOGPROB) - times<double>(e, entropy);
    const V<double> miss_t = at_top > 0 ? unit * s : 1 - hit_t, of_t = times<double>(e, nll_t) - times<double>(e, entropy);
    const V<double> hot = times<double>(g, times<double>(rest, hit_t) - times<double>(at, miss_t)) +
                          times<double>(number(GRAD_LSE), hit_t) + times<double>(number(GRAD_LOGPROB), miss_t) + times<double>(hit_t, of_t);
    const V<double> shift = times<double>(times<double>(g, number(Q)), mean) - times<double>(e, by_entropy), drop = times<double>(g, r);
    const Ordinary ordinary(j);
    V<double> sizes = j.type == F64 ? finite_size(m) + finite_size(z0) + finite_size(zt) : zero;
    sizes += size(a) + size(e) + size(hot) + size(shift) + size(drop) + (r == 0 ? zero : all_off + size(drop) * all_off);
    auto of_off = [&](V<double> x) { return j.off ? (r == 0 ? one : x) : one; };
    const V<double> any_v = read(c.most_v[1] + k), probable_v = read(c.most_v[0] + k);
    const V<double> wide = ordinary.outside(sizes * (1 + any_v), of_off(size(drop))) + ordinary.outside(zero, of_off(all_off)) +
                           (any_v <= 0x1p30 * probable_v ? (any_v <= (sizeof(A) == 4 ? 0x1p60 : 0x1p200) ? zero : one) : one);
    store(c.wide + k, s == s ? wide : zero);
    for (int w = 0; w < W; w++) {
      const int i = k + w;
      bool live = false;
      for (int n = 0; n < NUMBERS; n++) live = live || c.number[n][i] != 0;
      const Wide size = {1, (int64_t)c.size[i]}, by_slope = size * cool;
      auto put = [&](Product n, double found) { c.product[n][i] = (Wide(found) * by_slope).value(); };
      put(MEAN, mean[w]);
      put(AT_LABEL, apart_t[w]);
      put(BY_OFF, by_off[w]);
      put(BY_ENTROPY, by_entropy[w]);
      const double amounts[] = {a[w] - e[w], e[w], a[w], shift[w], hot[w]};
      double amount = 0;
      for (double some : amounts) amount = (some < 0 ? -some : some) > amount ? (some < 0 ? -some : some) : amount;
      const Wide all = {1, Wide(amount).k}, down = {1, -all.k}, factor = all * by_slope * larger;
      auto of = [&](double some, double by) { return (Wide(some) * down).value() * by; };
      const double first = of(a[w] - e[w], by_t), linear = of(e[w], by_t), ends = of(a[w], by_cap), ends_linear = of(e[w], by_cap);
      const double total = of(shift[w], by_t);
      const Wide off = by_slope * bend * Wide(-drop[w]);
      const double off_last = clamped_power<A>(off.k), off_and_last = clamped_power<A>(off.k - Wide(off_last).k);
      const double found[] = {first, linear, x.nll[w], total, lead[w],  ends,         ends_linear,     z0[w],
                              v0[w], 0,      0,        off.f, off_last, off_and_last, live ? 1.0 : 0.0};
      for (int n = 0; n < COEFFICIENTS; n++) c.of[n][i] = found[n];
      c.unit[i] = unit[w];
      c.factor[i] = factor;
      const double inner0 = (first + times(linear, x.nll[w])) * lead[w] + total + times(c.bent0[i], ends + times(ends_linear, x.nll[w]));
      const double inner_t = (first + times(linear, nll_t[w])) * apart_t[w] + total;
      c.at_j0[i] =
          (Wide(c.slope0[i] * times(x.hit[w], inner0)) * factor).value() + (Wide(c.bent0[i] * c.slope0[i] * c.off0[i]) * off).value();
      c.at_t[i] = (Wide(c.slope_t[i] * (times(hit_t[w], inner_t) + times(c.bent_t[i], of(hot[w], by_cap)))) * factor).value();
    }
  }
}

// Puts the factors of the exponentials of a row, or of a block that is `down` times as large: e FIRST is yhat without a power of two, by which
// the entry is multiplied at last, as two factors.
template <class A> ALWAYS void put_factors(Curved<A>& c, int lane, double down, A& first) {
  const Wide of = Wide(c.unit[lane]) * Wide(down) * c.factor[lane] * Wide(1 / (double)Exp<A>::lift);
  first = of.f;
  c.of[LAST][lane] = clamped_power<A>(of.k);
  c.of[AND_LAST][lane] = clamped_power<A>(of.k - Wide(c.of[LAST][lane]).k);
}

// The entries of the product for the rows of native vector u, or for one long row.
template <class A> struct Entries {
  V<A> of[COEFFICIENTS];
  A scale;
  bool with_entropy, bent, with_off;
  ALWAYS Entries(const Job& j, const Curved<A>& c, int u, bool one_row) : scale(j.scale), with_entropy(j.number_count > 4) {
    constexpr int W = Lanes<A>::W;
    bent = is_bent(j);
    with_off = bent && j.off;
    for (int i = 0; i < COEFFICIENTS; i++) {
      A lanes[W];
      for (int w = 0; w < W; w++) lanes[w] = c.of[i][one_row ? 0 : u * W + w];
      of[i] = read(lanes);
    }
  }
  // yhat: without the powers of two
  ALWAYS V<A> entry(V<A> yhat, V<A> v, V<A> y, V<A> slope, V<A> off) const {
    const V<A> apart = (v * slope - of[TOP_V]) + of[LEAD], away = scaled_difference(of[TOP], y, scale) + of[START];
    V<A> inner = of[FIRST] * apart;
    if (with_entropy) inner = of[LINEAR] == 0 ? inner : fma<A>(times<A>(of[LINEAR], away), apart, inner);
    inner = inner + of[SHIFT];
    if (!bent) return times<A>(yhat, inner) * slope * of[LAST] * of[AND_LAST];
    const V<A> bent_v = -2 * y * v;
    const V<A> ends = of[ENDS_LINEAR] == 0 ? of[ENDS] : fma<A>(of[ENDS_LINEAR], away, of[ENDS]);
    const V<A> h = times<A>(yhat, inner + bent_v * ends) * slope * of[LAST] * of[AND_LAST];
    return with_off ? h + of[OFF_BY] * off * bent_v * slope * of[OFF_LAST] * of[OFF_AND_LAST] : h;
  }
};
// Finds the largest finite |v| where e is not 0, and of all.
template <class A> ALWAYS void most_of(V<A> v, V<A> e, V<A>* most) {
  const V<A> size = v < 0 ? -v : v, finite = size < (A)INF ? size : V<A>{}, counts = e == 0 ? V<A>{} : finite;
  most[0] = counts > most[0] ? counts : most[0];
  most[1] = finite > most[1] ? finite : most[1];
}
// The power of two by which v is divided: that of the largest v where yhat is not 0, unless others would be beyond the range then.
ALWAYS int64_t exponent_of_v(double probable, double any, int64_t least) {
  const int64_t k = Wide(probable).k, all = Wide(any).k - 60, most = k > all ? k : all;
  return most > least ? most : least;
}

// Computes the derivative of dz along v, and what Product lists, of one row.
template <class T, class O> ALONE void curvature(const Job& j, Scratch<typename T::A>& f, int64_t i) {
  SHAPE
  typedef plain<A> P;
  const S* z = row<T>(j, i);
  const A* v = (const A*)j.v + i * j.v_step;
  const typename O::S* w = off<O>(j, i);
  S* dz = (S*)j.dz + i * j.dz_step;
  if (ignored(j, i)) {
    for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step + i] = 0;
    for (int64_t c = 0; c < j.cols; c++) dz[c] = 0;
    return;
  }
  const int64_t t = find_label<T, O>(j, i), j0 = largest<T>(z, j.cols, nullptr), blocks = blocks_of(j.cols);
  const bool labelled = within(t, j.cols), bent = is_bent(j);
  most_probable_apart<T, O, FUSED>(j, f, i, j0);
  A slope0, slope_t = 1, y_t = 0;
  const A y0 = softcapped<T>(j, z + j0, slope0), scale = j.scale;
  if (labelled) y_t = softcapped<T>(j, z + t, slope_t);

  V<A> most[2] = {};
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t k0 = b * BLOCK, n = least(j.cols - k0, BLOCK);
    each_unit<T, O>(z + k0, nullptr, v + k0, nullptr, n, false, [&](int64_t k, int u, const auto& at) {
      V<A> vk[T::PER];
      load_off<T, P>(at.v, u, vk);
      for (int c = 0; c < T::PER; c++) most_of<A>(vk[c], f.b.down[b] == 0 ? V<A>{} : read(f.e + k0 + k + c * L + u * W), most);
      return T::pack(vk);
    });
  }
  A probable = v[j0] < 0 ? -v[j0] : v[j0], any = probable;
  for (int k = 0; k < W; k++) {
    probable = most[0][k] > probable ? most[0][k] : probable;
    any = most[1][k] > any ? most[1][k] : any;
  }
  const int64_t size = exponent_of_v(probable, any, sizeof(A) == 4 ? -126 : -1000);
  const A by = Wide(1, -size).value(), v_j0 = v[j0] * by, v_at_t = labelled ? v[t] * by : 0, v0 = v_j0 * slope0;

  double p = 0, q = 0, all_off = 0, off_v = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t k0 = b * BLOCK, n = least(j.cols - k0, BLOCK);
    const Shift<A> shift(splat((A)f.b.m[b]), scale);
    Sum<A> sp, sq, so, sd;
    each_unit<T, O>(z + k0, w ? w + k0 : w, v + k0, nullptr, n, false, [&](int64_t k, int u, const auto& at) {
      V<A> vk[T::PER], zk[T::PER], o[T::PER] = {};
      load_off<T, P>(at.v, u, vk);
      load_unit<T>(at.z, f.y ? f.y + k0 : nullptr, k, u, zk);
      if (w) load_off<T, O>(at.off, u, o);
      for (int c = 0; c < T::PER; c++) {
        const int64_t from_here = k + c * L + u * W;
        const V<A> slope = f.y ? read(f.slope + k0 + from_here) : splat<A>(1), away = splat(v0) - vk[c] * by * slope;
        const V<A> ek = read(f.e + k0 + from_here), term = times<A>(ek, away);
        sp.add(u, term);
        sq.add(u, times<A>(term, fma<A>(splat(-scale), zk[c] - shift.sub, shift.rest)));
        if (!w) continue;
        so.add(u, o[c]);
        sd.add(u, times<A>(o[c], -away));
      }
      return T::pack(vk);
    });
    const double down = f.b.down[b] * (1 / Exp<A>::lift), pb = sp.total();
    p += times(down, pb);
    q += times(down, sq.total() + times(pb, above(y0, shift.sub[0], shift.rest[0], j.scale)));
    all_off += so.total();
    off_v += sd.total();
  }
  Curved<A> c;
  auto set = [](double* lanes, double value) { store(lanes, splat(value)); };
  set(c.most_v[0], probable);
  set(c.most_v[1], any);
  for (int k = 0; k < NUMBERS; k++) set(c.number[k], number(j, (Number)k, i));
  set(c.m, f.x.part[M][0]);
  set(c.s, f.x.part[Part::S][0]);
  set(c.u, f.x.part[U][0]);
  set(c.p, p);
  set(c.q, q);
  set(c.all_off, all_off);
  set(c.off_v, off_v);
  set(c.z0, y0);
  set(c.zt, y_t);
  set(c.v0, v0);
  set(c.vt, v_at_t * slope_t);
  set(c.size, size);
  set(c.slope0, slope0);
  set(c.slope_t, slope_t);
  set(c.bent0, bent ? -2 * y0 * v_j0 : 0);
  set(c.bent_t, bent ? -2 * y_t * v_at_t : 0);
  set(c.off0, w ? get<O>(w + j0) : 0);
  set(c.off_t, labelled && w ? get<O>(w + t) : 0);
  set(c.labelled, labelled);
  set(c.at_top, labelled && t == j0);
  curve<A>(j, c, Lanes<double>::W);
  if (c.wide[0] != 0) return WideRow(j, z, i).curvature(t);
  for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step + i] = c.product[k][0];
  if (!c.of[LIVE][0]) {
    for (int64_t k = 0; k < j.cols; k++) dz[k] = 0;
    return;
  }
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t k0 = b * BLOCK, n = least(j.cols - k0, BLOCK);
    A first;
    put_factors(c, 0, f.b.down[b], first);
    const Entries<A> entries(j, c, 0, true);
    each_unit<T, O>(z + k0, w ? w + k0 : w, v + k0, dz + k0, n, j.stream, [&](int64_t k, int u, const auto& at) {
      V<A> vk[T::PER], zk[T::PER], o[T::PER] = {};
      load_off<T, P>(at.v, u, vk);
      load_unit<T>(at.z, f.y ? f.y + k0 : nullptr, k, u, zk);
      if (w) load_off<T, O>(at.off, u, o);
      for (int c = 0; c < T::PER; c++) {
        const int64_t from_here = k + c * L + u * W;
        const V<A> slope = f.y ? read(f.slope + k0 + from_here) : splat<A>(1);
        vk[c] = entries.entry(read(f.e + k0 + from_here) * first, vk[c] * by, zk[c], slope, o[c]);
      }
      return T::pack(vk);
    });
  }
  put<T>(dz + j0, c.at_j0[0]);
  if (labelled) put<T>(dz + t, c.at_t[0]);
}

// As `curvature`, of up to L short rows from `first` on.
template <class T, class O> ALONE void short_curvature(const Job& j, Scratch<typename T::A>& f, int64_t first, int some) {
  SHAPE
  const int64_t C = j.cols;
  const A scale = j.scale;
  const bool capped = j.capped, with_off = j.off, bent = is_bent(j);
  Panel<A> p(f.e);
  A label[L], most_v[2][L], by[L], v_0[L], v_t[L], y_t[L], slope_t[L], off_t[L], off_0[L];
  Curved<A> c;
  fill<T, O>(j, p, first, some, with_off, capped, label);
  rows_to_panel<plain<A>>((const A*)j.v + first * j.v_step, j.v_step, j.v_column, C, some, p.v);
  __builtin_memcpy(p.z, p.e, C * L * sizeof(A));
  EACH(u) {  // the most probable class, and what is at both columns
    const int at = u * W;
    V<A> most = splat<A>(-INF), j0 = {}, column = {}, v = {}, v0 = {}, y = {}, slope = splat<A>(1), off = {}, off0 = {};
    const V<A> t = read(label + at);
    for (int64_t k = at; k < C * L; k += L) {
      const V<A> z = read(p.e + k);
      j0 = z > most ? column : j0;
      most = z > most ? z : most;
      v = column == t ? read(p.v + k) : v;
      y = column == t ? z : y;
      if (capped) slope = column == t ? read(p.slope + k) : slope;
      if (with_off) off = column == t ? read(p.off + k) : off;
      column = column + 1;
    }
    column = V<A>{};
    for (int64_t k = at; k < C * L; k += L) {
      v0 = column == j0 ? read(p.v + k) : v0;
      if (with_off) off0 = column == j0 ? read(p.off + k) : off0;
      column = column + 1;
    }
    store(p.apart + at, j0);
    store(v_0 + at, v0);
    store(v_t + at, v);
    store(y_t + at, y);
    store(slope_t + at, slope);
    store(off_t + at, off);
    store(off_0 + at, off0);
  }
  take_apart<A>(p, C, false, capped);
  sum_panel<A>(p, C, scale, true, false, j.entropy);
  put_panel_parts<A>(f, p, j.scale, nullptr, true, j.entropy);
  EACH(u) {
    V<A> most[2] = {};
    for (int64_t k = u * W; k < C * L; k += L) most_of<A>(read(p.v + k), read(p.e + k), most);
    most_of<A>(read(v_0 + u * W), splat<A>(1), most);
    store(most_v[0] + u * W, most[0]);
    store(most_v[1] + u * W, most[1]);
  }
  for (int g = 0; g < L; g++) {
    c.most_v[0][g] = most_v[0][g];
    c.most_v[1][g] = most_v[1][g];
    c.size[g] = exponent_of_v(most_v[0][g], most_v[1][g], sizeof(A) == 4 ? -126 : -1000);
    by[g] = Wide(1, -(int64_t)c.size[g]).value();
  }
  Sum<A> sp, sq, so, sd;
  EACH(u) {
    const int at = u * W;
    const V<A> v0 = read(v_0 + at) * read(by + at) * read(p.slope_at + at), sub = read(p.sub + at), rest = read(p.rest + at);
    for (int64_t k = at; k < C * L; k += L) {
      const V<A> slope = capped ? read(p.slope + k) : splat<A>(1), v = read(p.v + k) * read(by + at), away = v0 - v * slope;
      const V<A> term = times<A>(read(p.e + k), away);
      store(p.v + k, v);
      sp.add(u, term);
      sq.add(u, times<A>(term, fma<A>(splat(-scale), read(p.z + k) - sub, rest)));
      if (!with_off) continue;
      so.add(u, read(p.off + k));
      sd.add(u, times<A>(read(p.off + k), -away));
    }
  }
  sp.lanes(c.p);
  sq.lanes(c.q);
  so.lanes(c.all_off);
  sd.lanes(c.off_v);
  for (int g = 0; g < L; g++) {
    const int64_t i = first + least(g, some - 1);
    const double down = f.b.down[g] * (1 / Exp<A>::lift);
    for (int k = 0; k < NUMBERS; k++) c.number[k][g] = ignored(j, i) ? 0 : number(j, (Number)k, i);
    c.m[g] = f.x.part[M][g];
    c.s[g] = f.x.part[Part::S][g];
    c.u[g] = f.x.part[U][g];
    c.q[g] = times(down, c.q[g] + times(c.p[g], above(p.at[g], p.sub[g], p.rest[g], j.scale)));
    c.p[g] = times(down, c.p[g]);
    c.z0[g] = p.at[g];
    c.zt[g] = y_t[g];
    c.slope0[g] = p.slope_at[g];
    c.slope_t[g] = slope_t[g];
    c.v0[g] = v_0[g] * by[g] * p.slope_at[g];
    c.vt[g] = v_t[g] * by[g] * slope_t[g];
    c.bent0[g] = bent ? -2 * p.at[g] * (v_0[g] * by[g]) : 0;
    c.bent_t[g] = bent ? -2 * y_t[g] * (v_t[g] * by[g]) : 0;
    c.off0[g] = off_0[g];
    c.off_t[g] = off_t[g];
    c.labelled[g] = label[g] >= 0;
    c.at_top[g] = label[g] >= 0 && label[g] == p.apart[g];
  }
  curve<A>(j, c, L);
  const WideRows<T> wide(j, first, some, [&](int g) { return c.wide[g] != 0 && !ignored(j, first + g); });
  A first_factor[L], at_j0[L], at_t[L];
  for (int g = 0; g < L; g++) {
    put_factors(c, g, f.b.down[g], first_factor[g]);
    at_j0[g] = c.at_j0[g];
    at_t[g] = c.at_t[g];
    const bool skip = ignored(j, first + least(g, some - 1));
    for (int k = 0; k < PRODUCTS && g < some; k++) j.result[k * j.result_step + first + g] = skip ? 0 : c.product[k][g];
  }
  EACH(u) {
    const int at = u * W;
    const Entries<A> entries(j, c, u, false);
    const V<A> j0 = read(p.apart + at), t = read(label + at);
    V<A> column = {};
    for (int64_t k = at; k < C * L; k += L) {
      const V<A> slope = capped ? read(p.slope + k) : splat<A>(1), yhat = read(p.e + k) * read(first_factor + at);
      V<A> h = entries.entry(yhat, read(p.v + k), read(p.z + k), slope, with_off ? read(p.off + k) : V<A>{});
      h = column == j0 ? read(at_j0 + at) : h;
      h = column == t ? read(at_t + at) : h;
      h = entries.of[LIVE] == 0 ? V<A>{} : h;
      column = column + 1;
      auto slots = T::narrow(h);
      __builtin_memcpy(p.e + k, &slots, sizeof slots);
    }
  }
  panel_to_rows<T>(p.e, C, (S*)j.dz + first * j.dz_step, j.dz_step, j.dz_column, some);
  wide.each([&](const WideRow& row, int g) { row.curvature(label[g]); });
}

// Computes row i in wide numbers.
template <class T, Op op> ALWAYS void wide_row(const Job& j, int64_t i) {
  const WideRow row_i(j, row<T>(j, i), i);
  if (op == LOG_SOFTMAX) return row_i.log_softmax();
  if (ignored(j, i)) return row_i.ignored(op);
  const int64_t t = row_i.label();
  op == CURVATURE ? row_i.curvature(t) : row_i.loss_and_gradient(op, t);
}

// Computes the rows [first, last), a tile at a time, so that a tile stays in the cache between its two passes; or one phase of one long
// row.
template <class T, class O, Op op> void run(const Job& j, int64_t first, int64_t last, void* scratch, Phase phase, int64_t block) {
  Scratch<typename T::A> f(scratch, j);
  if (phase == ALL && j.extreme) {
    for (int64_t i = first; i < last; i++) wide_row<T, op>(j, i);
    return;
  }
  if constexpr (op == CURVATURE || op == LOG_SOFTMAX) {
    const bool lanes_are_rows = op == CURVATURE && j.cols <= SHORT_ROW;
    const int64_t tile = lanes_are_rows ? (int64_t)Lanes<typename T::A>::L : 1;
    for (int64_t i = first; i < last; i += tile) {
      if constexpr (op == LOG_SOFTMAX)
        log_softmax<T>(j, f, i);
      else if (lanes_are_rows)
        short_curvature<T, O>(j, f, i, least(tile, last - i));
      else
        curvature<T, O>(j, f, i);
    }
  } else {
    const int64_t t = label(j, first);
    if (phase == FIND_LABEL) j.found[first] = find_label<T, O>(j, first);
    if (phase == SUM_BLOCK && !ignored(j, first)) sum_block<T, O, op>(j, f, first, t, 0, block, one_pass(j), j.off);
    if (phase == FINISH_ROW) finish_rows<T, O, op>(j, f, first, &t, 1);
    if constexpr (op != FORWARD)
      if (phase == WRITE_BLOCK) write_block<T, O>(j, f, first, t, 0, block);
    if (phase == ALL) {
      const bool lanes_are_rows = j.cols <= SHORT_ROW;
      const int64_t blocks = blocks_of(j.cols), tile = lanes_are_rows ? (int64_t)Lanes<typename T::A>::L : tile_of(j.cols);
      for (int64_t i = first; i < last; i += tile) {
        const int some = least(tile, last - i);
        if (lanes_are_rows) {
          is_plain(j) ? short_rows<T, T, op, true>(j, f, i, some) : short_rows<T, O, op, false>(j, f, i, some);
          continue;
        }
        int64_t* labels = f.x.label;
        for (int g = 0; g < some; g++) {
          const bool known = label(j, i + g) == LARGEST && !j.off_by_row;
          labels[g] = find_label<T, O>(j, i + g, f.b.top + g);
          if (!ignored(j, i + g))
            for (int64_t b = 0; b < blocks; b++) sum_block<T, O, op>(j, f, i + g, labels[g], g, b, one_pass(j), j.off, known);
        }
        finish_rows<T, O, op>(j, f, i, labels, some);
        if constexpr (op != FORWARD)
          for (int g = 0; g < some; g++)
            for (int64_t b = 0; b < blocks; b++) write_block<T, O>(j, f, i + g, labels[g], g, b);
      }
    }
  }
  if (j.stream) fence();
}
}

#define OPS_OF(T, O) {run<T, O, FORWARD>, run<T, O, BACKWARD>, run<T, O, FUSED>, run<T, O, CURVATURE>, run<T, T, LOG_SOFTMAX>}
#define STRING_(a) #a
#define STRING(a) STRING_(a)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern const Isa JOIN(isa_, SOFTXENT_NAME);
const Isa JOIN(isa_, SOFTXENT_NAME) = {STRING(SOFTXENT_NAME),
                                       {{OPS_OF(f32, f32), OPS_OF(f32, f32)},
                                        {OPS_OF(f64, f64), OPS_OF(f64, f64)},
                                        {OPS_OF(bf16, bf16), OPS_OF(bf16, f32)},
                                        {OPS_OF(f16, f16), OPS_OF(f16, f32)}},
                                       merge_shards};
}
