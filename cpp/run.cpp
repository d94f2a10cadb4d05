// Runs a kernel on the rows of a job: selects the instruction set, once, splits the rows among threads, and keeps memory for the next call.
#include "run.h"
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#if defined(SOFTXENT_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include "strided.h"
#include "threads.h"

namespace softxent {
extern const Isa SOFTXENT_BASE;
#if defined(SOFTXENT_X86)
extern const Isa isa_avx2, isa_avx512;

struct Processor {
  bool avx2, avx512;
};

// What the processor has and the operating system saves. __builtin_cpu_supports would say it, but zig, which builds the wheels, says no to
// everything.
static Processor processor() {
  unsigned a, b, c, d, saved, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA) || !(c & bit_F16C)) return {false, false};
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {false, false};
  const unsigned ymm = 0x06, zmm = 0xe6;  // the bits of the registers in XCR0
  const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  return {(saved & ymm) == ymm && (b & bit_AVX2), (saved & zmm) == zmm && (b & avx512) == avx512};
}
#endif

const Isa& isa() {
  static const Isa& chosen = []() -> const Isa& {
    const char* want = getenv("SOFTXENT_ISA");
    std::string choices;
    auto fits = [&](const Isa& i, bool can) {
      if (can) choices += (choices.empty() ? "" : ", ") + std::string(i.name);
      return can && (!want || !*want || !strcmp(want, i.name));
    };
#if defined(SOFTXENT_X86)
    const Processor has = processor();
    if (fits(isa_avx512, has.avx512)) return isa_avx512;
    if (fits(isa_avx2, has.avx2)) return isa_avx2;
#endif
    if (!fits(SOFTXENT_BASE, true)) {
      std::string got;
      for (const char* c = want; *c && got.size() < 100; ++c) got += *c < ' ' || *c > '~' ? '?' : *c;  // it may be no UTF-8, or escapes
      throw std::invalid_argument("softxent: SOFTXENT_ISA must be among " + choices + ", which this machine has; got '" + got + "'");
    }
    return SOFTXENT_BASE;
  }();
  return chosen;
}

void set_transform(Job& j, double temperature, double cap) {
  auto ordinary = [](double x) { return x >= 0x1p-40 && x <= 0x1p40; };
  j.temperature = temperature;
  j.cap = cap;
  j.capped = cap < INFINITY;
  j.unit = j.capped ? 1 / cap : 1;
  j.scale = (j.capped ? cap : 1) / temperature;
  j.extreme = !ordinary(temperature) || (j.capped && !(ordinary(cap) && ordinary(j.scale)));
}

int64_t size_of(Type type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

// Memory for large gradients, in huge pages if there are any. Blocks that are freed are kept for the next gradients, because new pages take
// longer than the kernel needs to fill them (125 MiB: 90 ms and 20 ms): one block for each power of two of their sizes. If the slots are
// busy, nothing is kept; in a child that was forked at such a moment they stay busy.
static Kept slots[64] = {};
static std::atomic_flag busy = ATOMIC_FLAG_INIT;
static constexpr size_t PAGE = 2 << 20;

static int slot_of(size_t bytes) {
  int slot = 0;
  for (size_t pages = bytes / PAGE; pages > 1; pages /= 2) slot++;
  return slot;
}
// Puts `wanted` into a slot if `fits` allows it for the block that is there, and returns that block; else returns `wanted`.
template <class Fits> static Kept swap_kept(int slot, Kept wanted, Fits fits) {
  if (busy.test_and_set(std::memory_order_acquire)) return wanted;
  const Kept was = slots[slot];
  const bool go = fits(was);
  if (go) slots[slot] = wanted;
  busy.clear(std::memory_order_release);
  return go ? was : wanted;
}
void give_back(const Kept& block) noexcept {
  ::free(swap_kept(slot_of(block.bytes), block, [&](const Kept& was) { return was.bytes <= block.bytes; }).data);
}
void advise(void* data, size_t bytes) {
#if defined(__linux__)
  const uintptr_t first = ((uintptr_t)data + PAGE - 1) / PAGE * PAGE, end = ((uintptr_t)data + bytes) / PAGE * PAGE;
  if (first < end) madvise((void*)first, end - first, MADV_HUGEPAGE);
#endif
  (void)data, (void)bytes;
}
Kept large_block(size_t bytes) {
  const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
  const int slot = slot_of(whole);
  for (int k = slot; k <= slot + 1; k++) {
    const Kept mine = swap_kept(k, {nullptr, 0}, [&](const Kept& was) { return was.bytes >= whole && was.bytes <= 2 * whole; });
    if (mine.data) return mine;
  }
  const Kept mine = {aligned_alloc(PAGE, whole), whole};
  if (!mine.data) return {nullptr, 0};
  advise(mine.data, whole);
  return mine;
}
void trim() {
  for (int k = 0; k < 64; k++) ::free(swap_kept(k, {nullptr, 0}, [](const Kept&) { return true; }).data);
}

// Up to SMALL bytes stay with the thread for its next call, and a larger block goes to the slot of large_block. A signal handler may call the
// library within a call: the inner call finds the thread's block taken, and allocates another.
static constexpr size_t SMALL = 8 << 20;
static Local::Block* spare(Memory::Use use) {
  Local* mine = Local::get();
  return !mine ? nullptr : use == Memory::SCRATCH ? &mine->scratch : &mine->rows;
}
Memory::Memory(size_t bytes, Use use) : block{nullptr, 0}, use(use) {
  if (bytes > SMALL) {
    block = large_block(bytes);
    return;
  }
  if (Local::Block* kept = spare(use)) block = {std::exchange(kept->data, nullptr), std::exchange(kept->bytes, 0)};
  if (block.bytes >= bytes) return;
  ::free(block.data);
  block = {aligned_alloc(64, (bytes + 63) / 64 * 64), bytes};
  if (!block.data) block.bytes = 0;
}
Memory::~Memory() {
  if (block.bytes > SMALL) {
    give_back(block);
    return;
  }
  Local::Block* kept = spare(use);
  if (kept && block.bytes > kept->bytes) {
    std::swap(block.data, kept->data);
    std::swap(block.bytes, kept->bytes);
  }
  ::free(block.data);
}

void at_import() {
  forked = is_a_fork();
  pool = new (std::nothrow) Pool;
  pthread_atfork(nullptr, nullptr, [] { forked = true, pool = new (std::nothrow) Pool; });
}

// Asks whether the call is interrupted, at most every 50 ms and on the calling thread only. Once it is, stop() is true.
class Signals {
  const std::thread::id caller = std::this_thread::get_id();
  Clock::time_point checked = Clock::now();
  std::atomic<bool> raised{false};
  const Interrupted interrupted;

 public:
  explicit Signals(Interrupted interrupted) : interrupted(interrupted) {}
  bool on_caller() const { return std::this_thread::get_id() == caller; }
  bool stop() {
    if (interrupted && !raised && on_caller() && Clock::now() - checked >= std::chrono::milliseconds(50)) {
      if (interrupted()) raised = true;
      checked = Clock::now();
    }
    return raised;
  }
};

// Calls work(first, rows, memory) for all rows, each thread for `grain` rows at a time, with memory of its own. Returns false if the call was
// interrupted.
template <class F> static bool divided(int64_t rows, int64_t grain, size_t bytes, int threads, Interrupted interrupted, F work) {
  const int64_t grains = (rows + grain - 1) / grain;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  Signals signals(interrupted);
  together((int)(threads < grains ? threads : grains), [&] {
    const Memory mine(bytes, Memory::SCRATCH);
    if (!mine.data()) failed = true;
    for (int64_t i; mine.data() && (grains == 1 || !signals.stop()) && (i = next.fetch_add(grain)) < rows;)
      work(i, std::min(grain, rows - i), mine.data());
  });
  if (next < rows && failed) throw std::bad_alloc();
  return grains == 1 || !signals.stop();
}

// Runs the kernel on a few long rows. All threads work on runs of blocks of the same row, in the scratch memory of the calling thread. The
// calling thread takes runs from the front and the others from the back. Each writes the gradient of the blocks whose exponentials it
// computed, the last one first, because they are still in its cache. Returns false if the call was interrupted.
static bool by_blocks(Job j, Kernel run, int threads, bool gradient, Interrupted interrupted) {
  struct alignas(64) Counts {
    std::atomic<int64_t> taken{0}, front{0}, back{0}, had{0}, turn{0}, turned{0}, written{0};
  };
  const int64_t blocks = blocks_of(j.cols), fair = blocks / (3 * threads) + 1, step = fair < 256 ? fair : 256,
                runs = (blocks + step - 1) / step;
  std::unique_ptr<Counts[]> counts(new Counts[j.rows]);
  const Memory shared(scratch_bytes(j.cols, j.capped), Memory::SCRATCH);
  if (!shared.data()) throw std::bad_alloc();
  std::vector<int64_t> labels(j.rows), before(j.rows * runs);  // before: the run that the thread had before this one
  j.found = labels.data();
  for (int64_t i = 0; i < j.rows; i++) run(j, i, i + 1, shared.data(), FIND_LABEL, 0);
  j.label = labels.data();
  j.label_step = 1;
  Signals signals(interrupted);
  auto wait = [&](std::atomic<int64_t>& a, int64_t n) {
    while (!spin([&] { return a >= n; })) {
      if (signals.stop()) return;
      sched_yield();
    }
  };
  auto each = [&](int64_t i, int64_t r, Phase phase) {
    for (int64_t b = r * step; b < blocks && b < (r + 1) * step; b++) run(j, i, i + 1, shared.data(), phase, b);
  };
  together(threads, [&] {
    for (int64_t i = 0; i < j.rows; i++) {
      Counts& c = counts[i];
      int64_t last = -1, *had = &before[i * runs];
      for (; !signals.stop() && c.taken.fetch_add(1) < runs; c.had++) {
        const int64_t r = signals.on_caller() ? c.front++ : runs - 1 - c.back++;
        had[r] = std::exchange(last, r);
        each(i, r, SUM_BLOCK);
      }
      wait(c.had, runs);
      if (signals.stop()) return;
      if (c.turn++ == 0) {
        run(j, i, i + 1, shared.data(), FINISH_ROW, 0);
        c.turned = 1;
      }
      wait(c.turned, 1);
      if (!gradient) continue;
      for (int64_t r = last; r >= 0; r = had[r]) {
        if (signals.stop()) return;
        each(i, r, WRITE_BLOCK);
        c.written++;
      }
      wait(c.written, runs);
    }
  });
  return !signals.stop();
}

static int64_t in_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }  // of the cache
static int64_t scratch_of(const Job& j) { return in_lines(scratch_bytes(j.cols, j.capped) + (j.tangents ? copies_bytes(j.cols) : 0)); }

// An array of a call that has a row for each row of the logits.
struct Operand {
  const void* data;
  const Steps* steps;
  int64_t size;  // of an element
};
struct Operands {
  Operand z, off, v, dz;
  Operands(const Job& j, const Layout& l) {
    const int64_t size = size_of(j.type), wide = j.type == F64 ? 8 : 4;
    z = {j.z, &l.z, size};
    off = {j.off, &l.off, size_of(j.off_type)};
    v = {j.v, &l.v, wide};
    dz = {j.dz, &l.dz, size};
  }
};

// Merges axes of the rows that every array can step through as one, and drops those of length 1.
static void merge_axes(Layout& l) {
  Steps* all[] = {&l.z, &l.off, &l.v, &l.dz};
  int n = 0;
  for (int k = 0; k < l.axes; k++) {
    if (l.length[k] == 1) continue;
    const bool joined = n && std::all_of(all, all + 4, [&](Steps* s) { return s->row[n - 1] == s->row[k] * l.length[k]; });
    n += joined ? 0 : 1;
    l.length[n - 1] = l.length[k] * (joined ? l.length[n - 1] : 1);
    for (Steps* s : all) s->row[n - 1] = s->row[k];
  }
  l.axes = n;
}

// Calls work(first, rows) for the rows from `first` on, each time for some that are on the innermost axis.
template <class F> static void each_run(const Layout& l, int64_t first, int64_t rows, F work) {
  for (const int64_t end = first + rows; first < end;) {
    const int64_t left = l.axes ? l.length[l.axes - 1] - first % l.length[l.axes - 1] : 1, some = std::min(left, end - first);
    work(first, some);
    first += some;
  }
}
static char* place(const Layout& l, const Operand& a, int64_t row) {
  int64_t steps = 0;
  for (int k = l.axes - 1; k >= 0; row /= l.length[k--]) steps += row % l.length[k] * a.steps->row[k];
  return a.data ? (char*)a.data + steps * a.size : nullptr;
}
static int64_t inner_step(const Layout& l, const Operand& a) { return l.axes ? a.steps->row[l.axes - 1] : 0; }

// The job of some rows, except for where z, v, off and dz are.
static Job part(Job j, int64_t first, int64_t rows) {
  j.rows = rows;
  j.label = j.label ? j.label + first * j.label_step : nullptr;
  j.numbers += first * j.number_row;
  j.result = j.result ? j.result + first : nullptr;
  j.predicted = j.predicted ? j.predicted + first : nullptr;
  j.parts = j.parts ? j.parts + first : nullptr;
  j.tangents = j.tangents ? j.tangents + first : nullptr;
  return j;
}
// The job of rows that are on the innermost axis.
static Job part(const Job& j, const Layout& l, const Operands& a, int64_t first, int64_t rows) {
  Job p = part(j, first, rows);
  p.z = place(l, a.z, first);
  p.v = place(l, a.v, first);
  p.off = place(l, a.off, first);
  p.dz = place(l, a.dz, first);
  p.z_step = inner_step(l, a.z);
  p.v_step = inner_step(l, a.v);
  p.off_step = inner_step(l, a.off);
  p.dz_step = inner_step(l, a.dz);
  return p;
}

// Copies rows from `first` on between an array and a tile with these steps, which is written unless `back`.
static void copy_rows(const Layout& l, const Operand& a, int64_t first, int64_t rows, int64_t cols, char* tile, int64_t step,
                      int64_t column, bool back) {
  each_run(l, first, rows, [&](int64_t i, int64_t some) {
    char *there = place(l, a, i), *here = tile + (i - first) * step * a.size;
    const int64_t there_step = inner_step(l, a), there_column = a.steps->column;
    with_size(a.size, [&](auto zero) {
      typedef decltype(zero) X;
      if (back)
        copy_matrix((const X*)here, step, column, (X*)there, there_step, there_column, some, cols);
      else
        copy_matrix((const X*)there, there_step, there_column, (X*)here, step, column, some, cols);
    });
  });
}

// Runs the kernel on the rows where they lie. Where rows of a large gradient are adjacent, it is written a tile at a time: the cache lines
// of its columns compete for the same places of the cache, and had to be written several times (5.7 in place of 2.6 ns an entry).
static bool by_rows(Kernel run, const Job& j, const Layout& l, const Operands& a, int threads, Interrupted interrupted) {
  const int64_t tile = j.cols <= SHORT_ROW ? TILE : tile_of(j.cols), fair = j.rows / threads / tile,
                much = (1 << 16) / whole(j.cols) / tile;
  const int64_t grain = (fair < much ? fair : much) * tile + (fair && much ? 0 : tile), scratch = scratch_of(j);
  const bool large = j.rows * j.cols * a.z.size > 1 << 18;
  auto far = [&](const Operand& x, int64_t column) { return large && x.data && column != 1 && inner_step(l, x) == 1; };
  const bool z_apart = far(a.z, j.z_column), dz_apart = far(a.dz, j.dz_column);
  const int64_t step = tile_step(std::min(grain, j.rows), a.dz.size);
  return divided(j.rows, grain, scratch + (z_apart || dz_apart ? step * j.cols * a.dz.size : 0), threads, interrupted,
                 [&](int64_t first, int64_t rows, void* memory) {
                   each_run(l, first, rows, [&](int64_t i, int64_t some) {
                     Job p = part(j, l, a, i, some);
                     char* there = (char*)memory + scratch;
                     if (z_apart) {
                       copy_rows(l, a.z, i, some, j.cols, there, 1, step, false);
                       p.z = there, p.z_column = step;
                     }
                     if (dz_apart) p.dz = there, p.dz_column = step;
                     run(p, 0, some, memory, ALL, 0);
                     if (dz_apart) copy_rows(l, a.dz, i, some, j.cols, there, 1, step, true);
                   });
                 });
}

// Copies tiles of rows to adjacent memory, runs the kernel on them, and copies the result back.
static bool by_tiles(Kernel run, Job j, const Layout& l, const Operands& a, int threads, Interrupted interrupted) {
  auto whole_lines = [](int64_t rows) { return std::max<int64_t>(16, rows / 16 * 16); };  // of 4 bytes, where rows are adjacent
  const bool off_copied = j.off && (l.off.column != 1 || std::any_of(l.off.row, l.off.row + l.axes, [](int64_t step) { return step; }));
  const int64_t rows_of = std::min(whole_lines((j.rows + threads - 1) / threads), whole_lines((256 << 10) / (j.cols * a.z.size)));
  const int64_t some = std::min(rows_of, j.rows), off_at = scratch_of(j);
  j.z_step = j.dz_step = tile_step(j.cols, a.z.size);
  j.v_step = tile_step(j.cols, a.v.size);
  j.off_step = off_copied ? tile_step(j.cols, a.off.size) : 0;
  const int64_t v_at = off_at + some * j.off_step * a.off.size, z_at = v_at + (j.v ? some * j.v_step * a.v.size : 0);
  return divided(j.rows, rows_of, z_at + some * j.z_step * a.z.size, threads, interrupted, [&](int64_t first, int64_t rows, void* memory) {
    Job p = part(j, first, rows);
    auto copied = [&](const Operand& from, int64_t at, int64_t step) {
      char* to = (char*)memory + at;
      copy_rows(l, from, first, rows, j.cols, to, step, 1, false);
      return to;
    };
    char* z = copied(a.z, z_at, j.z_step);
    p.z = z;
    if (off_copied) p.off = copied(a.off, off_at, j.off_step);
    if (j.v) p.v = copied(a.v, v_at, j.v_step);
    if (j.dz) p.dz = z;
    run(p, 0, rows, memory, ALL, 0);
    if (j.dz) copy_rows(l, a.dz, first, rows, j.cols, z, j.dz_step, 1, true);
  });
}

// Whether few lanes are empty if a tile has rows of the innermost axis alone.
static bool fills_tiles(const Layout& l) {
  const int64_t rows = l.axes ? l.length[l.axes - 1] : 1;
  return l.axes <= 1 || (rows + TILE - 1) / TILE * TILE * 4 <= rows * 5;
}

bool run(Op op, Job j, Layout l, int threads, Interrupted interrupted) {
  if (!j.rows || !j.cols) return true;
  if (j.rows * j.cols < SMALL_CALL) threads = 1;
  merge_axes(l);
  const Kernel kernel = isa().run[j.type == F64][op];
  const Operands all(j, l);
  const bool adjacent = l.z.column == 1 && l.off.column == 1 && l.v.column == 1 && l.dz.column == 1;
  const bool in_place = adjacent || (j.cols <= SHORT_ROW && op < LOG_SOFTMAX && fills_tiles(l));
  j.z_column = l.z.column;
  j.v_column = l.v.column;
  j.off_column = l.off.column;
  j.dz_column = l.dz.column;
  if (!in_place) {
    j.z_column = j.v_column = j.off_column = j.dz_column = 1;
    return by_tiles(kernel, j, l, all, threads, interrupted);
  }
  const int64_t size = size_of(j.type);
  const bool aligned = (uintptr_t)j.dz % size == 0;  // stores past the caches need whole elements
  // Short rows share many cache lines with their neighbours, which stores past the caches write twice: 3 times the time with 100 columns.
  j.stream = op != FORWARD && aligned && j.z != j.dz && j.rows * j.cols * size >= 48 << 20 && j.cols * size >= 8 << 10;
  j.ahead = threads == 1;  // 10 % less time on one thread, but 8 % more on two, which use all of the memory's bandwidth
  const int64_t blocks = blocks_of(j.cols);
  const bool by_row = op >= CURVATURE || j.extreme;
  const bool few_long_rows = !by_row && blocks > 6 && threads > 1 && j.rows < 4 * threads && j.rows % threads;
  if (l.axes <= 1 && (few_long_rows || (!by_row && blocks > 4096)))
    return by_blocks(part(j, l, all, 0, j.rows), kernel, threads, op != FORWARD, interrupted);
  return by_rows(kernel, j, l, all, threads, interrupted);
}

double sum_as_numpy(const double* a, int64_t n) {
  if (n > 128) {
    const int64_t half = n / 2 - n / 2 % 8;
    return sum_as_numpy(a, half) + sum_as_numpy(a + half, n - half);
  }
  int64_t i = 0;
  double sum = 0;
  if (n >= 8) {
    double s[8];
    for (; i < 8; i++) s[i] = a[i];
    for (; i + 8 <= n; i += 8)
      for (int k = 0; k < 8; k++) s[k] += a[i + k];
    sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
  }
  for (; i < n; i++) sum += a[i];
  return sum;
}
}
