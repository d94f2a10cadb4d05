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
// Returns off of column k of a row, as it is computed with.
ALWAYS double off_at(const Job& j, const void* row, int64_t k) {
  const double x = read_one(row, j.off_type, k * j.off_column);
  return j.type == F64 ? x : (float)x;
}
RARE void write_one(void* p, Type type, int64_t k, double x) {
  if (type == F64) put<f64>((double*)p + k, x);
  if (type == F32) put<f32>((float*)p + k, x);
  if (type == BF16) put<bf16>((uint16_t*)p + k, x);
  if (type == F16) put<f16>((uint16_t*)p + k, x);
}

class WideRow {
  const Job& j;
  const int64_t i, cols, z_column;
  const Type wide;  // that of v
  const void *z, *off, *v;
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
  struct Derivatives {  // of the sums along v (partials.Tangents)
    Wide c, s, u, o, vt;
  };
  struct Outcome {  // what follows from the sums and the numbers of the row, as in finish.h
    Wide nll, miss, hit, over, lse, unit, entropy, at, lift, a, n, drop, hot;
  };
  struct Along {  // as partials.along; differences of v are those to `base`, the v of the more probable of the label and the column of c
    Outcome f;
    Wide base, to_mean, at, mean, by_off, by_entropy;
  };
  Wide number(Number n) const { return n < j.number_count ? j.numbers[n * j.number_step + i * j.number_row] : 0; }
  Wide weight(int64_t k) const { return off ? off_at(j, off, k) : 0; }
  template <class A> Logit logit_in(double x) const {
    V<A> y = splat((A)x) * (A)j.unit, slope;
    tanh_and_slope<A, 1>(&y, &slope);
    return {(double)y[0], (double)slope[0], j.gauss_newton ? Wide(0) : Wide(-2) * Wide(y[0]) * by_cap};
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
        wide(j.type == F64 ? F64 : F32),
        z(z),
        off(j.off ? element(j.off, j.off_type, i * j.off_step) : nullptr),
        v(j.v ? element(j.v, wide, i * j.v_step) : nullptr),
        dz(j.dz ? (char*)j.dz + i * j.dz_step * bytes_of(j.type) : nullptr),
        cap(j.cap < INF ? Wide(j.cap) : Wide(1)),
        by(cap / Wide(j.temperature)),
        cool(Wide(1) / Wide(j.temperature)),
        by_cap(Wide(1) / Wide(j.cap)),
        capped(j.cap < INF) {}
  WideRow(const Job& j, int64_t i) : WideRow(j, logits(j, i), i, j.z_column) {}

  // The label, and the first column with the largest off or logit if it stands for that.
  int64_t label() const {
    const int64_t t = j.label[i * j.label_step];
    const bool by_off = is_largest_off(j, t);
    return by_off || is_largest_logit(j, t) ? largest(by_off) : t;
  }
  int64_t largest(bool by_off) const {
    int64_t at = 0;
    Wide most = -INF;
    for (int64_t k = 0; k < cols; k++) {
      const Wide x = by_off ? weight(k) : Wide(read_one(z, j.type, k * z_column));
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
    for (int k = 0; k < j.result_count && op != BACKWARD; k++) j.result[k * j.result_step + i] = 0;
    for (int k = 0; k < PARTS && j.parts && op != BACKWARD && op != HESSIAN; k++)
      j.parts[k * j.parts_step + i] = k == M || k == ZT ? -INF : 0;
    for (int k = 0; k < TANGENTS && op == TANGENT_SUMS; k++) j.tangents[k * j.tangents_step + i] = 0;
    for (int64_t k = 0; k < cols && dz; k++) write_one(dz, j.type, k * j.dz_column, 0);
  }

  // Computes what the row gives, unless op is BACKWARD, and, unless it is FORWARD, the gradient.
  RARE void loss_and_gradient(Op op, int64_t t) const {
    const Prediction own = sums(t);
    if (op != BACKWARD) put_parts(own);
    finish(op, t, op == BACKWARD ? of_whole_row(own) : own);
  }

  // Computes the gradient from sums of the row, whose m and zt are before the scale.
  RARE void gradient(int64_t t, const double (*part)[TILE], int g) {
    as_vectors = true;
    const Wide top = part[M][g], yt = part[ZT][g];
    finish(BACKWARD, t, {top, yt, top * by, yt * by, gap(top, yt, by), part[S][g], part[U][g], part[O][g], part[D][g], part[WT][g]});
  }

  // Computes the sums of the given columns, and their derivatives along v.
  RARE void tangent_sums(int64_t t) {
    as_vectors = !j.extreme;
    const Prediction p = sums(t);
    const Derivatives y = derivatives(t, p);
    put_parts(p);
    const Wide found[TANGENTS] = {y.c, y.s, y.u, y.o, y.vt};
    for (int k = 0; k < TANGENTS; k++) j.tangents[k * j.tangents_step + i] = found[k].value();
  }
  // Computes the product of the Hessian and v, and what Product lists, from the sums of the whole row and their derivatives.
  RARE void hessian(int64_t t) {
    as_vectors = !j.extreme;
    const double* y = j.tangents + i;
    const int64_t step = j.tangents_step;
    const Derivatives of_row = {y[BASE], y[DS * step], y[DU * step], y[DO * step], y[VT * step]};
    put_product(t, of_whole_row(sums(t)), of_row);
    put_along(along(of_whole_row({}), of_row), j.parts[ZT * j.parts_step + i] > -INF);  // the same bits for all shards
  }
  // As both.
  RARE void curvature(int64_t t) const {
    const Prediction p = sums(t);
    const Derivatives y = derivatives(t, p);
    put_product(t, p, y);
    put_along(along(p, y), within(t, cols));
  }

 private:
  RARE Prediction sums(int64_t t) const {
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
    return p;
  }
  void put_parts(const Prediction& p) const {
    const Wide sums[PARTS] = {p.top * cap, p.s, p.o, p.d, p.yt * cap, p.wt, p.u};
    for (int n = 0; n < PARTS && j.parts; n++) j.parts[n * j.parts_step + i] = sums[n].value();
  }
  // Returns the sums of all columns of the row, j.parts; `p` are those of the given columns, which may be some of them.
  RARE Prediction of_whole_row(Prediction p) const {
    auto part = [&](Part n) { return Wide(j.parts[n * j.parts_step + i]); };
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
    return p;
  }
  Wide direction(int64_t k) const { return read_one(v, wide, k * j.v_column); }
  Wide moved(int64_t k, const Logit& x) const { return times(direction(k), x.slope) * cool; }
  RARE Derivatives derivatives(int64_t t, const Prediction& p) const {
    Derivatives y = {};
    for (int64_t k = cols - 1; k >= 0; k--) {  // the first column with the largest logit
      const Logit x = logit(k);
      if (k == t) y.vt = moved(k, x);
      if (k != t && p.top.f > -INF && !(p.top > x.y) && !(x.y > p.top)) y.c = moved(k, x);
    }
    Total s, u, o;
    for (int64_t k = 0; k < cols; k++) {
      if (k == t) continue;
      const Logit x = logit(k);
      const Wide far = distance(p.top, x.y), e = exp_of_minus(far), away = y.c - moved(k, x);
      s.add(times(e, away));
      u.add(times(e, away * far));
      o.add(times(weight(k), away));
    }
    return {y.c, s.value(), u.value(), o.value(), y.vt};
  }
  RARE Outcome outcome(const Prediction& p) const {
    const Wide log_s = log(splat(p.s.value()))[0], a_of_row = p.gap + log_s;
    const bool likely = Wide(0) > a_of_row;
    const Wide w = exp_of_minus(likely ? -p.gap : p.gap), odds = likely ? p.s * w : w / p.s, inverse = Wide(1) / (Wide(1) + odds),
               soft = log1p(odds.value());
    const Wide nll = likely ? soft : a_of_row + soft, miss = (likely ? odds : Wide(1)) * inverse, hit = (likely ? Wide(1) : odds) * inverse;
    const Wide over = likely ? soft - p.gap : log_s + soft, lse = Wide(0) > p.gap ? p.zt + nll : p.m + over,
               unit = p.s.f == 0 ? miss : miss / p.s;
    const Wide entropy = j.entropy ? times(hit, nll) + times(unit, p.u + times(p.s, over)) : Wide(0);
    const Wide r = number(R), g = number(Number::G), l = number(GRAD_LSE), b = number(GRAD_LOGPROB), n = number(GRAD_ENTROPY);
    const Wide at = number(Y) + times(r, p.wt), lift = times(number(Q), lse), rest = times(r, p.o) + lift, down = times(n, entropy);
    const Wide a = times(g, at + rest) + l - b - down;
    const Wide hot = times(g, times(rest, hit) - times(at, miss)) + times(l, hit) + times(b, miss) + product(times(n, nll) - down, hit);
    return {nll, miss, hit, over, lse, unit, entropy, at, lift, a, n, times(g, r), hot};
  }
  RARE void finish(Op op, int64_t t, const Prediction& p) const {
    const Outcome f = outcome(p);
    if (op != BACKWARD) {
      const Wide loss = times(f.at, f.nll) + times(number(R), p.d + times(p.o, f.over)) + Wide(0.5) * times(f.lift, f.lse);
      const double found[OUTPUTS] = {loss.value(), f.lse.value(), -f.nll.value(), f.entropy.value(),
                                     !(p.top > p.yt) && p.yt.f > -INF ? 1.0 : 0.0};
      for (int k = 0; k < j.result_count; k++) j.result[k * j.result_step + i] = found[k];
    }
    if (op == FORWARD) return;
    const bool live = f.a.f != 0 || f.n.f != 0 || f.drop.f != 0 || f.hot.f != 0;
    for (int64_t k = 0; k < cols; k++) {
      const Logit x = logit(k);
      const Wide far = distance(p.top, x.y), yhat = f.unit * Wide(exp_of_minus(far));
      const Wide of_logit = k == t ? f.hot : times(yhat, f.a + times(f.n, far + f.over)) - times(f.drop, weight(k));
      write_one(dz, j.type, k * j.dz_column, live ? times(times(x.slope, of_logit), cool).value() : 0);
    }
  }

  RARE Along along(const Prediction& p, const Derivatives& y) const {
    const Outcome f = outcome(p);
    const Wide behind = y.c - y.vt, of_s = times(f.unit, y.s), lead = of_s + times(f.hit, behind), at = of_s - times(f.miss, behind);
    const bool by_label = p.yt > p.top;
    const Wide base = by_label ? y.vt : y.c, to_mean = by_label ? at : lead;
    const Wide by_off = times(lead, p.o) - y.o + times(p.wt, at);
    const Wide by_entropy =
        times(lead, f.unit * (p.u + times(p.s, f.over))) - times(f.unit, y.u + times(y.s, f.over)) + times(f.hit, f.nll * at);
    return {f, base, to_mean, at, base - to_mean, by_off, by_entropy};
  }
  void put_along(const Along& x, bool labelled) const {
    const double found[PRODUCTS] = {x.mean.value(), labelled ? x.at.value() : 0, x.by_off.value(), x.by_entropy.value()};
    for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step + i] = found[k];
  }
  RARE void put_product(int64_t t, const Prediction& p, const Derivatives& y) const {
    const Along to = along(p, y);
    const Outcome& f = to.f;
    const Wide shift = times(times(number(Number::G), number(Q)), to.mean) - times(f.n, to.by_entropy);
    bool live = false;
    for (int k = 0; k < j.number_count; k++) live = live || number((Number)k).f != 0;
    for (int64_t k = 0; k < cols; k++) {
      const Logit x = logit(k);
      const Wide far = distance(p.top, x.y), yhat = k == t ? f.hit : f.unit * Wide(exp_of_minus(far)), away = k == t ? f.nll : far + f.over,
                 apart = k == t ? to.at : (moved(k, x) - to.base) + to.to_mean;
      const Wide inner = times(f.a - f.n, apart) + times(f.n, times(apart, away)) + shift;
      const Wide of_logit = k == t ? f.hot : times(yhat, f.a + times(f.n, away)) - times(f.drop, weight(k));
      const Wide bent = times(times(x.bend, of_logit), direction(k));
      write_one(dz, j.type, k * j.dz_column, live ? (times(x.slope, times(yhat, inner) + bent) * cool).value() : 0);
    }
  }

 public:
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
