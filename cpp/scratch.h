// The memory of a thread, and how the arrays of a call are read. kernel.cpp includes this file, inside its anonymous namespace.

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
// Whether a label stands for the column with the largest off, or with the largest logit.
ALWAYS bool is_largest_off(const Job& j, int64_t t) { return t == LARGEST && j.off_by_row; }
ALWAYS bool is_largest_logit(const Job& j, int64_t t) { return t == LARGEST_LOGIT || (t == LARGEST && !j.off_by_row); }
ALWAYS bool ignored(const Job& j, int64_t i) { return label(j, i) == IGNORED; }
ALWAYS int64_t from(int64_t t, int64_t k) { return (int64_t)((uint64_t)t - (uint64_t)k); }
ALWAYS bool within(int64_t t, int64_t n) { return (uint64_t)t < (uint64_t)n; }
ALWAYS int64_t bytes_of(Type type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }
ALWAYS const void* element(const void* p, Type type, int64_t k) { return (const char*)p + k * bytes_of(type); }
ALWAYS const void* logits(const Job& j, int64_t i) { return element(j.z, j.type, i * j.z_step); }  // of row i
ALWAYS const void* off(const Job& j, int64_t i) { return j.off ? element(j.off, j.off_type, i * j.off_step) : nullptr; }
ALWAYS void* gradient(const Job& j, int64_t i) { return (void*)element(j.dz, j.type, i * j.dz_step); }
template <class T> ALWAYS typename T::A get(const typename T::S* p) { return T::widen(decltype(T::narrow(V<typename T::A>{})){*p})[0]; }
template <class T> ALWAYS void put(typename T::S* p, typename T::A v) { *p = T::narrow(splat(v))[0]; }

// Computes y and its slope for one logit; without a softcap, they are the logit and 1.
template <class A> ALWAYS A softcapped(const Job& j, A z, A& slope) {
  slope = 1;
  if (!j.capped) return z;
  V<A> y = splat(z) * (A)j.unit, s;
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
