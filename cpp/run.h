// Calls of the kernels, with threads and memory, but without Python. bind.cpp and xla.cpp call these functions, and run.cpp has them.
//
// They assume that the arrays of a job have the shapes and types that it says, and that nobody writes to them during a call.
#pragma once
#include <stddef.h>
#include "kernel.h"

namespace softxent {

// The kernels for this machine, or for the instruction set of the environment variable SOFTXENT_ISA.
const Isa& isa();

int64_t size_of(Type);

constexpr int64_t SMALL_CALL = 1 << 12;  // elements below which one thread computes: to wake another takes as long as 1500 of them

// softmax is applied to (cap / T) tanh(z / cap), or to z / T if cap is infinite.
void set_transform(Job&, double temperature, double cap);

// Where the entries of an array lie: the steps of each axis of the rows, and of the columns, in elements.
constexpr int AXES = 64;  // of an array of NumPy or PyTorch
struct Steps {
  int64_t row[AXES], column;
};
// The axes of the rows, the first one outermost, and where the arrays of a job lie. It replaces the steps of the job.
struct Layout {
  int axes;
  int64_t length[AXES];
  Steps z, off, v, dz;
};

// Runs an operation on all rows, on at most so many threads. `interrupted`, which may be null, is asked now and then on the calling thread.
// Returns false if it said yes; the results are incomplete then.
typedef bool (*Interrupted)();
bool run(Op, Job, Layout, int threads, Interrupted);

// The sum in NumPy's order, so that a loss has the same bits however it is called: halves, down to 128 numbers, and eight sums of those.
double sum_as_numpy(const double* a, int64_t n);

// Asks for huge pages in memory that nobody has written to.
void advise(void* data, size_t bytes);

// Prepares for forks. It is called when the module is imported.
void at_import();

// Memory in whole pages, that of an earlier block if there is one, or null if it is refused; `trim` frees what was given back.
struct Kept {
  void* data;
  size_t bytes;
};
Kept large_block(size_t bytes);
void give_back(const Kept&) noexcept;
void trim();

// Memory of a thread during a call, which is kept for the next one: the scratch memory of a kernel, or numbers of the rows.
// If it is refused, data() is null. It does not throw, for a thread whose first exception is refused memory ends the process.
class Memory {
 public:
  enum Use { SCRATCH, ROWS };
  Memory(size_t bytes, Use);
  ~Memory();
  Memory(const Memory&) = delete;
  void* data() const { return block.data; }

 private:
  Kept block;
  const Use use;
};
}
