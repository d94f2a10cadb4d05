// The kernel: softmax cross-entropy of the rows of a matrix. This source is compiled once for each instruction set
// (-DSOFTXENT_NAME=avx2 -mavx2 ...). Everything is in an anonymous namespace and calls no inline function of a library, so that the linker
// cannot merge a symbol with AVX-512 code into an object for other processors (a test checks this with nm). The equations, as in formula.py:
//
//   truth_k = y [k == label] + r off_k,   loss = - sum_k truth_k log yhat_k + q/2 lse^2,   dz = g ((mass + q lse) yhat - truth)
//
// The label's column is kept apart from the others, in whose sums it counts as -inf, so that nothing cancels where yhat is near 1.
#include "kernel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace softxent { namespace {
#include "vec.h"
#define SHAPE typedef typename T::A A; typedef typename T::S S; constexpr int W = Lanes<A>::W, L = Lanes<A>::L, G = 4 * L;
constexpr double INF = __builtin_inf();

struct Tile {                          // up to TILE rows, between the pass that sums and the pass that writes dz; one double for each row
  double part[PARTS][TILE];            // m, s, o, d, zt, wt of the row (partials.py)
  double scale[TILE], drop[TILE], hot[TILE];   // dz = scale e - drop off, and hot at the label
};
struct Blocks {                        // the blocks of a long row, or the only block of each row of the tile; one double for each block
  double *top, *m, *sub, *n, *s, *o, *d, *down;    // the row's m; the block's m, shift (sub + n ln 2) and sums; e^(shift - top)
};
template <class A> struct Scratch {
  Tile& x; Blocks b; A* e;             // e: the exponentials; if lanes are rows, a panel of them
  Scratch(void* p, int64_t cols) : x(*(Tile*)p) {
    const int64_t some = (TILE + blocks_of(cols) + 7) / 8 * 8;
    double* q = (double*)((char*)p + 4096);
    double** field[] = {&b.top, &b.m, &b.sub, &b.n, &b.s, &b.o, &b.d, &b.down};
    for (double** f : field) *f = q, q += some;
    e = (A*)q;
  }
};

ALWAYS double truth_of(const Job& j, Truth kind, int64_t i) { return j.truth[kind * j.truth_step + i * j.truth_row]; }
ALWAYS bool dead(const Job& j, int64_t i) { return truth_of(j, Y, i) == 0 && truth_of(j, R, i) == 0 && truth_of(j, Q, i) == 0; }
ALWAYS int64_t label(const Job& j, int64_t i, int64_t from = 0) { return (int64_t)((uint64_t)j.label[i * j.label_step] - (uint64_t)from); }
ALWAYS bool within(int64_t t, int64_t n) { return (uint64_t)t < (uint64_t)n; }
template <class T> ALWAYS const typename T::S* row(const Job& j, int64_t i) { return (const typename T::S*)j.z + i * j.z_step; }
template <class O> ALWAYS const typename O::S* off(const Job& j, int64_t i) { return j.off ? (const typename O::S*)j.off + i * j.off_step : nullptr; }
template <class T> ALWAYS double get(const typename T::S* p) { return T::widen(decltype(T::narrow(V<typename T::A>{})){*p})[0]; }
template <class T> ALWAYS void put(typename T::S* p, typename T::A v) { *p = T::narrow(splat(v))[0]; }

// Returns `size` columns of a row of n, from column k on: a pointer into the row or, if they contain the label t or the end of the row, a
// copy in which these columns are `fill`.
template <class S> ALWAYS const S* columns_without_label(const S* z, int64_t k, int64_t n, int64_t t, int size, S fill, S* copy) {
  if (__builtin_expect(k + size <= n && !within((int64_t)((uint64_t)t - (uint64_t)k), size), 1)) return z + k;
  for (int64_t i = 0; i < size; i++) copy[i] = k + i < n && k + i != t ? z[k + i] : fill;
  return copy;
}

// load reads native vector u of each of the 4 virtual vectors of a group of z. load_off reads it for a unit (PER virtual vectors) of off, in the
// order of the elements of T.
template <class T> ALWAYS void load(const typename T::S* p, int u, V<typename T::A>* v) {
  SHAPE
  for (int i = 0; i < 4; i += T::PER) T::load(p + i * L + T::PER * u * W, v + i);
}
template <class T, class O> ALWAYS void load_off(const typename O::S* p, int u, V<typename T::A>* v) {
  SHAPE
  if constexpr (T::PER == O::PER) O::load(p + T::PER * u * W, v);
  else for (int w = 0; w < W; w++) v[0][w] = p[2 * (u * W + w)], v[1][w] = p[2 * (u * W + w) + 1];
}

// ---- one block of a row; vector lanes are columns ----
template <class T> ALWAYS typename T::A top(const typename T::S* z, int64_t n, int64_t t) {    // the largest logit except the label's
  SHAPE
  V<A> m[4]; A a[L];
  FOUR(c) m[c] = splat<A>(-INF);
  for (int64_t k = 0; k < n; k += G) {
    S copy[G]; const S* q = columns_without_label(z, k, n, t, G, T::low, copy);
    EACH(u) { V<A> v[4]; load<T>(q, u, v); FOUR(c) m[c] = v[c] > m[c] ? v[c] : m[c]; }
  }
  m[0] = m[0] > m[1] ? m[0] : m[1]; m[2] = m[2] > m[3] ? m[2] : m[3];
  store(a, m[0] > m[2] ? m[0] : m[2]);
  for (int w = W / 2; w; w /= 2) for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
  return a[0] + 0;                     // turns -0 into 0, so that the order of the comparisons does not matter
}

// Computes e := lift e^(z - shift) and returns the sum of e^(z - shift). Prefetches the next block of z.
template <class T, Op op> ALWAYS double exponentials(const typename T::S* z, int64_t n, int64_t t, const Shift<typename T::A>& shift, typename T::A* e) {
  SHAPE
  Sum<A> s;
  for (int64_t k = 0; k < n; k += G) {
    S copy[G]; const S* q = columns_without_label(z, k, n, t, G, T::low, copy);
    for (int i = 0; i < G * (int)sizeof(S); i += 64) __builtin_prefetch((const char*)(z + k + n) + i, 0, op == FORWARD || T::PER > 1 ? 2 : 3);    // into L2 or L1, whichever was faster
    EACH(u) {
      V<A> v[4];
      load<T>(q, u, v);
      FOUR(c) v[c] -= shift.sub;
      exps<A, 4>(v, shift.magic, shift.low);
      if (op != FORWARD) FOUR(c) store(e + k + c * L + u * W, v[c]);
      if (op != BACKWARD) s.add(u, v);
    }
  }
  return op == BACKWARD ? 0 : s.total() * (1 / Exp<A>::lift);
}

template <class A> ALWAYS V<A> times(V<A> w, V<A> v) { return w == 0 ? V<A>{} : w * v; }     // 0 where w is 0, even if v is not finite

// Computes o := sum off and d := sum off (m - z), over the columns except the label's.
template <class T, class O> ALWAYS void dot(const typename T::S* z, const typename O::S* w, int64_t n, int64_t t, typename T::A m, double& o, double& d) {
  SHAPE
  Sum<A> so, sd;
  for (int64_t k = 0; k < n; k += G) {
    S copy[G]; typename O::S other[G];
    const S* q = columns_without_label<S>(z, k, n, -1, G, 0, copy); const typename O::S* p = columns_without_label<typename O::S>(w, k, n, t, G, 0, other);
    EACH(u) {
      V<A> a[4], b[4];
      for (int i = 0; i < 4; i += T::PER) load_off<T, O>(p + i * L, u, a + i);
      load<T>(q, u, b);
      FOUR(c) b[c] = times<A>(a[c], fma<A>(splat<A>(-0.5), b[c], splat<A>(m * (A)0.5)));     // halves, because m - z may overflow
      so.add(u, a); sd.add(u, b);
    }
  }
  o = so.total(); d = 2 * sd.total();
}

// The factors of dz = scale e - drop off. The scale is divided by the lift of e, as two factors, so that no intermediate result overflows or is
// subnormal unless the result is. If drop may be subnormal, which off may be large enough to balance, everything is 2^100 times as large until
// the end.
template <class A> struct Scale {
  A first, last, minus, end;
  ALWAYS explicit Scale(double scale, double drop) {
    const bool tiny = drop && drop < TINY && drop > -TINY && scale < 0x1p-20 && scale > -0x1p-20;
    if (tiny) scale *= 0x1p100, drop *= 0x1p100;
    const bool small = scale < 1 && scale > -1;
    first = small ? scale : scale * (1 / Exp<A>::lift); last = small ? 1 / Exp<A>::lift : 1;
    minus = -drop; end = tiny ? 0x1p-100 : 1;
  }
  static constexpr double TINY = sizeof(A) == 4 ? 0x1p-100 : 0x1p-990;
};

// Computes dz := scale e - drop off. Stores past the caches must be aligned. If a 16-bit dz is not, it is first written into the memory of e.
template <class T, class O, bool with_off> ALWAYS void write(typename T::A* e, double scale, double drop, const typename O::S* w, typename T::S* dz, int64_t n, bool stream, const typename T::S* next) {
  SHAPE
  constexpr int64_t per = T::PER * W, unit = T::PER * L;                  // entries of dz: a vector, a unit
  const Scale<A> by(scale, drop);
  const int64_t head = stream ? -((uintptr_t)dz / sizeof(S)) % per : 0;
  const bool detour = T::PER > 1 && head;                                  // two elements share a slot, so a unit cannot begin anywhere
  S* to = detour ? (S*)e : dz;
  int64_t k = 0;
  auto value = [&](const typename O::S* p, int u) {
    V<A> v[T::PER], away[T::PER];
    for (int i = 0; i < T::PER; i++) v[i] = read(e + k + i * L + u * W) * by.first * by.last;
    if (with_off) { load_off<T, O>(p, u, away); for (int i = 0; i < T::PER; i++) v[i] = fma<A>(splat(by.minus), away[i], v[i]) * by.end; }
    return T::pack(v);
  };
  auto part = [&](int64_t stop) {                                          // the columns up to `stop`, less than a unit
    S copy[unit]; typename O::S other[unit];
    const typename O::S* p = with_off ? columns_without_label<typename O::S>(w, k, n, -1, unit, 0, other) : w;
    EACH(u) { const auto v = value(p, u); __builtin_memcpy(copy + u * per, &v, sizeof v); }
    for (int64_t i = 0; k < stop; ) to[k++] = copy[i++];
  };
  if (head && !detour) part(least(head, n));
  if (stream && !detour) for (; k + unit <= n; k += unit) EACH(u) {
    if (T::PER == 1 && next) __builtin_prefetch(next + k + u * per, 0, 2);   // prefetches the next row (no gain for 16-bit types)
    past_caches(dz + k + u * per, value(w + k, u));
  }
  for (; k + unit <= n; k += unit) EACH(u) { const auto v = value(w + k, u); __builtin_memcpy(to + k + u * per, &v, sizeof v); }
  part(n);
  if (!detour) return;
  for (k = 0; k < least(head, n); k++) dz[k] = to[k];
  for (; k + per <= n; k += per) { V<A> v; __builtin_memcpy(&v, to + k, sizeof v); past_caches(dz + k, v); }
  for (; k < n; k++) dz[k] = to[k];
}

// ---- from the sums of a row to its results ----

// Computes down := e^(shift - top), and 0 for a block of -inf.
ALWAYS void lower(const Blocks& b, int64_t n) {
  typedef Exp<double> K;
  for (int64_t i = 0; i < n; i += Lanes<double>::W) {
    V<double> m = read(b.m + i), k = read(b.n + i), x = fma<double>(k, splat(K::ln2_hi), read(b.sub + i) - read(b.top + i));
    store(b.down + i, m == -INF ? V<double>{} : exp(fma<double>(k, splat(K::ln2_lo), x)));
  }
}

// Computes the loss, lse and the coefficients of dz for `some` rows from `first` on, as partials.finish and formula.py do. With the log-odds
// against the label, a = (m - zt) + log s, and w = e^-|a|:
//   nll = log(1 + e^a), miss = 1 - yhat_t = 1 / (1 + e^-a), over = lse - m = log s + log(1 + e^-a)
template <Op op> ALONE void finish(const Job& j, Tile& x, int64_t first, int some) {
  double truth[TRUTHS][TILE], loss[TILE], lse[TILE];
  for (int g = 0; g < some; g++) {
    for (int k = 0; k < TRUTHS; k++) truth[k][g] = truth_of(j, (Truth)k, first + g);
    const bool none = dead(j, first + g);
    for (int k = 0; k < PARTS; k++) {
      double& part = x.part[k][g];
      if (op == BACKWARD) part = j.parts[k * j.parts_step + first + g];
      else if (none) part = k == M || k == ZT ? -INF : 0;
      if (op != BACKWARD && j.parts) j.parts[k * j.parts_step + first + g] = part;
    }
  }
  const V<double> zero = {}, one = splat(1.0);
  for (int g = 0; g < some; g += Lanes<double>::W) {
    V<double> m = read(x.part[M] + g), s = read(x.part[S] + g), o = read(x.part[O] + g), d = read(x.part[D] + g), zt = read(x.part[ZT] + g);
    V<double> y = read(truth[Y] + g), r = read(truth[R] + g), q = read(truth[Q] + g), up = read(truth[G] + g), log_s = log(s);
    V<double> gap = zt == INF ? zt - zt : m - zt, back = gap - m, low = (m - (gap - back)) - (zt + back);     // m - zt = gap + low
    V<double> a = gap + log_s, w = exp(a < 0 ? gap : -gap);
    w += low == low ? (a < 0 ? w * low : -w * low) : zero;
    V<double> odds = a < 0 ? s * w : w / s, soft = log1p(odds);
    V<double> nll = (a < 0 ? zero : a) + soft, miss = (a < 0 ? odds : one) / (1 + odds), over = a < 0 ? soft - gap : log_s + soft;
    V<double> sum = zt > m ? zt + nll : m + over, at = y + r * read(x.part[WT] + g), lift = q == 0 ? zero : q * sum;
    V<double> rest = r * o + lift, mass = at + rest;
    store(loss + g, times<double>(at, nll) + times<double>(r, d + times<double>(o, over)) + 0.5 * times<double>(lift, sum));
    store(lse + g, sum);
    store(x.scale + g, up * mass * (s == 0 ? miss : miss / s));
    store(x.drop + g, up * r);
    store(x.hot + g, up * (rest - mass * miss));
  }
  for (int g = 0; g < some; g++) if (op != BACKWARD) {
    const bool none = dead(j, first + g);
    j.loss[first + g] = none ? 0 : loss[g]; j.lse[first + g] = none ? -INF : lse[g];
  }
}

// ---- the phases of a row; vector lanes are columns ----

// Computes the exponentials and the sums of block b of row i.
template <class T, class O, Op op> ALONE void sum_block(const Job& j, Scratch<typename T::A>& f, int64_t i, int g, int64_t b) {
  SHAPE
  const int64_t k = b * BLOCK, n = least(j.cols - k, BLOCK), t = label(j, i, k), at = g + b;
  const S* z = row<T>(j, i) + k;
  const A m = top<T>(z, n, t);
  const Shift<A> shift(splat(m));
  f.b.m[at] = m; f.b.sub[at] = shift.sub[0]; f.b.n[at] = shift.n[0];
  f.b.s[at] = exponentials<T, op>(z, n, t, shift, f.e + g * whole(j.cols) + k);
  f.b.o[at] = f.b.d[at] = 0;
  if (op != BACKWARD && j.off) dot<T, O>(z, off<O>(j, i) + k, n, t, m == -(A)INF ? 0 : m, f.b.o[at], f.b.d[at]);
}

// Merges the sums of the blocks of each row and computes its results.
template <class T, class O, Op op> ALONE void finish_rows(const Job& j, Scratch<typename T::A>& f, int64_t first, int some) {
  const int64_t blocks = blocks_of(j.cols);
  const Blocks& b = f.b;
  for (int g = 0; g < some; g++) {
    double m = -INF;
    if (op == BACKWARD) m = j.parts[M * j.parts_step + first + g];
    else for (int64_t k = g; k < g + blocks; k++) m = b.m[k] > m ? b.m[k] : m;
    for (int64_t k = g; k < g + blocks; k++) b.top[k] = m;
  }
  lower(b, some - 1 + blocks);
  for (int g = 0; g < some && op != BACKWARD; g++) {
    double s = 0, o = 0, d = 0;
    for (int64_t k = g; k < g + blocks; k++) {
      s += b.s[k] * b.down[k]; o += b.o[k];
      d += b.d[k] + (b.o[k] == 0 || b.m[k] == b.top[k] ? 0 : b.o[k] * (b.top[k] - b.m[k]));
    }
    const int64_t i = first + g, t = label(j, i);
    const bool hit = within(t, j.cols);
    const double part[PARTS] = {b.top[g], s, o, d, hit ? get<T>(row<T>(j, i) + t) : -INF, hit && j.off ? get<O>(off<O>(j, i) + t) : 0};
    for (int k = 0; k < PARTS; k++) f.x.part[k][g] = part[k];
  }
  finish<op>(j, f.x, first, some);
}

// Writes block b of the gradient of row i.
template <class T, class O, Op op> ALONE void write_block(const Job& j, Scratch<typename T::A>& f, int64_t i, int g, int64_t b) {
  const int64_t k = b * BLOCK, n = least(j.cols - k, BLOCK), t = label(j, i, k);
  typename T::S* dz = (typename T::S*)j.dz + i * j.dz_step + k;
  if (dead(j, i)) { for (int64_t c = 0; c < n; c++) dz[c] = 0; return; }
  const typename O::S* w = off<O>(j, i);
  typename T::A* e = f.e + g * whole(j.cols) + k;
  const double scale = f.x.scale[g] * f.b.down[g + b];
  const typename T::S* next = j.ahead ? row<T>(j, i + 1) + k : nullptr;
  if (w) write<T, O, true>(e, scale, f.x.drop[g], w + k, dz, n, j.stream, next);
  else write<T, O, false>(e, scale, 0, w, dz, n, j.stream, next);
  if (within(t, n)) put<T>(dz + t, f.x.hot[g]);
}

// ---- short rows; vector lanes are rows: a panel holds L rows, and its virtual vector c their columns c ----
template <class T> ALWAYS void row_to_lane(const typename T::S* z, int64_t n, typename T::A* lane) {           // copies a row into a lane
  for (int64_t c = 0; c < n; c++) { typename T::Slot s = z[c]; __builtin_memcpy(lane + c * Lanes<typename T::A>::L, &s, sizeof s); }
}
template <class T> ALWAYS void lane_to_row(const typename T::A* lane, int64_t n, typename T::S* dz) {         // copies a lane into a row
  for (int64_t c = 0; c < n; c++) { typename T::Slot s; __builtin_memcpy(&s, lane + c * Lanes<typename T::A>::L, sizeof s); dz[c] = s; }
}
template <class T> ALWAYS void widen(typename T::A* panel, int64_t n) {                                    // converts slots to values
  typedef typename T::A A;
  if (sizeof(typename T::S) < sizeof(A)) for (int64_t k = 0; k < n; k += Lanes<A>::W) {
    decltype(T::narrow(V<A>{})) slots; __builtin_memcpy(&slots, panel + k, sizeof slots); store(panel + k, T::widen(slots));
  }
}

// Computes up to L short rows from `first` on, in all phases.
template <class T, class O, Op op> ALONE void short_rows(const Job& j, Scratch<typename T::A>& f, int64_t first, int some) {
  SHAPE
  const int64_t C = j.cols, C4 = (C + 3) / 4 * 4;
  A *e = f.e, *w = e + L * (SHORT_ROW + 4), m[L], sub[L], n[L];
  double s[L], o[L], d[L], zt[L], wt[L] = {};
  Sum<A> ss, so, sd;
  auto lane_of = [&](int g) { return first + least(g, some - 1); };       // unused lanes repeat the last row
  for (int g = 0; g < L; g++) {
    row_to_lane<T>(row<T>(j, lane_of(g)), C, e + g);
    if (j.off) row_to_lane<O>(off<O>(j, lane_of(g)), C, w + g);
  }
  widen<T>(e, C * L);
  if (j.off) widen<O>(w, C * L);
  for (int64_t k = C * L; k < C4 * L; k++) e[k] = -INF, w[k] = 0;
  for (int g = 0; g < L; g++) {
    const int64_t t = label(j, lane_of(g));
    zt[g] = -INF;
    if (!within(t, C)) continue;
    zt[g] = e[t * L + g]; e[t * L + g] = -INF;
    if (j.off) wt[g] = w[t * L + g], w[t * L + g] = 0;
  }
  EACH(u) {
    A *eu = e + u * W, *wu = w + u * W;
    V<A> most = splat<A>(-INF);
    for (int64_t c = 0; c < C; c++) { V<A> v = read(eu + c * L); most = v > most ? v : most; }
    most = most + 0;
    const Shift<A> shift(most);
    for (int64_t c = 0; c < C4; c += 4) {
      V<A> v[4], a[4], b[4];
      FOUR(k) v[k] = read(eu + (c + k) * L);
      if (op != BACKWARD && j.off) {
        const V<A> from = most == -(A)INF ? V<A>{} : most;
        FOUR(k) a[k] = read(wu + (c + k) * L), b[k] = times<A>(a[k], fma<A>(splat<A>(-0.5), v[k], from * (A)0.5));
        so.add(u, a); sd.add(u, b);
      }
      FOUR(k) v[k] = v[k] - shift.sub;
      exps<A, 4>(v, shift.magic, shift.low);
      FOUR(k) store(eu + (c + k) * L, v[k]);
      if (op != BACKWARD) ss.add(u, v);
    }
    store(m + u * W, most); store(sub + u * W, shift.sub); store(n + u * W, shift.n);
  }
  ss.lanes(s); so.lanes(o); sd.lanes(d);
  for (int g = 0; g < L; g++) {
    f.b.m[g] = m[g]; f.b.sub[g] = sub[g]; f.b.n[g] = n[g];
    f.b.top[g] = op == BACKWARD ? j.parts[M * j.parts_step + lane_of(g)] : m[g];
  }
  lower(f.b, L);
  for (int g = 0; g < L && op != BACKWARD; g++) {
    const double part[PARTS] = {f.b.m[g], s[g] * (1 / Exp<A>::lift) * f.b.down[g], o[g], 2 * d[g], zt[g], wt[g]};
    for (int k = 0; k < PARTS; k++) f.x.part[k][g] = part[k];
  }
  finish<op>(j, f.x, first, some);
  if (op == FORWARD) return;
  EACH(u) {
    A first[W], last[W], minus[W], end[W], *eu = e + u * W, *wu = w + u * W;
    for (int g = 0; g < W; g++) {
      const Scale<A> by(f.x.scale[u * W + g] * f.b.down[u * W + g], j.off ? f.x.drop[u * W + g] : 0);
      first[g] = by.first; last[g] = by.last; minus[g] = by.minus; end[g] = by.end;
    }
    for (int64_t c = 0; c < C; c++) {
      V<A> v = read(eu + c * L) * read(first) * read(last);
      auto slots = T::narrow(j.off ? fma<A>(read(minus), read(wu + c * L), v) * read(end) : v);
      __builtin_memcpy(eu + c * L, &slots, sizeof slots);
    }
  }
  for (int g = 0; g < some; g++) {
    const int64_t i = first + g, t = label(j, i);
    S* dz = (S*)j.dz + i * j.dz_step;
    if (dead(j, i)) { for (int64_t c = 0; c < C; c++) dz[c] = 0; continue; }
    lane_to_row<T>(e + g, C, dz);
    if (within(t, C)) put<T>(dz + t, f.x.hot[g]);
  }
}

// Computes the rows [first, last), a tile at a time, so that a tile stays in the cache between its two passes; or one phase of one long row.
template <class T, class O, Op op> void run(const Job& j, int64_t first, int64_t last, void* scratch, Phase phase, int64_t block) {
  Scratch<typename T::A> f(scratch, j.cols);
  if (phase == SUM_BLOCK && !dead(j, first)) sum_block<T, O, op>(j, f, first, 0, block);
  if (phase == FINISH_ROW) finish_rows<T, O, op>(j, f, first, 1);
  if (phase == WRITE_BLOCK) write_block<T, O, op>(j, f, first, 0, block);
  if (phase == ALL) {
    const bool lanes_are_rows = j.cols <= SHORT_ROW;
    const int64_t blocks = blocks_of(j.cols), tile = lanes_are_rows ? (int64_t)Lanes<typename T::A>::L : tile_of(j.cols);
    for (int64_t i = first; i < last; i += tile) {
      const int some = least(tile, last - i);
      if (lanes_are_rows) { short_rows<T, O, op>(j, f, i, some); continue; }
      for (int g = 0; g < some; g++) if (!dead(j, i + g)) for (int64_t b = 0; b < blocks; b++) sum_block<T, O, op>(j, f, i + g, g, b);
      finish_rows<T, O, op>(j, f, i, some);
      for (int g = 0; g < some && op != FORWARD; g++) for (int64_t b = 0; b < blocks; b++) write_block<T, O, op>(j, f, i + g, g, b);
    }
  }
  if (j.stream) fence();
}
}

#define OPS_OF(T, O) { run<T, O, FORWARD>, run<T, O, BACKWARD>, run<T, O, FUSED> }
#define STRING_(a) #a
#define STRING(a) STRING_(a)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern const Isa JOIN(isa_, SOFTXENT_NAME);
const Isa JOIN(isa_, SOFTXENT_NAME) = { STRING(SOFTXENT_NAME), {
  { OPS_OF(f32, f32), OPS_OF(f32, f32) }, { OPS_OF(f64, f64), OPS_OF(f64, f64) },
  { OPS_OF(bf16, bf16), OPS_OF(bf16, f32) }, { OPS_OF(f16, f16), OPS_OF(f16, f32) } } };
}
