// The Python module _kernel, which kernels/cpu.py calls (and contract.py, bits16). It checks the arrays, describes them in a Job,
// selects the instruction set, once, and splits the rows among threads, with the GIL released.
//
// It assumes that its callers have checked what a user can get wrong (labels, options), and that nobody writes to the arrays during a call.
// It checks shapes, types and strides itself, because a wrong one would be an access outside the arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>
#include "kernel.h"
#if defined(SOFTXENT_X86)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
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

static const Isa& isa() {
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
    if (!fits(SOFTXENT_BASE, true))
      throw nb::value_error(("softxent: SOFTXENT_ISA must be among " + choices + ", which this machine has; got '" + want + "'").c_str());
    return SOFTXENT_BASE;
  }();
  return chosen;
}

typedef nb::ndarray<nb::ndim<2>, nb::device::cpu> Matrix;
typedef nb::ndarray<nb::ndim<2>, nb::device::cpu, nb::ro> Logits;
typedef nb::ndarray<nb::device::cpu, nb::ro> Dense;
typedef nb::ndarray<int64_t, nb::ndim<1>, nb::device::cpu, nb::ro> Labels;
typedef nb::ndarray<double, nb::ndim<2>, nb::device::cpu, nb::ro> Numbers;
typedef nb::ndarray<double, nb::ndim<2>, nb::device::cpu> Results;

static void need(bool ok, const char* what) {
  if (!ok) throw nb::value_error(what);
}
static Type type_of(nb::dlpack::dtype d) {
  const auto code = (nb::dlpack::dtype_code)d.code;
  if (code == nb::dlpack::dtype_code::Float && d.bits == 32) return F32;
  if (code == nb::dlpack::dtype_code::Float && d.bits == 64) return F64;
  if (code == nb::dlpack::dtype_code::Float && d.bits == 16) return F16;
  if (code == nb::dlpack::dtype_code::Bfloat || (code == nb::dlpack::dtype_code::UInt && d.bits == 16)) return BF16;
  throw nb::type_error("dtype must be float32, float64, float16 or bfloat16 (NumPy: its bits as uint16)");
}
// (T, cap): softmax is applied to (cap / T) tanh(z / cap), or to z / T if cap is infinite. For a large cap, z / cap is computed 2^k times
// as large, lest it be subnormal; beyond 2^200, (cap / T) tanh(z / cap) is z / T.
typedef std::tuple<double, double> Transform;
static void set_transform(Job& j, Type type, Transform transform) {
  const auto [temperature, cap] = transform;
  need(temperature > 0 && cap > 0, "temperature and cap must be positive");
  const bool capped = cap < (type == F64 ? 0x1p1000 : 0x1p200);
  j.inverse_temperature = 1 / temperature;
  j.lift = 1;
  j.scale = 1 / temperature;
  if (capped) {
    if (type != F64 && cap > 0x1p60) j.lift = ldexp(1, std::min(120, ilogb(cap)));
    j.inverse_cap = j.lift / cap;
    j.scale = cap / temperature / j.lift;
  }
  if (type != F64) j.scale = (float)j.scale;
}
template <class M> static bool adjacent(const M& a) {
  const size_t last = a.ndim() - 1;
  return a.stride(last) == 1 || a.shape(last) <= 1;
}

static void set_label(Job& j, const Labels& label) {
  need((int64_t)label.shape(0) == j.rows, "label must have one label a row");
  j.label = label.data();
  j.label_step = label.stride(0);
}
static void set_numbers(Job& j, const Numbers& numbers) {
  j.number_count = numbers.shape(0);
  need((j.number_count == 4 || j.number_count == NUMBERS || !j.label) && (numbers.shape(1) == 1 || (int64_t)numbers.shape(1) == j.rows),
       "numbers must be [4, R], [7, R], [4, 1] or [7, 1]");
  j.numbers = numbers.data();
  j.number_step = numbers.stride(0);
  j.number_row = numbers.shape(1) == 1 ? 0 : numbers.stride(1);
  j.entropy = j.number_count == NUMBERS;
}
static Job job(const Logits& z, const std::optional<Labels>& label, const Numbers& numbers, const std::optional<Dense>& off,
               Transform transform) {
  Job j = {};
  j.rows = z.shape(0);
  j.cols = z.shape(1);
  j.z = z.data();
  j.z_step = z.stride(0);
  need(adjacent(z) || !j.rows, "z must have adjacent columns");
  if (label) set_label(j, *label);
  set_numbers(j, numbers);
  if (off) {
    need(off->ndim() >= 1 && off->ndim() <= 2 && (int64_t)off->shape(off->ndim() - 1) == j.cols && adjacent(*off),
         "off must be [C] or [R, C]");
    need(off->ndim() == 1 || (int64_t)off->shape(0) == j.rows, "off must have one row, or as many as z");
    j.off = off->data();
    j.off_by_row = off->ndim() == 2;
    j.off_step = j.off_by_row ? off->stride(0) : 0;
  }
  set_transform(j, type_of(z.dtype()), transform);
  return j;
}
static void set_result(Job& j, const Results& a, int64_t least, int64_t most) {
  need(((int64_t)a.shape(0) == least || (int64_t)a.shape(0) == most) && (int64_t)a.shape(1) == j.rows && (j.rows <= 1 || a.stride(1) == 1),
       "result has a wrong shape");
  j.result = a.data();
  j.result_count = a.shape(0);
  j.result_step = a.stride(0);
  j.entropy = j.entropy || j.result_count == OUTPUTS;
}
static void set_parts(Job& j, const Results& a) {
  need(a.shape(0) == PARTS && (int64_t)a.shape(1) == j.rows && (j.rows <= 1 || a.stride(1) == 1), "parts must be [7, R]");
  j.parts = a.data();
  j.parts_step = a.stride(0);
}
static void set_out(Job& j, const Matrix& a, const Logits& z) {
  need((int64_t)a.shape(0) == j.rows && (int64_t)a.shape(1) == j.cols && (adjacent(a) || !j.rows) && a.dtype() == z.dtype(),
       "out must be like z");
  j.dz = a.data();
  j.dz_step = a.stride(0);
}

// Memory for large gradients, in huge pages if there are any. Blocks that are freed are kept for the next gradients, because new pages take
// longer than the kernel needs to fill them (125 MiB: 90 ms and 20 ms): one block for each power of two of their sizes. If the slots are
// busy, nothing is kept; in a child that was forked at such a moment they stay busy.
struct Kept {
  void* data;
  size_t bytes;
};
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
static void give_back(void* block) noexcept {
  Kept* k = (Kept*)block;
  ::free(swap_kept(slot_of(k->bytes), *k, [&](const Kept& was) { return was.bytes <= k->bytes; }).data);
  delete k;
}
static Kept large_block(size_t bytes) {
  const size_t whole = (bytes + PAGE - 1) / PAGE * PAGE;
  const int slot = slot_of(whole);
  for (int k = slot; k <= slot + 1; k++) {
    const Kept mine = swap_kept(k, {nullptr, 0}, [&](const Kept& was) { return was.bytes >= whole && was.bytes <= 2 * whole; });
    if (mine.data) return mine;
  }
  const Kept mine = {aligned_alloc(PAGE, whole), whole};
  if (!mine.data) throw std::bad_alloc();
#if defined(__linux__)
  madvise(mine.data, whole, MADV_HUGEPAGE);
#endif
  return mine;
}
static nb::ndarray<nb::numpy, uint8_t> buffer(size_t bytes) {
  const Kept mine = large_block(bytes);
  return nb::ndarray<nb::numpy, uint8_t>(mine.data, {bytes}, nb::capsule(new Kept(mine), give_back));
}
static void trim() {
  for (int k = 0; k < 64; k++) ::free(swap_kept(k, {nullptr, 0}, [](const Kept&) { return true; }).data);
}

// The scratch memory of a thread during a call. Up to SMALL bytes stay with the thread for its next call, and a larger block goes to the
// slot of large_block. A signal handler may call the library within a call: the inner call finds the thread's block taken, and allocates
// another.
class Memory {
  static constexpr size_t SMALL = 8 << 20;
  struct Spare {
    Kept block = {nullptr, 0};
    ~Spare() { ::free(block.data); }
  };
  static Spare& spare() {
    static thread_local Spare mine;
    return mine;
  }
  Kept block;

 public:
  explicit Memory(size_t bytes) : block{nullptr, 0} {
    if (bytes > SMALL) {
      block = large_block(bytes);
      return;
    }
    std::swap(block, spare().block);
    if (block.bytes >= bytes) return;
    ::free(block.data);
    block = {aligned_alloc(64, (bytes + 63) / 64 * 64), bytes};
    if (!block.data) {
      block.bytes = 0;
      throw std::bad_alloc();
    }
  }
  ~Memory() {
    if (block.bytes > SMALL)
      give_back(new Kept(block));
    else {
      if (block.bytes > spare().block.bytes) std::swap(block, spare().block);
      ::free(block.data);
    }
  }
  Memory(const Memory&) = delete;
  void* data() const { return block.data; }
};

// Runs pending signal handlers, at most every 50 ms and on the calling thread only. After one that raises an exception, stop() is true.
class Signals {
  const std::thread::id caller = std::this_thread::get_id();
  Clock::time_point checked = Clock::now();
  std::atomic<bool> raised{false};

 public:
  bool on_caller() const { return std::this_thread::get_id() == caller; }
  bool stop() {
    if (!raised && on_caller() && Clock::now() - checked >= std::chrono::milliseconds(50)) {
      nb::gil_scoped_acquire held;
      if (PyErr_CheckSignals()) raised = true;
      checked = Clock::now();
    }
    return raised;
  }
};

// Runs the kernel on all rows, each thread on `grain` rows at a time. Returns false if a signal handler raised an exception.
static bool by_rows(const Job& j, Kernel run, int threads) {
  const int64_t tile = j.cols <= SHORT_ROW ? TILE : tile_of(j.cols), fair = j.rows / threads / tile,
                much = (1 << 16) / whole(j.cols) / tile;
  const int64_t grain = (fair < much ? fair : much) * tile + (fair && much ? 0 : tile);
  const int64_t grains = (j.rows + grain - 1) / grain;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  Signals signals;
  together((int)(threads < grains ? threads : grains), [&] {
    try {
      const Memory mine(scratch_bytes(j.cols, j.inverse_cap != 0));
      for (int64_t i; (grains == 1 || !signals.stop()) && (i = next.fetch_add(grain)) < j.rows;)
        run(j, i, i + grain < j.rows ? i + grain : j.rows, mine.data(), ALL, 0);
    } catch (std::bad_alloc&) {
      failed = true;
    }
  });
  if (next < j.rows && failed) throw std::bad_alloc();
  return grains == 1 || !signals.stop();
}

// Runs the kernel on a few long rows. All threads work on runs of blocks of the same row, in the scratch memory of the calling thread. The
// calling thread takes runs from the front and the others from the back. Each writes the gradient of the blocks whose exponentials it
// computed, because they are still in its cache. Returns false if a signal handler raised an exception.
static bool by_blocks(Job j, Kernel run, int threads, bool gradient) {
  struct alignas(64) Counts {
    std::atomic<int64_t> taken{0}, front{0}, back{0}, had{0}, turn{0}, turned{0}, written{0};
  };
  const int64_t blocks = blocks_of(j.cols), fair = blocks / (3 * threads) + 1, step = fair < 256 ? fair : 256,
                runs = (blocks + step - 1) / step;
  std::unique_ptr<Counts[]> counts(new Counts[j.rows]);
  const Memory shared(scratch_bytes(j.cols, j.inverse_cap != 0));
  std::vector<int64_t> labels(j.rows);
  j.found = labels.data();
  for (int64_t i = 0; i < j.rows; i++) run(j, i, i + 1, shared.data(), FIND_LABEL, 0);
  j.label = labels.data();
  j.label_step = 1;
  Signals signals;
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
      std::vector<int64_t> mine;
      for (; !signals.stop() && c.taken.fetch_add(1) < runs; c.had++) {
        mine.push_back(signals.on_caller() ? c.front++ : runs - 1 - c.back++);
        each(i, mine.back(), SUM_BLOCK);
      }
      wait(c.had, runs);
      if (signals.stop()) return;
      if (c.turn++ == 0) {
        run(j, i, i + 1, shared.data(), FINISH_ROW, 0);
        c.turned = 1;
      }
      wait(c.turned, 1);
      if (!gradient) continue;
      for (int64_t r : mine) {
        if (signals.stop()) return;
        each(i, r, WRITE_BLOCK);
        c.written++;
      }
      wait(c.written, runs);
    }
  });
  return !signals.stop();
}

static int64_t size_of(Type type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

static void call(Op op, Job j, Type type, Off kind, int threads) {
  if (!j.rows || !j.cols) return;
  if (j.rows * j.cols < 1 << 12) threads = 1;  // to wake a thread takes as long as 1500 entries
  const int64_t size = size_of(type);
  const bool aligned = (uintptr_t)j.dz % size == 0;  // stores past the caches need whole elements
  // Short rows share many cache lines with their neighbours, which stores past the caches write twice: 3 times the time with 100 columns.
  j.stream = op != FORWARD && aligned && j.z != j.dz && j.rows * j.cols * size >= 48 << 20 && j.cols * size >= 8 << 10;
  j.ahead = threads == 1;  // 10 % less time on one thread, but 8 % more on two, which use all of the memory's bandwidth
  const Kernel run = isa().run[type][kind][op];
  const int64_t blocks = blocks_of(j.cols);
  const bool by_row = op == CURVATURE || op == LOG_SOFTMAX;
  const bool few_long_rows = !by_row && blocks > 6 && threads > 1 && j.rows < 4 * threads && j.rows % threads;
  bool complete;
  {
    nb::gil_scoped_release free;
    complete = few_long_rows || (!by_row && blocks > 4096) ? by_blocks(j, run, threads, op != FORWARD) : by_rows(j, run, threads);
  }
  if (!complete) throw nb::python_error();
}

static void call(Op op, const Job& j, const Logits& z, const std::optional<Dense>& off, int threads) {
  const Type type = type_of(z.dtype());
  Off kind = SAME;
  if (off) {
    const Type o = type_of(off->dtype());
    need(o == type || (o == F32 && size_of(type) == 2), "off must have the type of z, or float32 for bfloat16 and float16");
    kind = o == type ? SAME : WIDE;
  }
  call(op, j, type, kind, threads);
}

// The sum in NumPy's order, so that a loss has the same bits however it is called: halves, down to 128 numbers, and eight sums of those.
static double sum_as_numpy(const double* a, int64_t n) {
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

// Numbers of the rows in the memory of a caller: an address, or 0 if there are none, and the step between rows (0: the same for all).
typedef std::tuple<uintptr_t, int64_t> Column;

// The frequent calls from PyTorch: a contiguous matrix, numbers that are the same for all rows (y times the class weight of the label, and
// all of them times the row's sample weight), and a reduction. It takes addresses, because each array would cost a microsecond. Those that
// may be 0, of arrays that are not there:
//   label [rows], else the truth is `off`    dz [rows, cols], the gradient      parts [7, rows], written, or read if there are upstreams
//   outputs [rows] each, the first four of Output                             factors [cols], class weights
//   off [cols], or [rows, cols] if off_by_row, in the type of z or, if `wide`, in that of the computation
//   samples, sample weights                 upstreams, the gradients of the outputs (not of the sum or mean)
// Outputs and upstreams are float32 for float32 logits, and else float64; the other numbers are float64. Returns the sum or mean of the
// losses and the number of correct rows (if count_correct), or none if a label is neither ignored nor a class.
static std::optional<std::tuple<double, int64_t>> quick(uintptr_t z, uintptr_t label, uintptr_t dz, uintptr_t parts,
                                                        std::array<uintptr_t, 4> outputs, bool count_correct, int64_t rows, int64_t cols,
                                                        int type, int64_t ignore, double y, double r, double q, uintptr_t factors,
                                                        Column samples, uintptr_t off, bool off_by_row, bool wide, bool mean,
                                                        std::optional<std::array<Column, 4>> upstreams, double temperature, double cap,
                                                        int threads) {
  const int64_t* t = (const int64_t*)label;
  const double *weight = (const double*)factors, *sample = (const double*)std::get<0>(samples);
  const int64_t sample_step = std::get<1>(samples);
  const bool single = type == F32, more = count_correct || outputs[LOGPROB] || outputs[ENTROPY], same = !weight && !sample && !upstreams;
  int64_t counted = t ? 0 : rows;
  for (int64_t i = 0; t && i < rows; i++) {
    if (t[i] == ignore) continue;
    if ((uint64_t)t[i] >= (uint64_t)cols) return std::nullopt;
    counted++;
  }
  const bool all = counted == rows, weighted = mean && (weight || sample);
  auto upstream = [&](int k) { return upstreams ? (*upstreams)[k] : Column{0, 0}; };
  auto given = [&](int k) { return std::get<0>(upstream(k)) != 0; };
  const int64_t results = more ? OUTPUTS : LSE + 1, numbers = given(LSE) || given(LOGPROB) || given(ENTROPY) ? NUMBERS : GRAD_LSE;
  static thread_local std::vector<double> spare;
  std::vector<double> memory;
  memory.swap(spare);  // a signal handler may call this function within the call
  const int64_t needed = rows * (results + (same ? 0 : numbers) + (all ? 0 : 1) + (weighted ? 1 : 0));
  if ((int64_t)memory.size() < needed) memory.resize(needed);
  double* free = memory.data();
  auto take = [&](int64_t n) {
    double* begin = free;
    free += n;
    return begin;
  };
  auto skipped = [&](int64_t i) { return t && t[i] == ignore; };
  auto weight_of = [&](int64_t i) {
    const double by_sample = sample ? sample[i * sample_step] : 1;
    return weight && t && !skipped(i) ? by_sample * weight[t[i]] : by_sample;
  };
  double total = mean ? counted : 1;
  if (weighted) {
    double* weights = take(rows);
    for (int64_t i = 0; i < rows; i++) weights[i] = skipped(i) ? 0 : weight_of(i);
    total = sum_as_numpy(weights, rows);
  }
  const double scale = mean ? (total != 0 ? 1 / total : 0) : 1, constant[4] = {y, r, q, scale};
  Job j = {};
  j.rows = rows;
  j.cols = cols;
  j.z = (const void*)z;
  j.z_step = cols;
  j.dz = (void*)dz;
  j.dz_step = cols;
  j.label = t ? t : &LARGEST;
  j.label_step = t ? 1 : 0;
  j.number_count = numbers;
  j.numbers = constant;
  j.number_step = 1;
  if (!same) {
    double* of_rows = take(numbers * rows);
    for (int64_t i = 0; i < rows; i++) {
      const double by_sample = sample ? sample[i * sample_step] : 1;
      of_rows[Y * rows + i] = y * weight_of(i);
      of_rows[R * rows + i] = r * by_sample;
      of_rows[Q * rows + i] = q * by_sample;
      of_rows[G * rows + i] = scale;
    }
    for (int64_t k = 0; upstreams && k < numbers - G; k++) {
      const auto [address, step] = upstream(k);
      double* column = of_rows + (G + k) * rows;
      for (int64_t i = 0; i < rows; i++) {
        const double up = !address ? 0 : single ? ((const float*)address)[i * step] : ((const double*)address)[i * step];
        column[i] = k != LOSS || !mean ? up : total != 0 ? up / total : 0;
      }
    }
    j.numbers = of_rows;
    j.number_step = rows;
    j.number_row = 1;
  }
  if (!all) {
    int64_t* labels = (int64_t*)take(rows);
    for (int64_t i = 0; i < rows; i++) labels[i] = t[i] == ignore ? IGNORED : t[i];
    j.label = labels;
  }
  j.off = (const void*)off;
  j.off_by_row = off_by_row;
  j.off_step = off_by_row ? cols : 0;
  j.result = take(results * rows);
  j.result_count = results;
  j.result_step = rows;
  j.parts = (double*)parts;
  j.parts_step = rows;
  j.entropy = outputs[ENTROPY] || given(ENTROPY);
  set_transform(j, (Type)type, {temperature, cap});
  call(!dz ? FORWARD : upstreams && parts ? BACKWARD : FUSED, j, (Type)type, wide ? WIDE : SAME, threads);
  for (int k = 0; k < 4; k++) {
    const double* found = j.result + k * rows;
    for (int64_t i = 0; outputs[k] && i < rows; i++)
      single ? ((float*)outputs[k])[i] = (float)found[i] : ((double*)outputs[k])[i] = found[i];
  }
  const double sum = upstreams ? 0 : sum_as_numpy(j.result, rows);
  int64_t correct = 0;
  for (int64_t i = 0; count_correct && i < rows; i++) correct += j.result[CORRECT * rows + i] != 0;
  if (memory.size() <= 1 << 20) spare.swap(memory);
  return std::tuple(mean ? (total != 0 ? sum / total : __builtin_nan("")) : sum, correct);
}

static int64_t first_outside(const Labels& label, int64_t classes, int64_t ignore) {
  const int64_t *t = label.data(), step = label.stride(0);
  for (int64_t i = 0, n = label.shape(0); i < n; i++)
    if ((uint64_t)t[i * step] >= (uint64_t)classes && t[i * step] != ignore) return i;
  return -1;
}
}

// noconvert is needed because nanobind would otherwise convert an output of another type to a copy, fill the copy and drop it.
NB_MODULE(_kernel, m) {
  using namespace softxent;
  typedef std::optional<Dense> Off_;
  typedef std::optional<Results> Parts_;
  m.def("isa", [] { return isa().name; });
  m.def(
      "forward",
      [](Logits z, Labels label, Numbers numbers, Off_ off, Transform transform, Results result, Parts_ parts, int threads) {
        Job j = job(z, label, numbers, off, transform);
        set_result(j, result, 2, OUTPUTS);
        if (parts) set_parts(j, *parts);
        call(FORWARD, j, z, off, threads);
      },
      "z"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a, "result"_a.noconvert(),
      "parts"_a.noconvert().none(), "threads"_a = 1);
  m.def(
      "backward",
      [](Logits z, Labels label, Numbers numbers, Off_ off, Transform transform, Results parts, Matrix out, int threads) {
        Job j = job(z, label, numbers, off, transform);
        set_parts(j, parts);
        set_out(j, out, z);
        call(BACKWARD, j, z, off, threads);
      },
      "z"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a, "parts"_a.noconvert(),
      "out"_a.noconvert(), "threads"_a = 1);
  m.def(
      "fused",
      [](Logits z, Labels label, Numbers numbers, Off_ off, Transform transform, Matrix out, Results result, Parts_ parts, int threads) {
        Job j = job(z, label, numbers, off, transform);
        set_out(j, out, z);
        set_result(j, result, 2, OUTPUTS);
        if (parts) set_parts(j, *parts);
        call(FUSED, j, z, off, threads);
      },
      "z"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a, "out"_a.noconvert(),
      "result"_a.noconvert(), "parts"_a.noconvert().none(), "threads"_a = 1);
  m.def(
      "curvature",
      [](Logits z, Logits v, Labels label, Numbers numbers, Off_ off, Transform transform, bool gauss_newton, Matrix out, Results result,
         int threads) {
        Job j = job(z, label, numbers, off, transform);
        set_out(j, out, z);
        set_result(j, result, PRODUCTS, PRODUCTS);
        need((int64_t)v.shape(0) == j.rows && (int64_t)v.shape(1) == j.cols && (adjacent(v) || !j.rows) &&
                 type_of(v.dtype()) == (type_of(z.dtype()) == F64 ? F64 : F32),
             "v must have the shape of z and the type of the computation");
        j.v = v.data();
        j.v_step = v.stride(0);
        j.gauss_newton = gauss_newton;
        call(CURVATURE, j, z, off, threads);
      },
      "z"_a.noconvert(), "v"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a,
      "gauss_newton"_a, "out"_a.noconvert(), "result"_a.noconvert(), "threads"_a = 1);
  m.def(
      "log_softmax",
      [](Logits z, Numbers scale, Transform transform, Matrix out, int threads) {
        need(scale.shape(0) == 1, "scale must be [1, R] or [1, 1]");
        Job j = job(z, std::nullopt, scale, std::nullopt, transform);
        set_out(j, out, z);
        call(LOG_SOFTMAX, j, z, std::nullopt, threads);
      },
      "z"_a.noconvert(), "scale"_a.noconvert(), "transform"_a, "out"_a.noconvert(), "threads"_a = 1);
  m.def(
      "merge",
      [](nb::ndarray<double, nb::ndim<3>, nb::c_contig, nb::device::cpu> sums,
         nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu, nb::ro> pairs, Labels label, Numbers numbers, Results result,
         Results parts) {
        Job j = {};
        j.rows = sums.shape(2);
        set_label(j, label);
        set_numbers(j, numbers);
        set_result(j, result, 2, OUTPUTS);
        set_parts(j, parts);
        const int64_t shards = sums.shape(0), count = pairs.shape(0);
        need(sums.shape(1) == PARTS && pairs.shape(1) == 2 && shards > 0, "sums must be [K, 7, R], and pairs [K - 1, 2]");
        for (int64_t k = 0; k < 2 * count; k++) need(pairs.data()[k] >= 0 && pairs.data()[k] < shards, "pairs must be indices of shards");
        isa().merge(j, sums.data(), pairs.data(), count);
      },
      "sums"_a.noconvert(), "pairs"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "result"_a.noconvert(),
      "parts"_a.noconvert());
  m.def("quick", quick);
  m.def("buffer", buffer, "bytes"_a);
  m.def("trim", trim);
  m.def("first_outside", first_outside, "label"_a.noconvert(), "classes"_a, "ignore_index"_a);
  m.def("bits16", [](nb::ndarray<nb::device::cpu, nb::ro> x) {  // a 16-bit DLPack tensor as a NumPy array of uint16 with the same memory
    need(x.dtype().bits == 16, "x must have 16-bit entries");
    size_t shape[8];
    int64_t strides[8];
    need(x.ndim() <= 8, "x must have at most 8 axes");
    for (size_t i = 0; i < x.ndim(); i++) {
      shape[i] = x.shape(i);
      strides[i] = x.stride(i);
    }
    return nb::ndarray<nb::numpy, const uint16_t>((const uint16_t*)x.data(), x.ndim(), shape, nb::cast(x), strides);
  });
}
