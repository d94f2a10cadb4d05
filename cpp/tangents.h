// The second derivative, cut between its sums and its product, for rows of which only some columns may be here: the sums of these columns with
// their derivatives along v, and the product of the Hessian and v, from the sums of whole rows. kernel.cpp includes this file, inside its
// anonymous namespace.
//
// Rows of every type are copied to double, in which no number of a float row is beyond the range. The label is kept apart.

// Copies n columns of a row to double, and 0 up to a multiple of 64. Other types are read as float first, into the second half of the memory.
ALONE double* widened(const void* from, Type type, int64_t n, double* to) {
  constexpr int W = Lanes<double>::W;
  float* const narrow = (float*)(to + whole(n)) - whole(n);
  if (type == F64)
    __builtin_memcpy(to, from, n * sizeof(double));
  else {
    storage<float>(type).read_block(from, n, narrow);
    for (int64_t k = 0; k < n; k += W) {
      VHalf some;
      __builtin_memcpy(&some, narrow + k, sizeof some);
      store(to + k, widen(some));
    }
  }
  for (int64_t k = n; k < whole(n); k++) to[k] = 0;
  return to;
}
// Writes n columns of a row, which are overwritten.
ALONE void narrow(double* from, int64_t n, Type type, void* to) {
  constexpr int W = Lanes<double>::W;
  if (type == F64) return (void)__builtin_memcpy(to, from, n * sizeof(double));
  float* const narrow = (float*)from;
  for (int64_t k = 0; k < n; k += W) {
    const VHalf some = __builtin_convertvector(read(from + k), VHalf);
    __builtin_memcpy(narrow + k, &some, sizeof some);
  }
  storage<float>(type).put_block(narrow, 1, 1, 0, nullptr, nullptr, n, to, false, nullptr);
}

// The job of row i alone in double. `copies` has copies_bytes; the product replaces the exponentials.
ALWAYS Job row_in_double(const Job& j, const Scratch<double>& f, int64_t i, double* copies) {
  const int64_t n = whole(j.cols);
  const Type wide = j.type == F64 ? F64 : F32;
  Job d = j;
  d.type = d.off_type = F64;
  d.z = widened(element(j.z, j.type, i * j.z_step), j.type, j.cols, copies);
  d.v = widened(element(j.v, wide, i * j.v_step), wide, j.cols, copies + n);
  if (j.off) d.off = widened(off(j, i), j.off_type, j.cols, copies + 2 * n);
  d.dz = f.e;
  d.label += i * j.label_step;
  d.numbers += i * j.number_row;
  d.result = j.result ? j.result + i : nullptr;
  d.parts += i;
  d.tangents += i;
  d.entropy = true;
  d.stream = false;
  return d;
}
// Replaces off of the label, and returns it: 0 leaves it out of the sums of the other columns. (A destructor would need exceptions.)
ALWAYS double replace_off(const Job& j, int64_t t, double by) {
  if (!j.off || !within(t, j.cols)) return 0;
  double* const at = (double*)j.off + t;
  const double was = *at;
  *at = by;
  return was;
}
// Calls f(k, u) for the vectors of a block, with u for Sum. The exponentials after the end of the row are 0, as v and off.
template <class F> ALWAYS void each_of_block(const Job& j, int64_t b, F f) {
  const int64_t end = least(j.cols, (b + 1) * BLOCK);
  for (int64_t k = b * BLOCK; k < end; k += Lanes<double>::L)
    for (int u = 0; u < Lanes<double>::U; u++) f(k + u * Lanes<double>::W, u);
}

ALWAYS bool finite(double x) { return x - x == 0; }

// Computes the sums of the columns, j.parts, which are those of `forward` in double, and their derivatives along v, j.tangents. Returns false
// if a number was beyond the range.
ALONE bool put_tangent_sums(Job j, Scratch<double>& f, int64_t t) {
  static const double weights[] = {0, 1, 0, 0};  // off counts
  const double *const z = (const double*)j.z, *const v = (const double*)j.v, *const w = (const double*)j.off, cool = 1 / j.temperature;
  const int64_t blocks = blocks_of(j.cols);
  j.numbers = weights;
  j.number_count = 4;
  j.number_step = 1;
  j.number_row = 0;
  for (int64_t b = 0; b < blocks; b++) sum_block<double, FUSED>(j, f, 0, t, 0, b, false, j.off);
  finish_rows<double, FORWARD>(j, f, 0, &t, 1);
  if (f.x.wide[0] != 0) return false;
  const double top = f.x.part[M][0];
  double c = 0, s = 0, u = 0, o = 0;
  int64_t j0 = 0;
  while (f.b.m[j0 / BLOCK] != top) j0 += BLOCK;  // c belongs to the first column with the largest logit
  if (top > -INF) {
    while (j0 == t || (f.y ? f.y : z)[j0] != top) j0++;
    c = v[j0] * (f.y ? f.slope[j0] : 1);
  }
  const double off_t = replace_off(j, t, 0);
  for (int64_t b = 0; b < blocks; b++) {
    const Shift<double> shift(splat(f.b.m[b]), j.scale);
    Sum<double> of_s, of_u, of_o;
    each_of_block(j, b, [&](int64_t k, int lane) {
      const V<double> y = read((f.y ? f.y : z) + k), slope = f.y ? read(f.slope + k) : splat(1.0);
      const V<double> away = c - read(v + k) * slope, term = times<double>(read(f.e + k), away);
      of_s.add(lane, term);
      of_u.add(lane, times<double>(term, fma<double>(splat(-j.scale), y - shift.sub, shift.rest)));
      if (w) of_o.add(lane, times<double>(read(w + k), away));
    });
    const double down = f.b.down[b] * (1 / Exp<double>::lift), block = of_s.total();
    s += times(down, block);
    u += times(down, of_u.total() + times(block, above(top, shift.sub[0], shift.rest[0], j.scale)));
    o += of_o.total();
  }
  replace_off(j, t, off_t);
  const double vt = within(t, j.cols) ? v[t] * (f.y ? f.slope[t] : 1) : 0, found[TANGENTS] = {c, s, u, o, vt};
  for (int k = 0; k < TANGENTS; k++) j.tangents[k * j.tangents_step] = found[k] * cool;
  return finite(c + s + u + o + vt) || !finite(f.x.part[Part::S][0]);
}

// Computes the product of the Hessian and v, as f.e, and what Product lists, from the sums of the whole row and their derivatives. Returns false
// if a number was beyond the range.
ALONE bool put_hessian(const Job& j, Scratch<double>& f, int64_t t) {
  constexpr int W = Lanes<double>::W;
  const double *const z = (const double*)j.z, *const v = (const double*)j.v, *const w = (const double*)j.off;
  const bool bent = is_bent(j);
  const int64_t blocks = blocks_of(j.cols);
  for (int64_t b = 0; b < blocks; b++) sum_block<double, BACKWARD>(j, f, 0, t, 0, b, false, false);
  merge_blocks<BACKWARD>(j, f.b, 0, 1);
  if (j.capped) put_parts<double>(j, f, 0, t, 0);
  const double y_t = j.capped ? f.x.part[ZT][0] : 0;
  finish<BACKWARD>(j, f.x, 0, 1, j.scale);
  if (f.x.wide[0] != 0) return false;
  // From the sums alone, so that all shards get the same bits: f.x.part may have the columns' own m and zt, before the product with the cap.
  auto part = [&](Part n) { return j.parts[n * j.parts_step] / (n == M || n == ZT ? cap_of(j) : 1); };
  auto tangent = [&](Tangent n) { return j.tangents[n * j.tangents_step]; };
  const Finished x = finished(splat(part(M)), splat(part(Part::S)), splat(part(ZT)), j.scale);
  const double unit = x.unit[0], hit = x.hit[0], nll = x.nll[0], over = x.over[0], behind = tangent(BASE) - tangent(VT);
  const double s = times(unit, tangent(DS)), lead = s + times(hit, behind), at = s - times(x.miss[0], behind);
  // Differences are those to the more probable of the label and the column of c.
  const bool by_label = part(ZT) > part(M);
  const double base = tangent(by_label ? VT : BASE), to_mean = by_label ? at : lead, mean = base - to_mean;
  const double by_off = times(lead, part(O)) - tangent(DO) + times(part(WT), at);
  const double by_entropy = times(lead, unit * (part(U) + times(part(Part::S), over))) -
                            times(unit, tangent(DU) + times(tangent(DS), over)) + times(hit, nll * at);
  const double found[PRODUCTS] = {mean, part(ZT) == -INF ? 0 : at, by_off, by_entropy};
  for (int k = 0; k < PRODUCTS; k++) j.result[k * j.result_step] = found[k];
  bool live = false;
  for (int k = 0; k < NUMBERS; k++) live = live || number(j, (Number)k, 0) != 0;
  if (!live) {
    for (int64_t k = 0; k < j.cols; k++) f.e[k] = 0;
    return true;
  }
  // hv_k = slope (yhat ((a - e + e far) apart + da + bend (a + e far)) - drop off bend)
  const double cool = 1 / j.temperature, a = f.x.a[0] * cool, e = f.x.e[0] * cool, drop = f.x.drop[0], curved = bent ? -2 / j.cap : 0;
  const double da = (times(times(number(j, Number::G, 0), number(j, Q, 0)), mean) - times(f.x.e[0], by_entropy)) * cool;
  V<double> outside = splat(0 * (mean + at + by_off + by_entropy));  // 0, or NaN
  const double off_t = replace_off(j, t, 0);
  for (int64_t b = 0; b < blocks; b++) {
    const Shift<double> shift(splat(f.b.m[b]), j.scale);
    const double factor = f.b.down[b] * unit, lift = above(f.b.top[b], shift.sub[0], shift.rest[0], j.scale) + over;
    each_of_block(j, b, [&](int64_t k, int) {
      const V<double> y = read((f.y ? f.y : z) + k), along = read(v + k), slope = f.y ? read(f.slope + k) : splat(1.0);
      const V<double> far = fma<double>(splat(-j.scale), y - shift.sub, shift.rest) + lift, apart = (along * slope * cool - base) + to_mean;
      const V<double> yhat = read(f.e + k) * factor * (1 / Exp<double>::lift), bend = bent ? curved * y * along : V<double>{};
      V<double> h = times<double>(yhat, (a - e + e * far) * apart + da + bend * (a + e * far));
      if (bent && w) h -= times<double>(drop * read(w + k), bend);
      h = h * slope;
      outside += h * 0;
      store(f.e + k, h);
    });
  }
  replace_off(j, t, off_t);
  if (within(t, j.cols)) {
    f.e[t] = times(hit, (a - e + e * nll) * at + da) + times(f.x.hot[0], curved * y_t * v[t]);
    f.e[t] *= f.y ? f.slope[t] : 1;
    outside += f.e[t] * 0;
  }
  double all = 0;
  for (int i = 0; i < W; i++) all += outside[i];
  return all == 0 || !finite(part(Part::S) + tangent(BASE) + tangent(DS) + tangent(DU) + tangent(DO) + tangent(VT));
}

// Computes TANGENT_SUMS or HESSIAN of the rows. A row in which a number was beyond the range of double is computed in wide numbers.
template <Op op> void in_double(const Job& j, int64_t first, int64_t last, void* scratch, Phase, int64_t) {
  Scratch<double> f(scratch, j);
  for (int64_t i = first; i < last; i++) {
    if (ignored(j, i)) {
      WideRow(j, i).ignored(op);
      continue;
    }
    const Job row = row_in_double(j, f, i, (double*)((char*)scratch + scratch_bytes(j.cols, j.capped)));
    const int64_t t = find_label(row, 0);
    const bool done = !j.extreme && (op == HESSIAN ? put_hessian(row, f, t) : put_tangent_sums(row, f, t));
    if (!done) op == HESSIAN ? WideRow(row, 0).hessian(t) : WideRow(row, 0).tangent_sums(t);
    if (op == HESSIAN) narrow(f.e, j.cols, j.type, gradient(j, i));
  }
}
