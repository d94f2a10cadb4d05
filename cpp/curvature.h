// The second derivative, and log-softmax, with the most probable class j0 of a row kept apart. kernel.cpp includes this file, inside its
// anonymous namespace.

// Computes the exponentials of the row, which only FUSED keeps, and its sums, in f.b and f.x.part.
template <class A, Op op> ALWAYS void most_probable_apart(const Job& j, Scratch<A>& f, int64_t i, int64_t j0) {
  const int64_t blocks = blocks_of(j.cols);
  for (int64_t b = 0; b < blocks; b++) sum_block<A, op>(j, f, i, j0, 0, b, false, false);
  merge_blocks<op>(j, f.b, i, 1);
  put_parts<A>(j, f, i, j0, 0);
}

// Computes dz := number log yhat, from (z_j0 - z_k) + nll, so that values near 0 keep their digits.
template <class A> ALONE void log_softmax(const Job& j, Scratch<A>& f, int64_t i) {
  constexpr int W = Lanes<A>::W;
  const void* z = logits(j, i);
  most_probable_apart<A, FORWARD>(j, f, i, largest(z, j.type, j.cols, nullptr));
  const double most = f.x.part[ZT][0];
  const Finished x = finished(splat(f.x.part[M][0]), splat(f.x.part[Part::S][0]), splat(most), j.scale);
  const A scale = j.scale, z0 = most, by = number(j, (Number)0, i), lift = x.nll[0];
  // A distance from the largest logit is a number of the type, unless a factor makes it one.
  if (most > -INF && !((by == 1 || scale <= 1) && most >= -0x1p100 && most <= 0x1p100)) return WideRow(j, i).log_softmax();
  for (int64_t k = 0; k < j.cols; k += BLOCK) {
    const int64_t n = least(j.cols - k, BLOCK);
    Copy<A> copy;
    A* const dz = target(j, f.e, i, k);
    each_vector<A>(columns_as<A>(j.type, z, k, n, copy), nullptr, nullptr, dz, n, [&](int64_t, int u, const auto& p) INLINED {
      V<A> y = read(p.z + u * W), s;
      if (j.capped) {
        y = y * (A)j.unit;
        tanh_and_slope<A, 1>(&y, &s);
      }
      return times<A>(splat(by), scaled_difference(y, splat(z0), scale) - lift);
    });
    put_target(j, dz, i, k, n);
  }
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
      for (int w = 0; !one_row && w < W; w++) lanes[w] = c.of[i][u * W + w];
      of[i] = one_row ? splat((A)c.of[i][0]) : read(lanes);
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
template <class A> ALONE void curvature(const Job& j, Scratch<A>& f, int64_t i) {
  constexpr int W = Lanes<A>::W;
  const void *z = logits(j, i), *w = off(j, i);
  const A* v = (const A*)j.v + i * j.v_step;
  if (ignored(j, i)) {
    for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step + i] = 0;
    __builtin_memset(gradient(j, i), 0, j.cols * bytes_of(j.type));
    return;
  }
  const int64_t t = find_label(j, i), j0 = largest(z, j.type, j.cols, nullptr), blocks = blocks_of(j.cols);
  const bool labelled = within(t, j.cols), bent = is_bent(j);
  most_probable_apart<A, FUSED>(j, f, i, j0);
  A slope0, slope_t = 1, y_t = 0;
  const A y0 = softcapped<A>(j, read_one(z, j.type, j0), slope0), scale = j.scale;
  if (labelled) y_t = softcapped<A>(j, read_one(z, j.type, t), slope_t);

  V<A> most[2] = {};
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t k0 = b * BLOCK, n = least(j.cols - k0, BLOCK);
    const A* const e = f.e + k0;
    const V<A> counts = splat((A)(f.b.down[b] == 0 ? 0 : 1));
    each_vector<A>(nullptr, nullptr, v + k0, nullptr, n, [=, &most](int64_t k, int n, const auto& p) INLINED {
      const V<A> vk = read(p.v + n * W);
      most_of<A>(vk, read(e + k + n * W) * counts, most);
      return vk;
    });
  }
  A probable = v[j0] < 0 ? -v[j0] : v[j0], any = probable;
  for (int k = 0; k < W; k++) {
    probable = most[0][k] > probable ? most[0][k] : probable;
    any = most[1][k] > any ? most[1][k] : any;
  }
  const int64_t size = exponent_of_v(probable, any, sizeof(A) == 4 ? -126 : -1000);
  const A by = Wide(1, -size).value(), v_j0 = v[j0] * by, v_at_t = labelled ? v[t] * by : 0, v0 = v_j0 * slope0;

  Copy<A> z_copy, off_copy;
  double p = 0, q = 0, all_off = 0, off_v = 0;
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t k0 = b * BLOCK, n = least(j.cols - k0, BLOCK);
    const Shift<A> shift(splat((A)f.b.m[b]), scale);
    Sum<A> sp, sq, so, sd;
    const A *zs = f.y ? f.y + k0 : columns_as<A>(j.type, z, k0, n, z_copy),
            *ws = w ? columns_as<A>(j.off_type, w, k0, n, off_copy) : nullptr;
    const A *const e = f.e + k0, *const slopes = f.y ? f.slope + k0 : nullptr;
    each_vector<A>(zs, ws, v + k0, nullptr, n, [=, &sp, &sq, &so, &sd](int64_t k, int n, const auto& p) INLINED {
      const V<A> slope = slopes ? read(slopes + k + n * W) : splat<A>(1), away = splat(v0) - read(p.v + n * W) * by * slope;
      const V<A> zk = read(p.z + n * W), term = times<A>(read(e + k + n * W), away);
      const int u = n % Lanes<A>::U;
      sp.add(u, term);
      sq.add(u, times<A>(term, fma<A>(splat(-scale), zk - shift.sub, shift.rest)));
      if (!w) return term;
      const V<A> o = read(p.off + n * W);
      so.add(u, o);
      sd.add(u, times<A>(o, -away));
      return term;
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
  set(c.off0, w ? off_at(j, w, j0) : 0);
  set(c.off_t, labelled && w ? off_at(j, w, t) : 0);
  set(c.labelled, labelled);
  set(c.at_top, labelled && t == j0);
  curve<A>(j, c, Lanes<double>::W);
  if (c.wide[0] != 0) return WideRow(j, i).curvature(t);
  for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step + i] = c.product[k][0];
  if (!c.of[LIVE][0]) {
    __builtin_memset(gradient(j, i), 0, j.cols * bytes_of(j.type));
    return;
  }
  for (int64_t b = 0; b < blocks; b++) {
    const int64_t k0 = b * BLOCK, n = least(j.cols - k0, BLOCK);
    A first;
    put_factors(c, 0, f.b.down[b], first);
    const Entries<A> entries(j, c, 0, true);
    A* const dz = target(j, f.e + k0, i, k0);
    const A *zs = f.y ? f.y + k0 : columns_as<A>(j.type, z, k0, n, z_copy),
            *ws = w ? columns_as<A>(j.off_type, w, k0, n, off_copy) : nullptr;
    const A *const e = f.e + k0, *const slopes = f.y ? f.slope + k0 : nullptr;
    each_vector<A>(zs, ws, v + k0, dz, n, [=, &entries](int64_t k, int n, const auto& p) INLINED {
      const V<A> slope = slopes ? read(slopes + k + n * W) : splat<A>(1), o = w ? read(p.off + n * W) : V<A>{};
      return entries.entry(read(e + k + n * W) * first, read(p.v + n * W) * by, read(p.z + n * W), slope, o);
    });
    if (within(j0 - k0, n)) dz[j0 - k0] = c.at_j0[0];
    if (within(from(t, k0), n)) dz[t - k0] = c.at_t[0];
    put_target(j, dz, i, k0, n);
  }
}

// As `curvature`, of up to L short rows from `first` on.
template <class A> ALONE void short_curvature(const Job& j, Scratch<A>& f, int64_t first, int some) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  const int64_t C = j.cols;
  const A scale = j.scale;
  const bool capped = j.capped, with_off = j.off, bent = is_bent(j);
  Panel<A> p(f.e);
  A label[L], most_v[2][L], by[L], v_0[L], v_t[L], y_t[L], slope_t[L], off_t[L], off_0[L];
  Curved<A> c;
  fill<A>(j, p, first, some, with_off, capped, label);
  STORAGE<plain<A>>.read_panel((const A*)j.v + first * j.v_step, j.v_step, j.v_column, C, some, p.v);
  __builtin_memcpy(p.z, p.e, C * L * sizeof(A));
  for (int u = 0; u < Lanes<A>::U; u++) {  // the most probable class, and what is at both columns
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
  put_panel_parts<A>(f, p, j.scale, cap_of(j), nullptr, true, j.entropy);
  for (int u = 0; u < Lanes<A>::U; u++) {
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
  for (int u = 0; u < Lanes<A>::U; u++) {
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
  const WideRows<A> wide(j, first, some, [&](int g) { return c.wide[g] != 0 && !ignored(j, first + g); });
  A first_factor[L], at_j0[L], at_t[L];
  for (int g = 0; g < L; g++) {
    put_factors(c, g, f.b.down[g], first_factor[g]);
    at_j0[g] = c.at_j0[g];
    at_t[g] = c.at_t[g];
    const bool skip = ignored(j, first + least(g, some - 1));
    for (int k = 0; k < PRODUCTS && g < some; k++) j.result[k * j.result_step + first + g] = skip ? 0 : c.product[k][g];
  }
  for (int u = 0; u < Lanes<A>::U; u++) {
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
      store(p.e + k, h);
    }
  }
  write<A>(j, p.e, first, some);
  wide.each([&](const WideRow& row, int g) { row.curvature(label[g]); });
}
