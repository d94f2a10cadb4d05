// Copies between memories of any strides, so that what lies otherwise can be computed in the cache: a tile of rows at a time. run.cpp
// includes this file.
//
// Where rows are adjacent and columns are not (classes on an axis before the last), blocks of as many rows and columns as a vector of 16
// bytes has entries are transposed in registers. Vectors of 32 bytes took 10 % less time at most: what counts is to ask early for the cache
// lines of the columns, which the processor does not foresee (0.37 in place of 1.1 ns an entry, read from [8, 1000, 128], and 0.23 in place
// of 1.2 written).
#pragma once
#include <string.h>
#include <algorithm>
#include "run.h"

namespace softxent {
template <class X> struct Block {
  static constexpr int N = 16 / sizeof(X);
  typedef X V __attribute__((vector_size(16)));
  V v[N];
  void load(const X* from, int64_t step) {
    for (int i = 0; i < N; i++) memcpy(&v[i], from + i * step, sizeof(V));
  }
  void store(X* to, int64_t step) const {
    for (int i = 0; i < N; i++) memcpy(to + i * step, &v[i], sizeof(V));
  }
  // Interleaves the entries of a vector of each half, log2 N times.
  void transpose() {
    for (int width = 1; width < N; width *= 2) {
      V w[N];
      for (int i = 0; i < N / 2; i++) interleave(v[i], v[i + N / 2], w[2 * i], w[2 * i + 1]);
      memcpy(v, w, sizeof v);
    }
  }
  static void interleave(V a, V b, V& low, V& high) {
#if defined(__clang__)
#define SHUFFLE(...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
    typedef decltype(a == b) I;
#define SHUFFLE(...) __builtin_shuffle(a, b, I{__VA_ARGS__})
#endif
    if constexpr (N == 2) {
      low = SHUFFLE(0, 2);
      high = SHUFFLE(1, 3);
    } else if constexpr (N == 4) {
      low = SHUFFLE(0, 4, 1, 5);
      high = SHUFFLE(2, 6, 3, 7);
    } else {
      low = SHUFFLE(0, 8, 1, 9, 2, 10, 3, 11);
      high = SHUFFLE(4, 12, 5, 13, 6, 14, 7, 15);
    }
#undef SHUFFLE
  }
};

// Copies a matrix [n, m] between memories of which one has adjacent rows and the other adjacent columns, as many whole blocks as there are.
// `far` is the former, whose columns may be far apart.
template <class X>
void transpose_blocks(const X* from, int64_t from_step, X* to, int64_t to_step, const X* far, int64_t far_step, int64_t n, int64_t m,
                      bool gather) {
  constexpr int N = Block<X>::N;
  constexpr int64_t EARLY = 8, LINE = 64 / sizeof(X);  // columns
  for (int64_t k = 0; k + N <= m; k += N) {
    for (int64_t c = k + EARLY; c < k + EARLY + N; c++)
      for (int64_t i = 0; i < n; i += LINE) __builtin_prefetch(far + c * far_step + i);
    for (int64_t i = 0; i + N <= n; i += N) {
      Block<X> b;
      b.load(gather ? from + k * from_step + i : from + i * from_step + k, from_step);
      b.transpose();
      b.store(gather ? to + i * to_step + k : to + k * to_step + i, to_step);
    }
  }
}

// Copies a matrix [n, m] between memories with the given steps of rows and columns, in elements. X has the size of an element.
template <class X>
void copy_matrix(const X* from, int64_t from_row, int64_t from_column, X* to, int64_t to_row, int64_t to_column, int64_t n, int64_t m) {
  if (from_row == 1 && to_row == 1) {
    std::swap(from_row, from_column);
    std::swap(to_row, to_column);
    std::swap(n, m);
  }
  if (from_column == 1 && to_column == 1) {
    for (int64_t i = 0; i < n; i++) memcpy(to + i * to_row, from + i * from_row, m * sizeof(X));
    return;
  }
  int64_t whole_rows = 0, whole_columns = 0;
  const bool gather = from_row == 1 && to_column == 1, scatter = from_column == 1 && to_row == 1;
  if (gather) transpose_blocks(from, from_column, to, to_row, from, from_column, n, m, true);
  if (scatter) transpose_blocks(from, from_row, to, to_column, (const X*)to, to_column, n, m, false);
  if (gather || scatter) {
    whole_rows = n / Block<X>::N * Block<X>::N;
    whole_columns = m / Block<X>::N * Block<X>::N;
  }
  for (int64_t k = 0; k < m; k++)
    for (int64_t i = k < whole_columns ? whole_rows : 0; i < n; i++) to[i * to_row + k * to_column] = from[i * from_row + k * from_column];
}

// Calls f with a zero of a type that has so many bytes.
template <class F> void with_size(int64_t bytes, F f) { bytes == 8 ? f(uint64_t(0)) : bytes == 4 ? f(uint32_t(0)) : f(uint16_t(0)); }

// The step between vectors of n elements of a tile: whole cache lines, and an odd number of them, so that the vectors do not compete for
// the same places of a cache.
inline int64_t tile_step(int64_t n, int64_t size) { return ((n * size + 63) / 64 | 1) * 64 / size; }
}
