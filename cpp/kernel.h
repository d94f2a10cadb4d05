// What the part that is compiled once (bind.cpp, threads.h) and the part compiled per instruction set (kernel.cpp)
// share. Plain data only: anything inline in here would be emitted with AVX-512 code in one object and merged into all.
#pragma once
#include <stdint.h>

namespace softxent {

enum Type { F32, F64, BF16, F16, TYPES };
enum Off { SAME, WIDE, OFFS };         // the type of `off`: that of z, or the one computed in (float32 for 16-bit z)
enum Op { FORWARD, BACKWARD, FUSED, OPS };
enum Phase { ALL, IN, TURN, OUT };     // a row by its blocks: z -> exponentials and sums; sums -> results; -> dz
enum Truth { Y, R, Q, G, TRUTHS };     // numbers of a row: weight at the label, of off, 2 x z-loss, upstream of dz
enum Part { M, S, O, D, ZT, WT, PARTS };   // partials.py

struct Job {
  int64_t rows, cols;
  const void* z; int64_t z_step;       // steps between rows, in elements
  void* dz; int64_t dz_step;
  const int64_t* label; int64_t label_step;    // outside [0, cols): matches no column
  const double* truth; int64_t truth_step, truth_row;    // step between kinds; between rows, 0: one for all
  const void* off; int64_t off_step;   // 0: one vector shared by all rows
  double *loss, *lse;                  // [rows]
  double* parts; int64_t parts_step;   // step between kinds; null: not wanted
  bool stream, ahead;                  // write dz past the caches; and ask for the next row meanwhile
};

inline constexpr int64_t BLOCK = 4096; // columns summed up with one shift
inline constexpr int64_t TALL = 64;    // up to here lanes are rows, beyond they are columns
inline constexpr int64_t TILE = 16;    // rows that are finished side by side

typedef void (*Kernel)(const Job&, int64_t first, int64_t last, void* scratch, Phase, int64_t block);
struct Isa { const char* name; Kernel run[TYPES][OFFS][OPS]; };

constexpr int64_t blocks_of(int64_t cols) { return (cols + BLOCK - 1) / BLOCK; }
constexpr int64_t tile_of(int64_t cols) { return blocks_of(cols) > 1 ? 1 : cols <= 256 ? TILE : cols <= 1024 ? 8 : cols <= 2048 ? 4 : 2; }
constexpr int64_t whole(int64_t cols) { return (cols + 63) / 64 * 64; }     // columns, in whole groups
constexpr int64_t scratch_bytes(int64_t cols) {        // what a thread needs; 8 bytes an exponential at most
  return 4096 + (TILE + blocks_of(cols) + 16) * 64 + 8 * (cols <= TALL ? 2 * TILE * (TALL + 64) : tile_of(cols) * whole(cols));
}
}
