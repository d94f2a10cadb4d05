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
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return {false, false};
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

// Runs the kernel on all rows, each thread on `grain` rows at a time. Returns false if the call was interrupted.
static bool by_rows(const Job& j, Kernel run, int threads, Interrupted interrupted) {
  const int64_t tile = j.cols <= SHORT_ROW ? TILE : tile_of(j.cols), fair = j.rows / threads / tile,
                much = (1 << 16) / whole(j.cols) / tile;
  const int64_t grain = (fair < much ? fair : much) * tile + (fair && much ? 0 : tile);
  const int64_t grains = (j.rows + grain - 1) / grain;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  Signals signals(interrupted);
  together((int)(threads < grains ? threads : grains), [&] {
    const Memory mine(scratch_bytes(j.cols, j.capped), Memory::SCRATCH);
    if (!mine.data()) failed = true;
    for (int64_t i; mine.data() && (grains == 1 || !signals.stop()) && (i = next.fetch_add(grain)) < j.rows;)
      run(j, i, i + grain < j.rows ? i + grain : j.rows, mine.data(), ALL, 0);
  });
  if (next < j.rows && failed) throw std::bad_alloc();
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

bool run(Op op, Job j, Type type, Off kind, int threads, Interrupted interrupted) {
  if (!j.rows || !j.cols) return true;
  if (j.rows * j.cols < 1 << 12) threads = 1;  // to wake a thread takes as long as 1500 entries
  const int64_t size = size_of(type);
  j.type = type;
  j.off_type = kind == WIDE ? F32 : type;
  const bool aligned = (uintptr_t)j.dz % size == 0;  // stores past the caches need whole elements
  // Short rows share many cache lines with their neighbours, which stores past the caches write twice: 3 times the time with 100 columns.
  j.stream = op != FORWARD && aligned && j.z != j.dz && j.rows * j.cols * size >= 48 << 20 && j.cols * size >= 8 << 10;
  j.ahead = threads == 1;  // 10 % less time on one thread, but 8 % more on two, which use all of the memory's bandwidth
  const Kernel kernel = isa().run[type][kind][op];
  const int64_t blocks = blocks_of(j.cols);
  const bool by_row = op == CURVATURE || op == LOG_SOFTMAX || j.extreme;
  const bool few_long_rows = !by_row && blocks > 6 && threads > 1 && j.rows < 4 * threads && j.rows % threads;
  if (few_long_rows || (!by_row && blocks > 4096)) return by_blocks(j, kernel, threads, op != FORWARD, interrupted);
  return by_rows(j, kernel, threads, interrupted);
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
