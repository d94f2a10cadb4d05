// From the sums of rows to their results; vector lanes are rows. kernel.cpp includes this file, inside its anonymous namespace.

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

// m and zt of the parts are multiplied by the softcap. Returns one of them before that: `local`, unless it is the number of other columns.
ALWAYS double cap_of(const Job& j) { return j.capped ? j.cap : 1; }
ALWAYS double without_cap(double part, double local, double cap) { return cap == 1 || local * cap != part ? part / cap : local; }

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
      const double by = k == M || k == ZT ? cap_of(j) : 1;
      for (int g = 0; g < some; g++) op == BACKWARD ? (void)(of[g] = without_cap(p[g], of[g], by)) : (void)(p[g] = of[g] * by);
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
    store(x.a + g, a);
    if (j.number_count > 4) {
      store(x.unit + g, f.unit / j.temperature);
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

struct Tangents {  // partials.Tangents without the label's
  V<double> c, s, u, o;
};
// Merges the tangents of these sums, as partials.merge_tangents does.
ALWAYS Tangents merged(const Sums& a, const Tangents& da, const Sums& b, const Tangents& db, double scale) {
  const V<double> zero = {}, one = splat(1.0), m = a.m > b.m ? a.m : b.m, c = a.m == m ? da.c : db.c;
  auto moved = [&](const Sums& x, const Tangents& y) {
    const V<double> down = x.m == m ? zero : scaled_difference(m, x.m, scale), by = x.m == m ? one : exp(-down), more = c - y.c;
    const V<double> s = y.s + times<double>(x.s, more);
    return Tangents{c, times<double>(by, s), times<double>(by, y.u + times<double>(x.u, more) + times<double>(s, down)),
                    y.o + times<double>(x.o, more)};
  };
  const Tangents x = moved(a, da), y = moved(b, db);
  return {c, x.s + y.s, x.u + y.u, x.o + y.o};
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
    b.top[k] = without_cap(j.parts[M * j.parts_step + first + (blocks > 1 ? 0 : k)], blocks > 1 ? most : b.m[k], cap_of(j));
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

// Merges sums over different columns of the same rows, and their tangents, in the given order: for each pair of indices, those of the second
// into those of the first. Writes the parts and results of the rows. The sums and tangents are overwritten; the first are the merged ones.
static void merge_shards(const Job& j, const Shards& shards, const int64_t* pairs, int64_t count) {
  constexpr int W = Lanes<double>::W;
  Tile x = {};
  for (int64_t first = 0; first < j.rows; first += W) {
    const int some = least<int64_t>(W, j.rows - first);
    auto part = [&](int64_t shard, int part) { return shards.sums + shard * shards.sums_step + part * j.rows + first; };
    auto tangent = [&](int64_t shard, int part) { return shards.tangents + shard * shards.tangents_step + part * j.rows + first; };
    auto load = [&](const double* from) {
      V<double> lanes = {};
      for (int g = 0; g < some; g++) lanes[g] = from[g];
      return lanes;
    };
    auto keep = [&](double* to, V<double> lanes) {
      for (int g = 0; g < some; g++) to[g] = lanes[g];
    };
    auto sums_of = [&](int64_t k) {
      return Sums{load(part(k, M)), load(part(k, Part::S)), load(part(k, O)), load(part(k, D)), load(part(k, U))};
    };
    auto tangents_of = [&](int64_t k) {
      return Tangents{load(tangent(k, BASE)), load(tangent(k, DS)), load(tangent(k, DU)), load(tangent(k, DO))};
    };
    for (int64_t k = 0; k < count; k++) {
      const int64_t a = pairs[2 * k], b = pairs[2 * k + 1];
      const Sums of_a = sums_of(a), of_b = sums_of(b), both = merged(of_a, of_b, j.scale);
      if (shards.tangents) {
        const Tangents along = merged(of_a, tangents_of(a), of_b, tangents_of(b), j.scale);
        keep(tangent(a, BASE), along.c);
        keep(tangent(a, DS), along.s);
        keep(tangent(a, DU), along.u);
        keep(tangent(a, DO), along.o);
        keep(tangent(a, VT), load(tangent(a, VT)) + load(tangent(b, VT)));
      }
      const V<double> za = load(part(a, ZT)), zb = load(part(b, ZT));
      keep(part(a, M), both.m);
      keep(part(a, Part::S), both.s);
      keep(part(a, O), both.o);
      keep(part(a, D), both.d);
      keep(part(a, U), both.u);
      keep(part(a, ZT), za == za && !(zb <= za) ? zb : za);
      keep(part(a, WT), load(part(a, WT)) + load(part(b, WT)));
    }
    for (int k = 0; k < PARTS; k++) store(x.part[k], load(part(0, k)));
    finish<FORWARD>(j, x, first, some, j.scale);
  }
}

// Returns scale z - (rest + scale sub), see Shift.
ALWAYS double above(double z, double sub, double rest, double scale) { return scaled_difference(splat(z), splat(sub), scale)[0] - rest; }

// Returns lse - (rest + scale sub) of row g of a tile and its block b, see Shift.
template <class A> ALWAYS double lse_below(const Scratch<A>& f, int g, int64_t b, double sub, double rest, double scale) {
  if (f.b.m[b] == -INF || f.x.unit[g] == 0) return 0;
  return above(f.b.top[b], sub, rest, scale) + f.x.over[g];
}
