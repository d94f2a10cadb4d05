// The kernel: softmax cross-entropy of the rows of a matrix, its gradient and second derivative. bind.cpp calls `run` through the table at
// the end of this file, for some rows, or for one phase of a long row. This source is compiled once for each instruction set
// (-DSOFTXENT_NAME=avx2 -mavx2 ...). Everything is in an anonymous namespace and calls no inline function of a library, so that the linker
// cannot merge a symbol with AVX-512 code into an object for other processors (a test checks this with nm).
//
// It assumes that the Job is consistent (bind.cpp checks it), that z and dz are the same memory or do not overlap, and that the scratch
// memory has scratch_bytes(cols, capped) bytes and is aligned to 64. The equations, as in formula.py:
//
//   truth_k = y [k == label] + r off_k,   loss = - sum_k truth_k log yhat_k + q/2 lse^2
//   dz_k = a yhat_k + e yhat_k (lse - z_k) - c off_k, and h + e yhat_t nll at the label t
//
// The label's column is kept apart from the others, in whose sums it counts as -inf, so that nothing cancels where yhat is near 1. Softmax
// is applied to scale x, where x is the logit in memory, or, with a softcap, to scale y, where y = tanh(unit x). y and its slope are then
// computed once, into the scratch memory. The scale multiplies differences of x or y, never a large x alone, so that no
// difference is lost in a rounding, and none is infinite, however large x and scale are. With scale = 1 nothing is rounded that would not be
// without it.
#include "kernel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace softxent {
namespace {
#include "vec.h"

constexpr double INF = __builtin_inf();

#include "scratch.h"
#include "wide.h"
#include "storage.h"
#include "columns.h"
#include "finish.h"
#include "blocks.h"
#include "short.h"
#include "curvature.h"
#include "tangents.h"

// Computes row i in wide numbers.
RARE void wide_row(const Job& j, Op op, int64_t i) {
  const WideRow row_i(j, i);
  if (op == LOG_SOFTMAX) return row_i.log_softmax();
  if (j.predicted) j.predicted[i] = ignored(j, i) ? -1 : row_i.largest(false);
  if (ignored(j, i)) return row_i.ignored(op);
  const int64_t t = row_i.label();
  op == CURVATURE ? row_i.curvature(t) : row_i.loss_and_gradient(op, t);
}

// Computes the rows [first, last), a tile at a time, so that a tile stays in the cache between its two passes; or one phase of one long
// row.
template <class A, Op op> void run(const Job& j, int64_t first, int64_t last, void* scratch, Phase phase, int64_t block) {
  Scratch<A> f(scratch, j);
  if (phase == ALL && j.extreme) {
    for (int64_t i = first; i < last; i++) wide_row(j, op, i);
    return;
  }
  if constexpr (op == CURVATURE || op == LOG_SOFTMAX) {
    const bool lanes_are_rows = op == CURVATURE && j.cols <= SHORT_ROW;
    const int64_t tile = lanes_are_rows ? (int64_t)Lanes<A>::L : 1;
    for (int64_t i = first; i < last; i += tile) {
      if constexpr (op == LOG_SOFTMAX)
        log_softmax<A>(j, f, i);
      else if (lanes_are_rows)
        short_curvature<A>(j, f, i, least(tile, last - i));
      else
        curvature<A>(j, f, i);
    }
  } else {
    const int64_t t = label(j, first);
    if (phase == FIND_LABEL) j.found[first] = find_label(j, first);
    if (phase == SUM_BLOCK && !ignored(j, first)) sum_block<A, op>(j, f, first, t, 0, block, one_pass(j), j.off);
    if (phase == FINISH_ROW) {
      put_predicted(j, first);
      finish_rows<A, op>(j, f, first, &t, 1);
    }
    if constexpr (op != FORWARD)
      if (phase == WRITE_BLOCK) write_block<A>(j, f, first, t, 0, block);
    if (phase == ALL) {
      const bool lanes_are_rows = j.cols <= SHORT_ROW;
      const int64_t blocks = blocks_of(j.cols), tile = lanes_are_rows ? (int64_t)Lanes<A>::L : tile_of(j.cols);
      for (int64_t i = first; i < last; i += tile) {
        const int some = least(tile, last - i);
        if (lanes_are_rows) {
          is_plain(j) ? short_rows<A, op, true>(j, f, i, some) : short_rows<A, op, false>(j, f, i, some);
          continue;
        }
        int64_t* labels = f.x.label;
        for (int g = 0; g < some; g++) {
          const bool known = is_largest_logit(j, label(j, i + g));
          labels[g] = find_label(j, i + g, f.b.top + g);
          if (!ignored(j, i + g))
            for (int64_t b = 0; b < blocks; b++) sum_block<A, op>(j, f, i + g, labels[g], g, b, one_pass(j), j.off, known);
          put_predicted(j, i + g);
        }
        finish_rows<A, op>(j, f, i, labels, some);
        if constexpr (op != FORWARD)
          for (int g = 0; g < some; g++)
            for (int64_t b = 0; b < blocks; b++) write_block<A>(j, f, i + g, labels[g], g, b);
      }
    }
  }
  if (j.stream) fence();
}
}

#define OPS_OF(A) \
  {run<A, FORWARD>, run<A, BACKWARD>, run<A, FUSED>, run<A, CURVATURE>, run<A, LOG_SOFTMAX>, in_double<TANGENT_SUMS>, in_double<HESSIAN>}
#define STRING_(a) #a
#define STRING(a) STRING_(a)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern const Isa JOIN(isa_, SOFTXENT_NAME);
const Isa JOIN(isa_, SOFTXENT_NAME) = {STRING(SOFTXENT_NAME), {OPS_OF(float), OPS_OF(double)}, merge_shards};
}
