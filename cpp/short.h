// Short rows; vector lanes are rows. kernel.cpp includes this file, inside its anonymous namespace.

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

// Whether a call needs the loss and lse alone, of logits as they are, without off. Such calls are compiled separately for short rows.
ALWAYS bool is_plain(const Job& j) { return !j.off && !j.capped && j.scale == 1 && !j.entropy && j.number_count == 4; }

// Puts the first column with the largest value into each lane that asks for it; 0 if all are -inf or NaN.
template <class A> ALWAYS void put_largest(const A* panel, int64_t n, const bool* asks, A* column_of) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  A found[L];
  for (int u = 0; u < Lanes<A>::U; u++) {
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
template <class A> ALONE void fill(const Job& j, Panel<A>& p, int64_t first, int some, bool with_off, bool capped, A* label_of) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  storage<A>(j.type).read_panel(logits(j, first), j.z_step, j.z_column, j.cols, some, p.e);
  if (with_off) storage<A>(j.off_type).read_panel(off(j, first), j.off_step, j.off_column, j.cols, some, p.off);
  bool by_logit[L], by_off[L], any = false;
  for (int g = 0; g < L; g++) {
    const int64_t t = label(j, first + least(g, some - 1));
    label_of[g] = within(t, j.cols) ? (A)t : -1;
    by_logit[g] = is_largest_logit(j, t);
    by_off[g] = is_largest_off(j, t);
    any |= by_logit[g] || by_off[g];
  }
  if (any) {
    put_largest<A>(p.e, j.cols, by_logit, label_of);
    if (with_off) put_largest<A>(p.off, j.cols, by_off, label_of);
  }
  if (j.predicted) {
    bool every[L];
    A found[L];
    for (int g = 0; g < L; g++) every[g] = true;
    put_largest<A>(p.e, j.cols, every, found);
    for (int g = 0; g < some; g++) j.predicted[first + g] = ignored(j, first + g) ? -1 : found[g];
  }
  for (int64_t k = 0; capped && k < j.cols * L; k += W) {
    V<A> y = read(p.e + k) * (A)j.unit, by;
    tanh_and_slope<A, 1>(&y, &by);
    store(p.e + k, y);
    store(p.slope + k, by);
  }
}

// Writes a panel to the gradient of `some` rows from `first` on.
template <class A> ALWAYS void write(const Job& j, A* panel, int64_t first, int some) {
  storage<A>(j.type).write_panel(panel, j.cols, gradient(j, first), j.dz_step, j.dz_column, some);
}

// Takes the column `apart` of each row out of e and off, where it is then -inf and 0, and finds the largest of the other logits. Fills the
// columns up to a multiple of four in the same way.
template <class A> ALWAYS void take_apart(Panel<A>& p, int64_t cols, bool with_off, bool capped) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  const int64_t padded = (cols + 3) / 4 * 4;
  for (int u = 0; u < Lanes<A>::U; u++) {
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
  for (int u = 0; u < Lanes<A>::U; u++) {
    A *e = p.e + u * W, *off = p.off + u * W;
    const V<A> most = read(p.m + u * W), finite = most == -(A)INF ? V<A>{} : most;
    const Shift<A> shift(most, scale);
    for (int64_t c = 0; c < cols; c += 4) {
      V<A> v[4], a[4], b[4];
      for (int k = 0; k < 4; k++) v[k] = read(e + (c + k) * L);
      if (with_off) {
        for (int k = 0; k < 4; k++) {
          a[k] = read(off + (c + k) * L);
          b[k] = times<A>(a[k], fma<A>(splat((A)-0.5), v[k], finite * (A)0.5));
        }
        so.add(u, a);
        sd.add(u, b);
      }
      for (int k = 0; k < 4; k++) v[k] = v[k] - shift.sub;
      if (with_u)
        for (int k = 0; k < 4; k++) b[k] = fma<A>(splat(-scale), v[k], shift.rest);
      for (int k = 0; k < 4; k++) v[k] = v[k] * scale;
      exps<A, 4>(v, shift.magic, shift.low);
      for (int k = 0; k < 4; k++) store(e + (c + k) * L, v[k]);
      if (with_sum) ss.add(u, v);
      if (with_u) {
        for (int k = 0; k < 4; k++) b[k] = times<A>(v[k], b[k]);
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
ALWAYS void put_panel_parts(Scratch<A>& f, const Panel<A>& p, double scale, double cap, const double* m, bool with_sum, bool with_u) {
  constexpr int L = Lanes<A>::L;
  for (int g = 0; g < L; g++) {
    f.b.m[g] = p.m[g];
    f.b.sub[g] = p.sub[g];
    f.b.n[g] = p.n[g];
    f.b.top[g] = m ? without_cap(m[g], p.m[g], cap) : p.m[g];
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
template <class A> struct WideRows {
  static constexpr int L = Lanes<A>::L;
  const Job& j;
  const int64_t first;
  bool wide[L], any = false;
  char z[L][SHORT_ROW * sizeof(A)];
  template <class F> WideRows(const Job& j, int64_t first, int some, F is_wide) : j(j), first(first) {
    const int64_t size = bytes_of(j.type);
    for (int g = 0; g < L; g++) {
      wide[g] = g < some && is_wide(g);
      any = any || wide[g];
      for (int64_t k = 0; wide[g] && k < j.cols; k++)
        for (int64_t c = 0; c < size; c++) z[g][k * size + c] = ((const char*)logits(j, first + g))[k * j.z_column * size + c];
    }
  }
  template <class F> void each(F f) const {
    for (int g = 0; any && g < L; g++)
      if (wide[g]) f(WideRow(j, z[g], first + g, 1), g);
  }
};

// Computes up to L short rows from `first` on, in all phases.
template <class A, Op op, bool plain> ALONE void short_rows(const Job& j, Scratch<A>& f, int64_t first, int some) {
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  const int64_t C = j.cols;
  const double exact_scale = plain ? 1 : j.scale;
  const A scale = exact_scale;
  const bool capped = !plain && j.capped, keep_z = !plain && op != FORWARD && j.number_count > 4,
             with_u = !plain && op != BACKWARD && j.entropy, with_off = !plain && j.off;
  Panel<A> p(f.e);
  fill<A>(j, p, first, some, with_off, capped, p.apart);
  take_apart<A>(p, C, with_off, capped);
  if (keep_z) __builtin_memcpy(p.z, p.e, C * L * sizeof(A));
  sum_panel<A>(p, C, scale, op != BACKWARD, op != BACKWARD && with_off, with_u);
  for (int g = 0; g < some && with_off && op != BACKWARD; g++) {
    if (!are_inexact<A>(p.o[g], p.d[g])) continue;
    const A top = p.m[g] == -(A)INF ? 0 : p.m[g];
    dot_in_double<A>(j, first + g, 0, C, p.apart[g], top, p.o[g], p.d[g]);
  }
  double top[L];
  for (int g = 0; g < L && op == BACKWARD; g++) top[g] = j.parts[M * j.parts_step + first + least(g, some - 1)];
  put_panel_parts<A>(f, p, exact_scale, capped ? j.cap : 1, op == BACKWARD ? top : nullptr, op != BACKWARD, with_u);
  finish<op>(j, f.x, first, some, exact_scale);
  WideRows<A> wide(j, first, some, [&](int g) { return is_wide(j, f.x, first, g, p.apart[g]); });
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
  for (int u = 0; u < Lanes<A>::U; u++) {
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
      store(p.e + k, v);
    }
  }
  write<A>(j, p.e, first, some);
  wide.each([&](const WideRow& row, int g) { in_wide(row, op, p.apart[g], f.x, g); });
}
