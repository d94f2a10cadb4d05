// Rows of any strides. The kernels read and write rows whose columns are adjacent; what lies otherwise is copied, a tile of rows at a time,
// into memory that stays in the cache, and back. run.cpp includes this file.
//
// Where rows are adjacent and columns are not (classes on an axis before the last), blocks of four rows and four columns are transposed in
// registers.
#pragma once
#include <string.h>
#include <algorithm>
#include "run.h"

namespace softxent {
template <class X> struct Block {  // four vectors of four
  typedef X V __attribute__((vector_size(4 * sizeof(X))));
  V v[4];
  void load(const X* from, int64_t step) {
    for (int i = 0; i < 4; i++) memcpy(&v[i], from + i * step, sizeof(V));
  }
  void store(X* to, int64_t step) const {
    for (int i = 0; i < 4; i++) memcpy(to + i * step, &v[i], sizeof(V));
  }
  void transpose() {
#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
    typedef decltype(v[0] == v[0]) Index;
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Index{i, j, k, l})
#endif
    const V a = SHUFFLE(v[0], v[1], 0, 4, 1, 5), b = SHUFFLE(v[2], v[3], 0, 4, 1, 5);
    const V c = SHUFFLE(v[0], v[1], 2, 6, 3, 7), d = SHUFFLE(v[2], v[3], 2, 6, 3, 7);
    v[0] = SHUFFLE(a, b, 0, 1, 4, 5);
    v[1] = SHUFFLE(a, b, 2, 3, 6, 7);
    v[2] = SHUFFLE(c, d, 0, 1, 4, 5);
    v[3] = SHUFFLE(c, d, 2, 3, 6, 7);
#undef SHUFFLE
  }
};

// Copies a matrix [n, m] between memories with the given steps of rows and columns, in elements. X has the size of an element.
template <class X>
void copy_matrix(const X* from, int64_t from_row, int64_t from_column, X* to, int64_t to_row, int64_t to_column, int64_t n, int64_t m) {
  if (from_column == 1 && to_column == 1) {
    for (int64_t i = 0; i < n; i++) memcpy(to + i * to_row, from + i * from_row, m * sizeof(X));
    return;
  }
  int64_t whole_rows = 0, whole_columns = 0;
  if ((from_row == 1 && to_column == 1) || (from_column == 1 && to_row == 1)) {
    const bool gather = from_row == 1;
    whole_rows = n / 4 * 4;
    whole_columns = m / 4 * 4;
    for (int64_t k = 0; k < whole_columns; k += 4)
      for (int64_t i = 0; i < whole_rows; i += 4) {
        Block<X> b;
        b.load(from + i * from_row + k * from_column, gather ? from_column : from_row);
        b.transpose();
        b.store(to + i * to_row + k * to_column, gather ? to_row : to_column);
      }
  }
  for (int64_t k = 0; k < m; k++)
    for (int64_t i = k < whole_columns ? whole_rows : 0; i < n; i++) to[i * to_row + k * to_column] = from[i * from_row + k * from_column];
}

// Calls f with a zero of a type that has so many bytes.
template <class F> void with_size(int64_t bytes, F f) { bytes == 8 ? f(uint64_t(0)) : bytes == 4 ? f(uint32_t(0)) : f(uint16_t(0)); }
}
