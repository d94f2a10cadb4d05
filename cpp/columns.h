// One block of a row; vector lanes are its columns. kernel.cpp includes this file, inside its anonymous namespace.
//
// Its numbers are float or double, A (storage.h). All sums are those of double.

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

// The next columns to be read, and the place where those of this block are written later, unless it is null. Both have elements of `size`
// bytes, and are fetched while the block is summed (without that, [8192, 1000] took 30 % more time).
struct Ahead {
  const char *next, *out;
  int size;
  // Fetches a group of columns from k on.
  template <class A> ALWAYS void fetch(int64_t k, bool near) const {
    constexpr int group = 4 * 64, half = group / 2;  // bytes of A, and of a type of half the size
    auto lines = [&](int first, int last) {
      const char* p = next + k * size;
      for (int i = first; i < last; i += 64) near ? __builtin_prefetch(p + i, 0, 3) : __builtin_prefetch(p + i, 0, 2);
      if (out)
        for (int i = first; i < last; i += 64) __builtin_prefetch(out + k * size + i, 1, 2);
    };
    lines(0, half);
    if (size == sizeof(A)) lines(half, group);
  }
};

// ---- with a softcap ----

// Computes y and its slope for all columns; y is -inf at the label and after the end of the row.
template <class A> ALONE void softcap(const Job& j, const A* z, int64_t n, int64_t t, A* y, A* slope) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L, G = 4 * L;
  for (int64_t k = 0; k < n; k += G) {
    A copy[G];
    const A* q = columns_without_label<A>(z, k, n, -1, G, 0, copy);
    for (int u = 0; u < Lanes<A>::U; u++) {
      V<A> v[4], s[4];
      for (int c = 0; c < 4; c++) v[c] = read(q + c * L + u * W) * (A)j.unit;
      tanh_and_slope<A, 4>(v, s);
      for (int c = 0; c < 4; c++) {
        store(y + k + c * L + u * W, v[c]);
        store(slope + k + c * L + u * W, s[c]);
      }
    }
  }
  for (int64_t k = n; k < (n + G - 1) / G * G; k++) y[k] = -INF;
  if (within(t, n)) y[t] = -INF;
}

// A softcap bounds the logits: |scale y| <= scale. Up to MODEST, their exponentials need no shift, so that y, slope and exponential of a
// logit are computed in one pass. They are multiplied by 2^LIFT: then all of them, and their products with a slope, are normal numbers, and
// sums of four, times 2 MODEST, are finite.
constexpr double MODEST = 40;
constexpr int LIFT = 58;
ALWAYS bool one_pass(const Job& j) { return j.capped && j.scale <= MODEST && !j.off; }
enum Keep { NOTHING, PRODUCT, EACH_OF_THEM };  // what is stored: nothing; the exponential times the slope; both, and y

template <class A, Keep keep, bool hide>
ALWAYS void softcapped_group(const A* q, A unit, A scale, const A* hidden, V<A>* most, Sum<A>& s, A* y, A* slope, A* e) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  const V<A> magic = splat<A>(Exp<A>::bias + LIFT);
  for (int u = 0; u < Lanes<A>::U; u++) {
    V<A> v[4], by[4];
    for (int c = 0; c < 4; c++) v[c] = read(q + c * L + u * W) * unit;
    tanh_and_slope<A, 4>(v, by);
    if (hide)
      for (int c = 0; c < 4; c++) v[c] = v[c] + read(hidden + c * L + u * W);
    for (int c = 0; c < 4; c++) most[c] = v[c] > most[c] ? v[c] : most[c];
    if (keep == EACH_OF_THEM)
      for (int c = 0; c < 4; c++) {
        store(y + c * L + u * W, v[c]);
        store(slope + c * L + u * W, by[c]);
      }
    for (int c = 0; c < 4; c++) v[c] = v[c] * scale;
    exps<A, 4, hide>(v, magic, splat<A>(-2 * MODEST));
    s.add(u, v);
    if (keep == EACH_OF_THEM)
      for (int c = 0; c < 4; c++) store(e + c * L + u * W, v[c]);
    if (keep == PRODUCT)
      for (int c = 0; c < 4; c++) store(e + c * L + u * W, v[c] * by[c]);
  }
}

// Computes 2^LIFT e^(scale y) of a block, into e, which may be z, and stores what `keep` says. Returns the sum and, as `top`, the largest y.
template <class A, Keep keep>
ALONE double softcapped_exponentials(const Job& j, const A* z, int64_t n, int64_t t, A* y, A* slope, A* e, A& top, Ahead ahead) {
  constexpr int L = Lanes<A>::L, G = 4 * L;
  const A unit = j.unit, scale = j.scale;
  Sum<A> s;
  V<A> m[4];
  for (int c = 0; c < 4; c++) m[c] = splat<A>(-INF);
  for (int64_t k = 0; k < n; k += G) {
    ahead.fetch<A>(k, false);
    if (__builtin_expect(k + G <= n && !within(from(t, k), G), 1)) {
      softcapped_group<A, keep, false>(z + k, unit, scale, nullptr, m, s, y + k, slope + k, e + k);
      continue;
    }
    A copy[G], hidden[G];  // 0, or -inf at the label and after the end of the row
    const A* q = columns_without_label<A>(z, k, n, -1, G, 0, copy);
    for (int64_t i = 0; i < G; i++) hidden[i] = k + i < n && k + i != t ? (A)0 : -(A)INF;
    softcapped_group<A, keep, true>(q, unit, scale, hidden, m, s, y + k, slope + k, e + k);
  }
  top = largest_of<A>(m);
  return s.total();
}

// Returns the sum of e scale (top - y).
template <class A> ALONE double below_top(const A* y, const A* e, int64_t n, A scale, A top) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  Sum<A> su;
  for (int64_t k = 0; k < n; k += 4 * L)
    for (int u = 0; u < Lanes<A>::U; u++) {
      V<A> v[4], b[4];
      for (int c = 0; c < 4; c++) {
        v[c] = read(e + k + c * L + u * W);
        b[c] = scale * (top - read(y + k + c * L + u * W));
        b[c] = b[c] < (A)(3 * MODEST) ? b[c] : V<A>{};  // it is infinite in a column that is hidden, where e is 0
      }
      su.add_products(u, v, b);
    }
  return su.total();
}

// ---- exponentials and sums ----

template <class A> ALWAYS V<A> times(V<A> w, V<A> v) { return w == 0 ? V<A>{} : w * v; }  // 0 where w is 0, even if v is not finite
ALWAYS double times(double w, double v) { return w == 0 ? 0 : w * v; }

// Computes e := lift e^(scale z - shift), where e may be z, and returns the sum of e^(scale z - shift); with_u also the sum of e^(scale z -
// shift) (rest - scale (z - sub)), see Shift. The column t counts as -inf.
template <class A, Op op, bool scaled, bool with_u>
ALONE double exponentials(const A* z, int64_t n, int64_t t, Shift<A> shift, A scale, A* e, double& sum_u, Ahead ahead) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L, G = 4 * L;
  Sum<A> s, su;
  for (int64_t k = 0; k < n; k += G) {
    A copy[G];
    const A* q = columns_without_label(z, k, n, t, G, -(A)INF, copy);
    ahead.fetch<A>(k, op != FORWARD && ahead.size > 2);  // into L2 or L1, whichever was faster
    for (int u = 0; u < Lanes<A>::U; u++) {
      V<A> v[4], below[4];
      for (int c = 0; c < 4; c++) v[c] = read(q + c * L + u * W) - shift.sub;
      if (with_u)
        for (int c = 0; c < 4; c++) below[c] = fma<A>(splat(-scale), v[c], shift.rest);
      if (scaled)
        for (int c = 0; c < 4; c++) v[c] = v[c] * scale;
      if (with_u)
        for (int c = 0; c < 4; c++) below[c] = v[c] < shift.low ? V<A>{} : below[c];  // because 0 times infinity is not 0
      exps<A, 4>(v, shift.magic, shift.low);
      if (op != FORWARD)
        for (int c = 0; c < 4; c++) store(e + k + c * L + u * W, v[c]);
      if (op != BACKWARD) s.add(u, v);
      if (with_u) su.add_products(u, v, below);
    }
  }
  if (with_u) sum_u = su.total() * (1 / Exp<A>::lift);
  return op == BACKWARD ? 0 : s.total() * (1 / Exp<A>::lift);
}

template <class A, Op op>
ALWAYS double sums(const A* z, int64_t n, int64_t t, const Shift<A>& shift, A scale, A* e, double& sum_u, bool with_u, const Ahead& ahead) {
  if constexpr (op != BACKWARD)
    if (with_u) return exponentials<A, op, true, true>(z, n, t, shift, scale, e, sum_u, ahead);
  if (scale != 1) return exponentials<A, op, true, false>(z, n, t, shift, scale, e, sum_u, ahead);
  return exponentials<A, op, false, false>(z, n, t, shift, scale, e, sum_u, ahead);
}

// Computes o := sum off and d := sum off (top - z) / 2, over the columns except the label's.
template <class A> ALONE void dot(const A* z, const A* w, int64_t n, int64_t t, A top, double& o, double& d) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L, G = 4 * L;
  Sum<A> so, sd;
  for (int64_t k = 0; k < n; k += G) {
    A copy[G], other[G];
    const A* q = columns_without_label<A>(z, k, n, -1, G, 0, copy);
    const A* p = columns_without_label<A>(w, k, n, t, G, 0, other);
    for (int u = 0; u < Lanes<A>::U; u++) {
      V<A> a[4], b[4];
      for (int c = 0; c < 4; c++) a[c] = read(p + c * L + u * W);
      for (int c = 0; c < 4; c++)
        b[c] = fma<A>(splat((A)-0.5), read(q + c * L + u * W), splat(top * (A)0.5));  // halves, because top - z may overflow
      for (int c = 0; c < 4; c++) b[c] = times<A>(a[c], b[c]);
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
// As `dot`, in double, of n columns of row i from k0 on.
template <class A> RARE void dot_in_double(const Job& j, int64_t i, int64_t k0, int64_t n, int64_t t, double top, double& o, double& d) {
  const void *z = logits(j, i), *w = off(j, i);
  o = d = 0;
  for (int64_t k = k0; k < k0 + n; k++) {
    A slope;
    const double off = k - k0 == t ? 0 : off_at(j, w, k);
    o += off;
    d += times(off, 0.5 * top - 0.5 * softcapped<A>(j, read_one(z, j.type, k * j.z_column), slope));
  }
}

// ---- the gradient ----

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

// The arrays of a row at some columns, or copies of them at the end of the row.
template <class A> struct Columns {
  const A *z, *off, *v;
};
// Computes n columns of dz, unless it is null, a virtual vector at a time. f(k, u, p) returns native vector u of the columns from k on, and
// reads z, off and v, unless they are null, at p.
template <class A, class F> ALWAYS void each_vector(const A* z, const A* w, const A* v, A* dz, int64_t n, F f) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  int64_t k = 0;
  for (; k + L <= n; k += L) {
    const Columns<A> p = {z ? z + k : z, w ? w + k : w, v ? v + k : v};
#pragma GCC unroll 4
    for (int u = 0; u < Lanes<A>::U; u++) {
      const V<A> vector = f(k, u, p);
      if (dz) store(dz + k + u * W, vector);
    }
  }
  if (k == n) return;
  A copy[L], result[L], other[L], more[L];
  const Columns<A> p = {z ? columns_without_label<A>(z, k, n, -1, L, 0, copy) : z,
                        w ? columns_without_label<A>(w, k, n, -1, L, 0, other) : w,
                        v ? columns_without_label<A>(v, k, n, -1, L, 0, more) : v};
  for (int u = 0; u < Lanes<A>::U; u++) store(result + u * W, f(k, u, p));
  for (int64_t i = k; dz && i < n; i++) dz[i] = result[i - k];
}

// Computes a gradient with that of the entropy: dz := slope (unit e (a + entropy (rest - scale (z - sub))) - drop off), see Shift. With a softcap, y
// is in the place of z.
template <class A>
ALONE void put_general(const A* y, const A* slope, const A* e, double unit, double power, double a, double entropy, const Shift<A>& shift,
                       A scale, double drop, const A* w, A* dz, int64_t n) {
  constexpr int W = Lanes<A>::W;
  const double size = a < 0 ? -a : a, other = entropy < 0 ? -entropy : entropy, amplitude = size > other ? size : other;
  const double by = amplitude > 0 ? amplitude : 1;  // the larger of the two, so that the scale of e has the size of the result
  const Scale<A, double> factor(unit * by, power);
  const A first = factor.first, last = factor.last, minus = -drop, constant = a / by, linear = entropy / by;
  each_vector<A>(y, w, nullptr, dz, n, [=](int64_t k, int i, const auto& p) INLINED {
    const V<A> below = linear == 0 ? V<A>{} : linear * fma<A>(splat(-scale), read(p.z + i * W) - shift.sub, shift.rest);
    V<A> v = times<A>(read(e + k + i * W) * first * last, constant + below);
    if (w) v = fma<A>(splat(minus), read(p.off + i * W), v);
    if (slope) v = v * read(slope + k + i * W);
    return v;
  });
}
