// The types in memory. The kernel computes in float or double, A: columns of another type are converted when they are read and when they are
// written, a block or a panel at a time. kernel.cpp includes this file, inside its anonymous namespace.

// ---- a block of a row ----

// Rows with up to so many columns are copied by the pass that finds the largest logit. The next pass then has no label and no end to look
// for: their copies and mispredicted branches cost more (12 % of the time of [16384, 300]; a copy of longer rows costs 20 %).
constexpr int64_t COPIED = 1024;

template <class A> ALWAYS A largest_of(V<A>* m) {  // the largest entry of four vectors
  constexpr int W = Lanes<A>::W;
  A a[W];
  m[0] = m[0] > m[1] ? m[0] : m[1];
  m[2] = m[2] > m[3] ? m[2] : m[3];
  store(a, m[0] > m[2] ? m[0] : m[2]);
  for (int w = W / 2; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
  return a[0] + 0;  // turns -0 into 0, so that the order of the comparisons does not matter
}

// Returns the largest logit except the label's. With `copy_to`, copies the logits, with -inf at the label and after the end of the row.
template <class T, bool with_copy = false>
ALWAYS typename T::A top(const typename T::S* z, int64_t n, int64_t t, typename T::A* copy_to = nullptr) {
  typedef typename T::A A;
  typedef typename T::S S;
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L, G = 4 * L;
  V<A> m[4];
  for (int c = 0; c < 4; c++) m[c] = splat<A>(-INF);
  for (int64_t k = 0; k < n; k += G) {
    S copy[G];
    const S* q = columns_without_label(z, k, n, t, G, T::low, copy);
    if (with_copy && n <= COPIED)
      for (int i = 0; i < G * (int)sizeof(S); i += 64) __builtin_prefetch((const char*)(z + k + 2 * n) + i, 0, 3);
    for (int u = 0; u < Lanes<A>::U; u++) {
      V<A> v[4];
      for (int c = 0; c < 4; c++) v[c] = T::load(q + c * L + u * W);
      if (with_copy)
        for (int c = 0; c < 4; c++) store(copy_to + k + c * L + u * W, v[c]);
      for (int c = 0; c < 4; c++) m[c] = v[c] > m[c] ? v[c] : m[c];
    }
  }
  return largest_of<A>(m);
}

// ---- a panel of short rows ----

template <class X> struct FourOf {
  typedef X V __attribute__((vector_size(4 * sizeof(X))));
};
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Index{i, j, k, l})
#endif
template <class X> ALWAYS void transpose(typename FourOf<X>::V* v) {  // four vectors of four
  typedef decltype(v[0] == v[0]) Index;
  const auto a = SHUFFLE(v[0], v[1], 0, 4, 1, 5), b = SHUFFLE(v[2], v[3], 0, 4, 1, 5);
  const auto c = SHUFFLE(v[0], v[1], 2, 6, 3, 7), d = SHUFFLE(v[2], v[3], 2, 6, 3, 7);
  v[0] = SHUFFLE(a, b, 0, 1, 4, 5);
  v[1] = SHUFFLE(a, b, 2, 3, 6, 7);
  v[2] = SHUFFLE(c, d, 0, 1, 4, 5);
  v[3] = SHUFFLE(c, d, 2, 3, 6, 7);
}

// Copies n columns of `some` rows of any strides to a panel, as slots. Where rows are adjacent, a column of the panel is read at once.
template <class T>
ALONE void strided_to_panel(const typename T::S* z, int64_t step, int64_t column, int64_t n, int some, typename T::A* panel) {
  typedef typename T::A A;
  constexpr int L = Lanes<A>::L;
  typename T::Slot slots[L];
  if (step == 1 && some == L)
    for (int64_t c = 0; c < n; c++, z += column) {
      __builtin_prefetch(z + 2 * L, 0, 3);
      for (int g = 0; g < L; g++) slots[g] = z[g];
      __builtin_memcpy(panel + c * L, slots, sizeof slots);
    }
  else
    for (int64_t c = 0; c < n; c++, z += column) {
      for (int g = 0; g < L; g++) slots[g] = z[least(g, some - 1) * step];
      __builtin_memcpy(panel + c * L, slots, sizeof slots);
    }
}
// Copies n columns of a panel of slots to `some` rows of any strides.
template <class T>
ALONE void panel_to_strided(const typename T::A* panel, int64_t n, typename T::S* dz, int64_t step, int64_t column, int some) {
  typedef typename T::A A;
  constexpr int L = Lanes<A>::L;
  typename T::Slot slots[L];
  for (int64_t c = 0; c < n; c++, dz += column) {
    __builtin_memcpy(slots, panel + c * L, sizeof slots);
    if (step == 1 && some == L)
      for (int g = 0; g < L; g++) dz[g] = slots[g];
    else
      for (int g = 0; g < some; g++) dz[g * step] = slots[g];
  }
}
// Copies n columns of `some` rows to a panel, as slots. Where columns are adjacent, four columns of four rows are moved at a time; the last
// four may overlap others.
template <class T>
ALWAYS void rows_to_panel(const typename T::S* z, int64_t step, int64_t column, int64_t n, int some, typename T::A* panel) {
  typedef typename T::A A;
  typedef typename T::S S;
  constexpr int L = Lanes<A>::L;
  typedef typename T::Slot Slot;
  if (column != 1) return strided_to_panel<T>(z, step, column, n, some, panel);
  for (int g = 0; g < L; g += 4) {
    const S* rows[4];
    for (int i = 0; i < 4; i++) rows[i] = z + least(g + i, some - 1) * step;
    for (int64_t c = 0; n < 4 && c < n; c++)
      for (int i = 0; i < 4; i++) {
        const Slot slot = rows[i][c];
        __builtin_memcpy(panel + c * L + g + i, &slot, sizeof slot);
      }
    for (int64_t next = 0; n >= 4 && next < n; next += 4) {
      const int64_t c = least(next, n - 4);
      typename FourOf<Slot>::V v[4];
      for (int i = 0; i < 4; i++) {
        typename FourOf<S>::V stored;
        __builtin_memcpy(&stored, rows[i] + c, sizeof stored);
        v[i] = __builtin_convertvector(stored, typename FourOf<Slot>::V);
      }
      transpose<Slot>(v);
      for (int i = 0; i < 4; i++) __builtin_memcpy(panel + (c + i) * L + g, v + i, sizeof v[i]);
    }
  }
}
// Copies n columns of a panel of slots to `some` rows.
template <class T>
ALWAYS void panel_to_rows(const typename T::A* panel, int64_t n, typename T::S* dz, int64_t step, int64_t column, int some) {
  typedef typename T::A A;
  typedef typename T::S S;
  constexpr int L = Lanes<A>::L;
  typedef typename T::Slot Slot;
  if (column != 1) return panel_to_strided<T>(panel, n, dz, step, column, some);
  for (int g = 0; g < some; g += 4) {
    for (int64_t c = 0; n < 4 && c < n; c++)
      for (int i = 0; i < 4 && g + i < some; i++) {
        Slot slot;
        __builtin_memcpy(&slot, panel + c * L + g + i, sizeof slot);
        dz[(g + i) * step + c] = slot;
      }
    for (int64_t next = 0; n >= 4 && next < n; next += 4) {
      const int64_t c = least(next, n - 4);
      typename FourOf<Slot>::V v[4];
      for (int i = 0; i < 4; i++) __builtin_memcpy(v + i, panel + (c + i) * L + g, sizeof v[i]);
      transpose<Slot>(v);
      for (int i = 0; i < 4 && g + i < some; i++) {
        const auto stored = __builtin_convertvector(v[i], typename FourOf<S>::V);
        __builtin_memcpy(dz + (g + i) * step + c, &stored, sizeof stored);
      }
    }
  }
}

// ---- what the kernel calls ----

template <class T> ALONE typename T::A copy_and_top(const void* z, int64_t n, int64_t t, typename T::A* to) {
  return top<T, true>((const typename T::S*)z, n, t, to);
}
template <class T> ALONE void read_block(const void* from, int64_t n, typename T::A* to) {
  typedef typename T::S S;
  constexpr int W = Lanes<typename T::A>::W;
  int64_t k = 0;
  for (; k + W <= n; k += W) store(to + k, T::load((const S*)from + k));
  for (; k < n; k++) to[k] = get<T>((const S*)from + k);
}
// Computes dz := slope (first last e - drop off). All arrays may be read up to the next multiple of 64 columns, except off.
template <class T, bool with_off, bool with_slope>
ALONE void put_columns(const typename T::A* e, typename T::A first, typename T::A last, typename T::A drop, const typename T::A* off,
                       const typename T::A* slope, int64_t n, void* to, bool stream, const char* next) {
  typedef typename T::A A;
  typedef typename T::S S;
  constexpr int W = Lanes<A>::W;
  constexpr int64_t PER = T::PER * W, UNIT = T::PER * Lanes<A>::L;  // columns of a native and of a virtual vector in memory
  S* dz = (S*)to;
  auto packed = [=](int64_t k, const A* w) INLINED {
    V<A> v[T::PER];
    for (int i = 0; i < T::PER; i++) {
      v[i] = read(e + k + i * W) * first * last;
      if (with_off) v[i] = fma<A>(splat(-drop), read(w + i * W), v[i]);
      if (with_slope) v[i] = v[i] * read(slope + k + i * W);
    }
    return T::pack(v);
  };
  auto write_some = [=](int64_t k, int64_t stop) {
    for (; k < stop; k += PER) {
      A copy[PER];
      S result[PER];
      const auto vector = packed(k, with_off ? columns_without_label<A>(off, k, n, -1, PER, 0, copy) : nullptr);
      __builtin_memcpy(result, &vector, sizeof vector);
      for (int64_t i = 0; i < PER && k + i < stop; i++) dz[k + i] = result[i];
    }
  };
  int64_t k = stream ? least<int64_t>(-((uintptr_t)dz / sizeof(S)) % PER, n) : 0;
  write_some(0, k);
  for (; k + UNIT <= n; k += UNIT)
    for (int64_t i = k; i < k + UNIT; i += PER) {  // in this order: a line that is written from its end took twice the time
      const auto vector = packed(i, with_off ? off + i : nullptr);
      if (stream && T::PER == 1 && next) __builtin_prefetch(next + i * sizeof(S), 0, 2);  // no gain for 16-bit types
      stream ? past_caches(dz + i, vector) : (void)__builtin_memcpy(dz + i, &vector, sizeof vector);
    }
  write_some(k, n);
}
template <class T>
ALONE void put_block(const typename T::A* e, typename T::A first, typename T::A last, typename T::A drop, const typename T::A* off,
                     const typename T::A* slope, int64_t n, void* to, bool stream, const char* next) {
  if (off && slope) return put_columns<T, true, true>(e, first, last, drop, off, slope, n, to, stream, next);
  if (off) return put_columns<T, true, false>(e, first, last, drop, off, slope, n, to, stream, next);
  if (slope) return put_columns<T, false, true>(e, first, last, drop, off, slope, n, to, stream, next);
  return put_columns<T, false, false>(e, first, last, drop, off, slope, n, to, stream, next);
}
template <class T> ALONE void read_panel(const void* rows, int64_t step, int64_t column, int64_t n, int some, typename T::A* panel) {
  typedef typename T::A A;
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  rows_to_panel<T>((const typename T::S*)rows, step, column, n, some, panel);
  if (sizeof(typename T::S) == sizeof(A)) return;
  for (int64_t k = 0; k < n * L; k += W) {
    decltype(T::narrow(V<A>{})) slots;
    __builtin_memcpy(&slots, panel + k, sizeof slots);
    store(panel + k, T::widen(slots));
  }
}
template <class T> ALONE void write_panel(typename T::A* panel, int64_t n, void* rows, int64_t step, int64_t column, int some) {
  typedef typename T::A A;
  typedef typename T::S S;
  constexpr int W = Lanes<A>::W, L = Lanes<A>::L;
  for (int64_t k = 0; sizeof(S) < sizeof(A) && k < n * L; k += W) {
    const auto slots = T::narrow(read(panel + k));
    __builtin_memcpy(panel + k, &slots, sizeof slots);
  }
  panel_to_rows<T>(panel, n, (S*)rows, step, column, some);
}

// Off may have any type: what is not A, or a type of 16 bits that is computed in float, is read an entry at a time.
template <class T, class A> ALONE void convert_block(const void* from, int64_t n, A* to) {
  for (int64_t k = 0; k < n; k++) to[k] = get<T>((const typename T::S*)from + k);
}
template <class T, class A> ALONE void convert_panel(const void* rows, int64_t step, int64_t column, int64_t n, int some, A* panel) {
  constexpr int L = Lanes<A>::L;
  for (int64_t c = 0; c < n; c++)
    for (int g = 0; g < L; g++) panel[c * L + g] = get<T>((const typename T::S*)rows + least(g, some - 1) * step + c * column);
}

// How columns of a type in memory are read and written as A. A block has up to BLOCK columns of a row; in a panel, lanes are rows.
template <class A> struct Storage {
  bool same;  // whether the type in memory is A
  A (*copy_and_top)(const void* z, int64_t n, int64_t t, A* to);
  void (*read_block)(const void* from, int64_t n, A* to);
  // dz := slope (first last e - drop off), where off and slope may be null. With `stream`, stores past the caches, and fetches `next`, unless
  // it is null.
  void (*put_block)(const A* e, A first, A last, A drop, const A* off, const A* slope, int64_t n, void* dz, bool stream, const char* next);
  void (*read_panel)(const void* rows, int64_t step, int64_t column, int64_t n, int some, A* panel);
  void (*write_panel)(A* panel, int64_t n, void* rows, int64_t step, int64_t column, int some);
};
template <class T>
constexpr Storage<typename T::A> STORAGE = {
    sizeof(typename T::S) == sizeof(typename T::A), copy_and_top<T>, read_block<T>, put_block<T>, read_panel<T>, write_panel<T>};
template <class T, class A> constexpr Storage<A> READABLE = {false, nullptr, convert_block<T, A>, nullptr, convert_panel<T, A>, nullptr};
template <class A> ALWAYS const Storage<A>& storage(Type type) {
  if constexpr (sizeof(A) == 8)
    return type == F64 ? STORAGE<f64> : type == F32 ? READABLE<f32, A> : type == BF16 ? READABLE<bf16, A> : READABLE<f16, A>;
  else
    return type == F32 ? STORAGE<f32> : type == BF16 ? STORAGE<bf16> : type == F16 ? STORAGE<f16> : READABLE<f64, A>;
}

// Memory for the columns of a block whose type is not A. It is on the stack, because threads share the scratch memory of a long row.
template <class A> struct Copy {
  A at[BLOCK];
};
// Returns n columns of a row, from column k on: in memory if their type is A, and otherwise the copy.
template <class A> ALWAYS const A* columns_as(Type type, const void* row, int64_t k, int64_t n, Copy<A>& copy) {
  const Storage<A>& of = storage<A>(type);
  const void* from = element(row, type, k);
  if (of.same) return (const A*)from;
  of.read_block(from, n, copy.at);
  return copy.at;
}
