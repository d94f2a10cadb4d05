// Rows whose numbers are very large or very small, one column at a time, in numbers with a wide exponent: no intermediate result overflows or
// is subnormal. kernel.cpp includes this file, inside its anonymous namespace, and calls it for the rows that its vectors leave out.
//
// The equations are those of the vectors. A distance between logits is formed before it is divided by the temperature.

ALWAYS double power_of_two(int64_t k) { return bits<double>((uint64_t)(1023 + k) << 52); }
struct Wide {  // f 2^k, where |f| is in [1, 2), or f is 0, infinite or NaN
  double f;
  int64_t k;
  ALWAYS Wide(double x = 0, int64_t more = 0) : f(x), k(0) {
    const double size = x < 0 ? -x : x;
    if (!(size > 0 && size < INF)) return;
    const int64_t up = size < 0x1p-1000 ? 128 : 0, e = exponent(size * (up ? 0x1p128 : 1)) - up;
    f = x * power_of_two(-(e / 2)) * power_of_two(-(e - e / 2));
    k = e + more;
  }
  static ALWAYS int64_t exponent(double x) { return (int64_t)(bits<uint64_t>(x) >> 52 & 2047) - 1023; }  // of a normal number
  ALWAYS bool finite() const { return f - f == 0; }
  ALWAYS double value() const {
    if (k < -1200 || k > 1100) return k < 0 ? f * 0.0 : f * INF;
    return f * power_of_two(k / 2) * power_of_two(k - k / 2);
  }
};
ALWAYS Wide operator*(Wide a, Wide b) { return {a.f * b.f, a.k + b.k}; }
ALWAYS Wide operator/(Wide a, Wide b) { return {a.f / b.f, a.k - b.k}; }
ALWAYS Wide operator-(Wide a) { return {-a.f, a.k}; }
ALONE Wide operator+(Wide a, Wide b) {
  if (b.f == 0 || !a.finite()) return b.finite() ? a : Wide(a.f + b.f);
  if (a.f == 0 || !b.finite()) return b;
  const Wide large = a.k < b.k ? b : a, little = a.k < b.k ? a : b;
  return large.k - little.k > 110 ? large : Wide(large.f + little.f * power_of_two(little.k - large.k), large.k);
}
ALWAYS Wide operator-(Wide a, Wide b) { return a + -b; }
ALWAYS bool operator>(Wide a, Wide b) { return a.f == -INF || b.f == INF ? false : (a - b).f > 0 || b.f == -INF; }
struct Total {  // a sum, and what its roundings lost
  Wide sum, lost;
  ALWAYS void add(Wide x) {
    const Wide s = sum + x, big = sum.k > x.k ? sum : x, little = sum.k > x.k ? x : sum;
    if (s.finite()) lost = lost + ((big - s) + little);
    sum = s;
  }
  ALWAYS Wide value() const { return sum + lost; }
};
ALWAYS Wide times(Wide a, Wide b) { return a.f == 0 ? a : a * b; }          // 0 where a is 0, even if b is not finite
ALWAYS Wide product(Wide a, Wide b) { return b.f == 0 ? b : times(a, b); }  // 0 where either is 0
ALWAYS double exp_of_minus(Wide x) {                                        // for x >= -40
  return x.k > 9 && x.finite() ? 0 : x.f == INF ? 0 : exp(splat(-x.value()))[0];
}
ALWAYS double log1p(double x) { return log1p(splat(x), splat(1 / (1 + x)))[0]; }

template <class X> double get_one(const void* p, int64_t k) { return get<X>((const typename X::S*)p + k); }
RARE double read_one(const void* p, Type type, int64_t k) {
  return type == F64 ? get_one<f64>(p, k) : type == F32 ? get_one<f32>(p, k) : type == BF16 ? get_one<bf16>(p, k) : get_one<f16>(p, k);
}
RARE void write_one(void* p, Type type, int64_t k, double x) {
  if (type == F64) put<f64>((double*)p + k, x);
  if (type == F32) put<f32>((float*)p + k, x);
  if (type == BF16) put<bf16>((uint16_t*)p + k, x);
  if (type == F16) put<f16>((uint16_t*)p + k, x);
}
ALWAYS int64_t bytes_of(Type type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }
ALWAYS const void* element(const void* p, Type type, int64_t k) { return (const char*)p + k * bytes_of(type); }
ALWAYS const void* logits(const Job& j, int64_t i) { return element(j.z, j.type, i * j.z_step); }  // of row i

class WideRow {
  const Job& j;
  const int64_t i, cols, z_column;
  const void *z, *off;
  void* dz;
  const Wide cap, by, cool, by_cap;  // the cap or 1; a transformed logit is `by` y; 1 / temperature; 1 / cap
  const bool capped;
  bool as_vectors = false;  // whether logits are transformed in the type of the computation

  struct Logit {  // with a softcap: tanh(z / cap), its slope times the cap, and what the slope is multiplied by in its derivative
    Wide y, slope, bend;
  };
  struct Prediction {  // sums of a row (partials.py), with m and zt also before the scale, as top and yt; gap is m - zt
    Wide top, yt, m, zt, gap, s, u, o, d, wt;
  };
  Wide number(Number n) const { return n < j.number_count ? j.numbers[n * j.number_step + i * j.number_row] : 0; }
  Wide weight(int64_t k) const { return off ? read_one(off, j.off_type, k * j.off_column) : 0; }
  template <class A> Logit logit_in(double x) const {
    V<A> y = splat((A)x) * (A)j.unit, slope;
    tanh_and_slope<A, 1>(&y, &slope);
    return {(double)y[0], (double)slope[0], 0};
  }
  RARE Logit logit(int64_t k) const {
    const Wide x = read_one(z, j.type, k * z_column);
    if (!capped) return {x, 1, 0};
    if (as_vectors) return j.type == F64 ? logit_in<double>(x.value()) : logit_in<float>(x.value());
    const Wide w = x * by_cap;
    V<double> y = splat(w.value()), slope;
    tanh_and_slope<double, 1>(&y, &slope);
    const Wide tanh = w.finite() && w.k < -40 ? w : Wide(y[0]);
    return {tanh, slope[0], j.gauss_newton ? Wide(0) : Wide(-2) * tanh * by_cap};
  }
  Wide distance(Wide top, Wide y) const { return y.f == -INF ? Wide(INF) : (top - y) * by; }
  static Wide gap(Wide top, Wide yt, Wide by) { return yt.f == INF ? yt - yt : yt.f == -INF && top.f > -INF ? Wide(INF) : (top - yt) * by; }

 public:
  RARE WideRow(const Job& j, const void* z, int64_t i, int64_t z_column)
      : j(j),
        i(i),
        cols(j.cols),
        z_column(z_column),
        z(z),
        off(j.off ? element(j.off, j.off_type, i * j.off_step) : nullptr),
        dz(j.dz ? (char*)j.dz + i * j.dz_step * bytes_of(j.type) : nullptr),
        cap(j.cap < INF ? Wide(j.cap) : Wide(1)),
        by(cap / Wide(j.temperature)),
        cool(Wide(1) / Wide(j.temperature)),
        by_cap(Wide(1) / Wide(j.cap)),
        capped(j.cap < INF) {}
  WideRow(const Job& j, int64_t i) : WideRow(j, logits(j, i), i, j.z_column) {}

  // LARGEST stands for the column with the largest off or, if off is not given for each row, the largest logit: the first of them.
  int64_t label() const {
    const int64_t t = j.label[i * j.label_step];
    if (t != LARGEST) return t;
    int64_t at = 0;
    Wide most = -INF;
    for (int64_t k = 0; k < cols; k++) {
      const Wide x = j.off_by_row ? weight(k) : Wide(read_one(z, j.type, k * z_column));
      if (x > most) most = x, at = k;
    }
    return at;
  }

  // Whether a column whose logit is -inf has a truth, except the label's.
  RARE bool has_truth_at_hidden(int64_t t) const {
    bool found = false;
    for (int64_t k = 0; k < cols; k++) found = found || (k != t && logit(k).y.f == -INF && weight(k).f > 0);
    return found;
  }

  // Writes what a row without truth gives.
  RARE void ignored(Op op) const {
    for (int k = 0; k < (op == CURVATURE ? (int)PRODUCTS : (int)j.result_count) && op != BACKWARD; k++) j.result[k * j.result_step + i] = 0;
    for (int k = 0; k < PARTS && j.parts && op != BACKWARD; k++) j.parts[k * j.parts_step + i] = k == M || k == ZT ? -INF : 0;
    for (int64_t k = 0; k < cols && dz; k++) write_one(dz, j.type, k * j.dz_column, 0);
  }

  // Computes what the row gives, unless op is BACKWARD, and, unless it is FORWARD, the gradient.
  RARE void loss_and_gradient(Op op, int64_t t) const {
    Prediction p;
    p.top = p.yt = -INF;
    for (int64_t k = 0; k < cols; k++) {
      const Wide y = logit(k).y;
      if (k == t) p.yt = y;
      if (k != t && y > p.top) p.top = y;
    }
    Total s, u, o, d;
    for (int64_t k = 0; k < cols; k++) {
      if (k == t) continue;
      const Wide x = distance(p.top, logit(k).y), e = exp_of_minus(x), w = weight(k);
      s.add(e);
      u.add(times(e, x));
      o.add(w);
      d.add(times(w, x));
    }
    p.s = s.value();
    p.u = j.entropy ? u.value() : Wide(0);
    p.o = o.value();
    p.d = d.value();
    p.wt = within(t, cols) ? weight(t) : Wide(0);
    p.m = p.top * by;
    p.zt = p.yt * by;
    p.gap = gap(p.top, p.yt, by);
    double* const parts = j.parts ? j.parts + i : nullptr;
    if (parts && op != BACKWARD) {
      const Wide sums[PARTS] = {p.top * cap, p.s, p.o, p.d, p.yt * cap, p.wt, p.u};
      for (int n = 0; n < PARTS; n++) parts[n * j.parts_step] = sums[n].value();
    }
    if (op == BACKWARD) {  // the sums are those of all columns of the row, and these columns may be some of them
      auto part = [&](Part n) { return Wide(parts[n * j.parts_step]); };
      const bool own = part(M).value() == (p.top * cap).value(), same = own && part(ZT).value() == (p.yt * cap).value();
      p.gap = same ? p.gap : gap(part(M), part(ZT), cool);
      p.m = part(M) * cool;
      p.top = own ? p.top : part(M) / cap;
      p.zt = part(ZT) * cool;
      p.s = part(S);
      p.o = part(O);
      p.d = part(D);
      p.wt = part(WT);
      p.u = part(U);
    }
    finish(op, t, p);
  }

  // Computes the gradient from sums of the row, whose m and zt are before the scale.
  RARE void gradient(int64_t t, const double (*part)[TILE], int g) {
    as_vectors = true;
    const Wide top = part[M][g], yt = part[ZT][g];
    finish(BACKWARD, t, {top, yt, top * by, yt * by, gap(top, yt, by), part[S][g], part[U][g], part[O][g], part[D][g], part[WT][g]});
  }

 private:
  RARE void finish(Op op, int64_t t, const Prediction& p) const {
    const Wide log_s = log(splat(p.s.value()))[0], a_of_row = p.gap + log_s;
    const bool likely = Wide(0) > a_of_row;
    const Wide w = exp_of_minus(likely ? -p.gap : p.gap), odds = likely ? p.s * w : w / p.s, inverse = Wide(1) / (Wide(1) + odds),
               soft = log1p(odds.value());
    const Wide nll = likely ? soft : a_of_row + soft, miss = (likely ? odds : Wide(1)) * inverse, hit = (likely ? Wide(1) : odds) * inverse;
    const Wide over = likely ? soft - p.gap : log_s + soft, lse = Wide(0) > p.gap ? p.zt + nll : p.m + over,
               unit = p.s.f == 0 ? miss : miss / p.s;
    const Wide entropy = j.entropy ? times(hit, nll) + times(unit, p.u + times(p.s, over)) : Wide(0);
    const Wide y = number(Y), r = number(R), q = number(Q), g = number(Number::G), l = number(GRAD_LSE), b = number(GRAD_LOGPROB),
               n = number(GRAD_ENTROPY);
    const Wide at = y + times(r, p.wt), lift = times(q, lse), rest = times(r, p.o) + lift, down = times(n, entropy), drop = times(g, r);
    const Wide a = times(g, at + rest) + l - b - down;
    const Wide hot = times(g, times(rest, hit) - times(at, miss)) + times(l, hit) + times(b, miss) + product(times(n, nll) - down, hit);
    if (op != BACKWARD) {
      const Wide loss = times(at, nll) + times(r, p.d + times(p.o, over)) + Wide(0.5) * times(lift, lse);
      const double found[OUTPUTS] = {loss.value(), lse.value(), -nll.value(), entropy.value(),
                                     !(p.top > p.yt) && p.yt.f > -INF ? 1.0 : 0.0};
      for (int k = 0; k < j.result_count; k++) j.result[k * j.result_step + i] = found[k];
    }
    if (op == FORWARD) return;
    const bool live = a.f != 0 || n.f != 0 || drop.f != 0 || hot.f != 0;
    for (int64_t k = 0; k < cols; k++) {
      const Logit x = logit(k);
      const Wide far = distance(p.top, x.y), yhat = unit * Wide(exp_of_minus(far));
      const Wide of_logit = k == t ? hot : times(yhat, a + times(n, far + over)) - times(drop, weight(k));
      write_one(dz, j.type, k * j.dz_column, live ? times(times(x.slope, of_logit), cool).value() : 0);
    }
  }

 public:
  // Computes the product of the Hessian and v, and what Product lists. The most probable class j0 is kept apart.
  RARE void curvature(int64_t t) const {
    const Type wide = j.type == F64 ? F64 : F32;
    const void* const v = (const char*)j.v + i * j.v_step * bytes_of(wide);
    int64_t j0 = 0;
    Logit most = logit(0);
    for (int64_t k = 1; k < cols; k++) {
      const Logit x = logit(k);
      if (x.y > most.y) most = x, j0 = k;
    }
    auto moved = [&](int64_t k, const Logit& x) { return times(Wide(read_one(v, wide, k * j.v_column)), x.slope) * cool; };
    const Wide v0 = moved(j0, most);
    Total of_s;
    of_s.add(most.y - most.y);  // NaN, if it is infinite
    Total of_lead, of_entropy, of_along, of_by_off, of_all_off;
    for (int64_t k = 0; k < cols; k++) {
      if (k == j0) continue;
      const Logit x = logit(k);
      const Wide e = exp_of_minus(distance(most.y, x.y));
      of_s.add(e);
      of_lead.add(times(e, v0 - moved(k, x)));
    }
    const Wide s = of_s.value(), hit0 = Wide(1) / (Wide(1) + s), nll0 = log1p(s.value()), lead = times(hit0, of_lead.value());
    struct Entry {
      Wide yhat, away, apart;
    };
    auto entry = [&](int64_t k, const Logit& x) {
      if (k == j0) return Entry{hit0, nll0, lead};
      const Wide far = distance(most.y, x.y);
      return Entry{hit0 * Wide(exp_of_minus(far)), far + nll0, (moved(k, x) - v0) + lead};
    };
    Wide off_t, away_t, apart_t, hit_t, miss_t = 1;
    for (int64_t k = 0; k < cols; k++) {
      const Entry x = entry(k, logit(k));
      const Wide w = weight(k);
      of_entropy.add(times(x.yhat, x.away));
      of_along.add(times(x.yhat, x.away * x.apart));
      of_by_off.add(times(w, x.apart));
      if (k != t) {
        of_all_off.add(w);
        continue;
      }
      off_t = w;
      hit_t = x.yhat;
      miss_t = k == j0 ? s * hit0 : Wide(1) - hit_t;
      away_t = x.away;
      apart_t = x.apart;
    }
    const Wide entropy = of_entropy.value(), along = of_along.value(), by_off = of_by_off.value(), all_off = of_all_off.value();
    const Wide mean = v0 - lead, lse = most.y * by + nll0, g = number(Number::G), r = number(R), q = number(Q), l = number(GRAD_LSE),
               b = number(GRAD_LOGPROB), n = number(GRAD_ENTROPY);
    const Wide at = number(Y) + times(r, off_t), rest = times(r, all_off) + times(q, lse), down = times(n, entropy);
    const Wide a = times(g, at + rest) + l - b - down, drop = times(g, r), shift = times(times(g, q), mean) - times(n, along);
    const Wide hot =
        times(g, times(rest, hit_t) - times(at, miss_t)) + times(l, hit_t) + times(b, miss_t) + product(times(n, away_t) - down, hit_t);
    const double found[PRODUCTS] = {mean.value(), apart_t.value(), by_off.value(), along.value()};
    for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step + i] = found[k];
    bool live = false;
    for (int k = 0; k < j.number_count; k++) live = live || number((Number)k).f != 0;
    for (int64_t k = 0; k < cols; k++) {
      const Logit x = logit(k);
      const Entry p = entry(k, x);
      const Wide inner = times(a - n, p.apart) + times(n, times(p.apart, p.away)) + shift;
      const Wide of_logit = k == t ? hot : times(p.yhat, a + times(n, p.away)) - times(drop, weight(k));
      const Wide bent = times(times(x.bend, of_logit), Wide(read_one(v, wide, k * j.v_column)));
      write_one(dz, j.type, k * j.dz_column, live ? (times(x.slope, times(p.yhat, inner) + bent) * cool).value() : 0);
    }
  }

  // Computes dz := number log yhat.
  RARE void log_softmax() const {
    int64_t j0 = 0;
    Wide top = logit(0).y;
    Total s;
    for (int64_t k = 1; k < cols; k++) {
      const Wide y = logit(k).y;
      if (y > top) top = y, j0 = k;
    }
    s.add(top - top);  // NaN, if it is infinite
    for (int64_t k = 0; k < cols; k++)
      if (k != j0) s.add(exp_of_minus(distance(top, logit(k).y)));
    const Wide nll = log1p(s.value().value()), factor = number((Number)0);
    for (int64_t k = 0; k < cols; k++)
      write_one(dz, j.type, k * j.dz_column, -times(factor, (k == j0 ? Wide(0) : distance(top, logit(k).y)) + nll).value());
  }
};
