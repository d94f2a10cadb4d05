// What a kernel is given: the types and constants that are shared by the part that is compiled once (bind.cpp, threads.h) and the part that
// is compiled for each instruction set (kernel.cpp). Both include this file.
//
// It assumes that it holds plain data only. An inline function here could be compiled with AVX-512 instructions in one object file, and the
// linker could use that copy for all of them. (The small constexpr functions below are always inlined; the test on nm would find them
// otherwise.)
#pragma once
#include <stdint.h>

namespace softxent {

enum Type { F32, F64, BF16, F16, TYPES };
enum Op { FORWARD, BACKWARD, FUSED, CURVATURE, LOG_SOFTMAX, TANGENT_SUMS, HESSIAN, OPS };
// What a call does: all of it or, of a long row, its label; a block's exponentials and sums; the row's results; a block of dz.
enum Phase { ALL, FIND_LABEL, SUM_BLOCK, FINISH_ROW, WRITE_BLOCK };
enum Number { Y, R, Q, G, GRAD_LSE, GRAD_LOGPROB, GRAD_ENTROPY, NUMBERS };  // numbers of a row, formula.Numbers
enum Output { LOSS, LSE, LOGPROB, ENTROPY, CORRECT, OUTPUTS };              // what a row gives, formula.Outputs
enum Part { M, S, O, D, ZT, WT, U, PARTS };                                 // the fields of Partials in partials.py
enum Tangent { BASE, DS, DU, DO, VT, TANGENTS };                            // and those of Tangents
enum Product { MEAN, AT_LABEL, BY_OFF, BY_ENTROPY, PRODUCTS };              // what CURVATURE and HESSIAN give for each row

inline constexpr int64_t IGNORED = INT64_MIN;            // label of a row that is not read
inline constexpr int64_t LARGEST = INT64_MIN + 1;        // stands for the column with the largest off, if off is [rows, cols], or logit
inline constexpr int64_t LARGEST_LOGIT = INT64_MIN + 3;  // stands for the column with the largest logit (INT64_MIN + 2: xla.h)

struct Job {
  int64_t rows, cols;
  const void* z;
  int64_t z_step, z_column;  // all steps are in elements: between rows, and between columns, which is 1 except for short rows
  const void* v;             // a direction, in the type of the computation
  int64_t v_step, v_column;
  void* dz;
  int64_t dz_step, dz_column;
  const int64_t* label;  // a label outside [0, cols) matches no column
  int64_t label_step;
  int64_t* found;                                 // [rows], written in phase FIND_LABEL
  const double* numbers;                          // [number_count, rows or 1]
  int64_t number_count, number_step, number_row;  // steps between the numbers, and between rows (0: the same for all rows)
  const void* off;
  int64_t off_step, off_column;  // off_step is 0 if rows share a vector
  bool off_by_row;               // whether off is [rows, cols], so that LARGEST is its column and not that of the logits
  double* result;                // [result_count, rows]
  int64_t result_count, result_step;
  double* predicted;  // [rows] or null: the first class with the largest logit, -1 for a row that is not read
  double* parts;      // [7, rows] or null
  int64_t parts_step;
  double* tangents;  // [5, rows], of TANGENT_SUMS and HESSIAN
  int64_t tangents_step;
  double temperature, cap, scale, unit;  // softmax is applied to scale z or, if `capped`, to scale tanh(unit z)
  bool capped;
  bool extreme;         // whether all rows are computed in wide numbers
  Type type, off_type;  // of z and dz, and of off
  bool entropy;         // whether the sums u are needed
  bool gauss_newton;    // without the second derivative of the softcap
  bool stream, ahead;   // whether to write dz past the caches, and to prefetch the next row while writing
};

inline constexpr int64_t BLOCK = 4096;    // columns that are summed with one shift of the exponentials
inline constexpr int64_t SHORT_ROW = 64;  // with up to so many columns, vector lanes are rows; with more they are columns
inline constexpr int64_t TILE = 16;       // rows whose results are computed together

// Sums over different columns of the same rows, [K, PARTS, rows], and, unless it is null, their tangents, [K, TANGENTS, rows], with the steps
// from one K to the next.
struct Shards {
  double* sums;
  int64_t sums_step;
  double* tangents;
  int64_t tangents_step;
};

typedef void (*Kernel)(const Job&, int64_t first, int64_t last, void* scratch, Phase, int64_t block);
struct Isa {
  const char* name;
  Kernel run[2][OPS];  // in float, and in double for F64
  void (*merge)(const Job&, const Shards&, const int64_t* pairs, int64_t count);
};

constexpr int64_t blocks_of(int64_t cols) { return (cols + BLOCK - 1) / BLOCK; }
constexpr int64_t tile_of(int64_t cols) { return blocks_of(cols) > 1 ? 1 : cols <= 256 ? TILE : cols <= 1024 ? 8 : cols <= 2048 ? 4 : 2; }
constexpr int64_t whole(int64_t cols) { return (cols + 63) / 64 * 64; }  // columns, rounded up to whole groups
// The memory for copies of z, v and off of a row in double, which TANGENT_SUMS and HESSIAN have after the scratch memory.
constexpr int64_t copies_bytes(int64_t cols) { return 3 * 8 * whole(cols); }
// The scratch memory of a thread: an exponential needs at most 8 bytes, and with a softcap the transformed logit and its slope as many.
constexpr int64_t scratch_bytes(int64_t cols, bool capped) {
  const int64_t panels = 4 * TILE * (SHORT_ROW + 64), arrays = (capped ? 3 : 1) * tile_of(cols) * whole(cols);
  return 4096 + 10 * (TILE + blocks_of(cols) + 16) * 8 + 8 * (cols <= SHORT_ROW && arrays < panels ? panels : arrays);
}
}
