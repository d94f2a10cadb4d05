// The types and constants that are shared by the part that is compiled once (bind.cpp, threads.h) and the part that is compiled for each
// instruction set (kernel.cpp). They are plain data. An inline function here could be compiled with AVX-512 instructions in one object
// file, and the linker could use that copy for all of them. (The small constexpr functions below are always inlined; the test on nm would
// find them otherwise.)
#pragma once
#include <stdint.h>

namespace softxent {

enum Type { F32, F64, BF16, F16, TYPES };
enum Off { SAME, WIDE, OFFS };         // the type of `off`: that of z, or the type of the computation (float32 for 16-bit z)
enum Op { FORWARD, BACKWARD, FUSED, OPS };
enum Phase { ALL, SUM_BLOCK, FINISH_ROW, WRITE_BLOCK };   // of a long row: a block's exponentials and sums; the row's results; a block of dz
enum Truth { Y, R, Q, G, TRUTHS };     // numbers of a row: truth at the label, weight of off, twice the z-loss, upstream gradient
enum Part { M, S, O, D, ZT, WT, PARTS };   // the fields of Partials in partials.py

struct Job {
  int64_t rows, cols;
  const void* z; int64_t z_step;       // all steps are in elements; this one is between rows
  void* dz; int64_t dz_step;
  const int64_t* label; int64_t label_step;    // a label outside [0, cols) matches no column
  const double* truth; int64_t truth_step, truth_row;    // steps between the four numbers, and between rows (0: the same for all rows)
  const void* off; int64_t off_step;   // 0: one vector for all rows
  double *loss, *lse;                  // [rows]
  double* parts; int64_t parts_step;   // step between the six sums; parts may be null
  bool stream, ahead;                  // whether to write dz past the caches, and to prefetch the next row while writing
};

inline constexpr int64_t BLOCK = 4096; // columns that are summed with one shift of the exponentials
inline constexpr int64_t SHORT_ROW = 64;    // with up to so many columns, vector lanes are rows; with more they are columns
inline constexpr int64_t TILE = 16;    // rows whose results are computed together

typedef void (*Kernel)(const Job&, int64_t first, int64_t last, void* scratch, Phase, int64_t block);
struct Isa { const char* name; Kernel run[TYPES][OFFS][OPS]; };

constexpr int64_t blocks_of(int64_t cols) { return (cols + BLOCK - 1) / BLOCK; }
constexpr int64_t tile_of(int64_t cols) { return blocks_of(cols) > 1 ? 1 : cols <= 256 ? TILE : cols <= 1024 ? 8 : cols <= 2048 ? 4 : 2; }
constexpr int64_t whole(int64_t cols) { return (cols + 63) / 64 * 64; }     // columns, rounded up to whole groups
constexpr int64_t scratch_bytes(int64_t cols) {        // the scratch memory of a thread; an exponential needs at most 8 bytes
  return 4096 + (TILE + blocks_of(cols) + 16) * 64 + 8 * (cols <= SHORT_ROW ? 2 * TILE * (SHORT_ROW + 64) : tile_of(cols) * whole(cols));
}
}
