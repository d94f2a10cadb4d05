// The phases of a long row, a block at a time: its sums, its results, its gradient. kernel.cpp includes this file, inside its anonymous
// namespace.

ALONE int64_t largest(const void* x, Type type, int64_t n, double* tops) {
  if (type == F64) return largest<f64>((const double*)x, n, tops);
  if (type == F32) return largest<f32>((const float*)x, n, tops);
  return type == BF16 ? largest<bf16>((const uint16_t*)x, n, tops) : largest<f16>((const uint16_t*)x, n, tops);
}
// Returns the label of row i.
ALWAYS int64_t find_label(const Job& j, int64_t i, double* tops = nullptr) {
  const int64_t t = label(j, i);
  if (is_largest_off(j, t)) return largest(off(j, i), j.off_type, j.cols, nullptr);
  return is_largest_logit(j, t) ? largest(logits(j, i), j.type, j.cols, tops) : t;
}

// Stores the most probable class of row i, if it is wanted.
ALWAYS void put_predicted(const Job& j, int64_t i) {
  if (j.predicted) j.predicted[i] = ignored(j, i) ? -1 : largest(logits(j, i), j.type, j.cols, nullptr);
}

ALWAYS bool needs_all(const Job& j) { return j.number_count > 4 || j.entropy; }
template <class A, Op op>
ALWAYS double softcapped(const Job& j, const A* z, int64_t n, int64_t t, A* y, A* slope, A* e, A& top, const Ahead& ahead) {
  if (needs_all(j)) return softcapped_exponentials<A, EACH_OF_THEM>(j, z, n, t, y, slope, e, top, ahead);
  return softcapped_exponentials<A, op == FORWARD ? NOTHING : PRODUCT>(j, z, n, t, y, slope, e, top, ahead);
}

// Computes the exponentials and the sums of block b of row i, whose label is t; with_off: also of off.
template <class A, Op op>
ALONE void sum_block(const Job& j, Scratch<A>& f, int64_t i, int64_t t, int g, int64_t b, bool once, bool with_off,
                     bool top_is_known = false) {
  constexpr int L = Lanes<A>::L, G = 4 * L;
  const int64_t k = b * BLOCK, n = least(j.cols - k, BLOCK), at = g + b, place = g * whole(j.cols) + k;
  t = from(t, k);
  const Storage<A>& memory = storage<A>(j.type);
  const int size = bytes_of(j.type);
  const char* z = (const char*)logits(j, i) + k * size;
  const A scale = j.scale;
  A *y = f.y ? f.y + place : nullptr, *slope = f.y ? f.slope + place : nullptr, *e = f.e + place;
  const int64_t padded = (n + G - 1) / G * G;
  const bool with_u = op != BACKWARD && j.entropy, copied = !memory.same || (!y && j.cols <= COPIED);
  const Ahead ahead = {z + (top_is_known ? j.z_step : n) * size, !j.dz || j.stream ? nullptr : (const char*)gradient(j, i) + k * size,
                       size};
  double u = 0, s;
  A most;
  if (copied)
    most = memory.copy_and_top(z, n, y ? -1 : t, e);  // with a softcap, the slope at the label is needed
  else if (!y)
    most = top_is_known && !within(t, n) ? (A)f.b.top[at] : top<plain<A>>((const A*)z, n, t);
  const A* x = copied ? e : (const A*)z;
  if (once)
    s = softcapped<A, op>(j, x, n, t, y, slope, e, most, ahead);
  else if (y) {
    softcap<A>(j, x, n, t, y, slope);
    most = top<plain<A>>(y, padded, -1);
    x = y;
  }
  if (op != BACKWARD && with_off) {
    const A finite_top = most == -(A)INF ? 0 : most;
    double &o = f.b.o[at], &d = f.b.d[at];
    Copy<A> copy;
    dot<A>(x, columns_as<A>(j.off_type, off(j, i), k, n, copy), n, t, finite_top, o, d);
    if (are_inexact<A>(o, d)) dot_in_double<A>(j, i, k, n, t, finite_top, o, d);
    d *= 2 * j.scale;
  } else
    f.b.o[at] = f.b.d[at] = 0;
  const Shift<A> shift(splat(most), scale);
  f.b.m[at] = most;
  f.b.sub[at] = once ? 0 : shift.sub[0];
  f.b.n[at] = once ? Shift<A>(splat(most * scale), 1).n[0] : shift.n[0];
  if (once) {
    const double power = power_of_two(-f.b.n[at] - LIFT);
    s *= power;
    if (with_u) u = below_top(y, e, padded, scale, most) * power;
  } else
    s = sums<A, op>(x, y || copied ? padded : n, y || copied ? -1 : t, shift, scale, e, u, with_u, ahead);
  f.b.s[at] = s;
  f.b.u[at] = u;
}

// Puts the merged sums of row i, whose label is t, into its parts.
template <class A> ALWAYS void put_parts(const Job& j, Scratch<A>& f, int64_t i, int64_t t, int g) {
  const Blocks& b = f.b;
  const bool hit = within(t, j.cols);
  A slope;
  const double zt = hit ? (double)softcapped<A>(j, read_one(logits(j, i), j.type, t), slope) : -INF;
  const double wt = hit && j.off ? off_at(j, off(j, i), t) : 0;
  const double part[PARTS] = {b.top[g], b.s[g], b.o[g], b.d[g], zt, wt, b.u[g]};
  for (int k = 0; k < PARTS; k++) f.x.part[k][g] = part[k];
}

ALWAYS bool needs(const Tile& x, int g, int what) { return (int)x.wide[g] & what; }
// Whether row first + g, in the tile's index g, is computed in wide numbers. A truth at a hidden class makes a sum infinite: it stays so.
ALWAYS bool is_wide(const Job& j, Tile& x, int64_t first, int g, int64_t t) {
  if (__builtin_expect(x.wide[g] == 0, 1) || ignored(j, first + g)) return false;
  if (needs(x, g, SUM_WITH_OFF) && WideRow(j, first + g).has_truth_at_hidden(t)) x.wide[g] -= SUM_WITH_OFF;
  return x.wide[g] != 0;
}
ALWAYS void in_wide(WideRow row, Op op, int64_t t, const Tile& x, int g) {
  if (needs(x, g, SUMS)) return row.loss_and_gradient(op, t);
  if (needs(x, g, SUM_WITH_OFF)) row.loss_and_gradient(FORWARD, t);
  if (needs(x, g, GRADIENT)) row.gradient(t, x.part, g);
}

// Merges the sums of the blocks of each row and computes its results, and the gradient of a row in wide numbers.
template <class A, Op op> ALONE void finish_rows(const Job& j, Scratch<A>& f, int64_t first, const int64_t* labels, int some) {
  merge_blocks<op>(j, f.b, first, some);
  for (int g = 0; g < some; g++)
    if (op != BACKWARD || (j.capped && !ignored(j, first + g))) put_parts<A>(j, f, first + g, labels[g], g);
  finish<op>(j, f.x, first, some, j.scale);
  for (int g = 0; g < some; g++)
    if (is_wide(j, f.x, first, g, labels[g])) in_wide(WideRow(j, first + g), op, labels[g], f.x, g);
}

// Returns where columns of row i are written from column k on: their place in dz or, if they are to be converted or to be stored past the
// caches, e. put_target completes that.
template <class A> ALWAYS A* target(const Job& j, A* e, int64_t i, int64_t k) {
  return storage<A>(j.type).same && !j.stream ? (A*)gradient(j, i) + k : e;
}
template <class A> ALWAYS void put_target(const Job& j, const A* from, int64_t i, int64_t k, int64_t n) {
  void* const dz = (char*)gradient(j, i) + k * bytes_of(j.type);
  if (from != dz) storage<A>(j.type).put_block(from, 1, 1, 0, nullptr, nullptr, n, dz, j.stream, nullptr);
}

// Writes block b of the gradient of row i, whose label is t.
template <class A> ALONE void write_block(const Job& j, Scratch<A>& f, int64_t i, int64_t t, int g, int64_t b) {
  constexpr int W = Lanes<A>::W;
  const int64_t k = b * BLOCK, n = least(j.cols - k, BLOCK), place = g * whole(j.cols) + k;
  t = from(t, k);
  const Storage<A>& memory = storage<A>(j.type);
  const int size = bytes_of(j.type);
  char* out = (char*)gradient(j, i) + k * size;
  if (__builtin_expect(needs(f.x, g, SUMS | GRADIENT), 0) && !ignored(j, i)) return;
  if (!f.x.live[g]) {
    __builtin_memset(out, 0, n * size);
    return;
  }
  Copy<A> off_copy;
  const A* w = j.off ? columns_as<A>(j.off_type, off(j, i), k, n, off_copy) : nullptr;
  A *e = f.e + place, slope = 1;
  const A* of_slope = f.y ? f.slope + place : nullptr;
  const double down = f.b.down[g + b];
  if (j.capped && within(t, n)) softcapped<A>(j, read_one(logits(j, i), j.type, k + t), slope);  // before dz, which may be z, is written
  const bool once = one_pass(j);
  const double power = once ? power_of_two(-f.b.n[g + b] - LIFT) * Exp<A>::lift : 1;
  if (f.x.e[g] != 0) {
    const Shift<A> shift(splat((A)f.b.m[g + b]), (A)j.scale);
    const double a = f.x.a[g] + times(f.x.e[g], lse_below(f, g, g + b, shift.sub[0], shift.rest[0], j.scale));
    Copy<A> z_copy;
    const A* y = f.y ? f.y + place : columns_as<A>(j.type, logits(j, i), k, n, z_copy);
    A* const dz = target(j, e, i, k);
    put_general<A>(y, of_slope, e, f.x.unit[g] * down, power, a, f.x.e[g], shift, j.scale, f.x.drop[g], w, dz, n);
    put_target(j, dz, i, k, n);
  } else {
    if (once && needs_all(j))  // else e is the product already
      for (int64_t c = 0; c < whole(n); c += W) store(e + c, read(e + c) * read(of_slope + c));
    const Scale<A, double> by(f.x.scale[g] * down, power);
    const char* next = j.ahead ? (const char*)logits(j, i + 1) + k * size : nullptr;
    memory.put_block(e, by.first, by.last, f.x.drop[g], w, once ? nullptr : of_slope, n, out, j.stream, next);
  }
  if (within(t, n)) write_one(out, j.type, t, (A)(f.x.hot[g] * slope));
}
