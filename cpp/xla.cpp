// The kernels as custom calls of XLA on the CPU, which softxent/jax/native.py registers. A handler gets the memory of XLA's arrays, describes
// it in a Job and runs the kernel on it (run.cpp); Python is not involved.
//
// Every handler takes, in this order, and except for z only what the attribute `given` says:
//   z [*rows, C]    label [*rows], int32 or int64    off [C], [*rows, C]    v [*rows, C]    parts [7, *rows, 2]    total
//   numbers of the rows: those of Number whose entry in the attribute `fixed` is NaN; the others are in `fixed`, then temperature and cap
// label, total, off and numbers may have a prefix of *rows as their shape: all rows of an entry then share it. total is the sum of the
// rows' weights, whose inverse is g; the losses are then divided by it, and added up if their result has fewer axes than the rows. Labels at the lower end of their
// type are special: IGNORED, LARGEST and OUTSIDE, in this order, of which the last makes y NaN. parts are float64 numbers as pairs of uint32,
// for XLA has no float64 unless JAX enables it.
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>
#include "run.h"
#include "xla.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
namespace softxent {
typedef ffi::AnyBuffer Buffer;

static constexpr int64_t OUTSIDE = IGNORED + 2;  // label of a row whose results are NaN
enum Given { OFF = 1, V = 2, PARTS_READ = 4, TOTAL = 8, PARTS_WRITTEN = 16, LABEL = 32, WITH_ENTROPY = 64 };

static std::atomic<int> most_threads{1};
void set_xla_threads(int threads) { most_threads = threads; }

static void need(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}
static Type type_of(const Buffer& b) {
  switch (b.element_type()) {
    case ffi::DataType::F32:
      return F32;
    case ffi::DataType::F64:
      return F64;
    case ffi::DataType::BF16:
      return BF16;
    case ffi::DataType::F16:
      return F16;
    default:
      throw std::invalid_argument("softxent: dtype must be float32, float64, float16 or bfloat16");
  }
}
// Calls f with a pointer of the buffer's type.
template <class F> static void typed(const Buffer& b, F f) {
  switch (b.element_type()) {
    case ffi::DataType::F32:
      return f((float*)b.untyped_data());
    case ffi::DataType::F64:
      return f((double*)b.untyped_data());
    case ffi::DataType::S32:
      return f((int32_t*)b.untyped_data());
    case ffi::DataType::S64:
      return f((int64_t*)b.untyped_data());
    case ffi::DataType::PRED:
      return f((bool*)b.untyped_data());
    default:
      throw std::invalid_argument("softxent: an argument has a wrong dtype");
  }
}
// Writes each entry of the buffer rows / entries times.
static void spread(const Buffer& b, int64_t rows, double* out) {
  const int64_t n = b.element_count();
  typed(b, [&](auto* a) {
    for (int64_t i = 0; i < n; i++) std::fill_n(out + i * (rows / n), rows / n, (double)a[i]);
  });
}
static bool divides(const Buffer& b, int64_t rows) { return b.element_count() && rows % b.element_count() == 0; }

// Reads the arguments one after the other.
class Arguments {
  const ffi::RemainingArgs& args;
  size_t next = 0;

 public:
  explicit Arguments(const ffi::RemainingArgs& args) : args(args) {}
  bool left() const { return next < args.size(); }
  Buffer take() {
    auto found = args.get<Buffer>(next++);
    need(found.has_value(), "softxent: an argument is missing");
    return *found;
  }
};
static Buffer output(const ffi::RemainingRets& rets, size_t i) {
  auto found = rets.get<Buffer>(i);
  need(found.has_value(), "softxent: a result is missing");
  return **found;
}

// The memory of a call for labels, numbers and results of the rows.
class Rows {
  const Memory memory;
  double* next;

 public:
  explicit Rows(int64_t arrays, int64_t rows) : memory(arrays * rows * sizeof(double), Memory::ROWS), next((double*)memory.data()) {
    if (!next) throw std::bad_alloc();
  }
  double* take(int64_t n) { return std::exchange(next, next + n); }
};

// Sets the labels, as int64. Returns whether one of them is OUTSIDE.
static bool set_label(Job& j, const Buffer& label, Rows& memory) {
  need(divides(label, j.rows), "softxent: label has a wrong shape");
  const int64_t n = label.element_count(), each = j.rows / n;
  int64_t* out = (int64_t*)memory.take(n == 1 ? 1 : j.rows);
  bool outside = false;
  typed(label, [&](auto* a) {
    typedef std::remove_reference_t<decltype(*a)> T;
    if constexpr (std::is_same_v<T, int32_t> || std::is_same_v<T, int64_t>) {
      constexpr T least = std::numeric_limits<T>::min(), most = least + 2;
      for (int64_t i = 0; i < n; i++) {  // without a branch, so that it is done for several labels at once
        out[i] = (int64_t)a[i] + (a[i] <= most ? IGNORED - (int64_t)least : 0);
        outside |= out[i] == OUTSIDE;
      }
      for (int64_t i = n - 1; n > 1 && each > 1 && i >= 0; i--) std::fill_n(out + i * each, each, int64_t(out[i]));
    }
    need(std::is_integral_v<T> && !std::is_same_v<T, bool>, "softxent: label must be int32 or int64");
  });
  j.label = out;
  j.label_step = n == 1 ? 0 : 1;
  return outside;
}

// Sets the numbers of the rows: a column if all rows share them.
static void set_numbers(Job& j, Arguments& args, ffi::Span<const double> fixed, const Buffer* total, bool outside, Rows& memory) {
  const int64_t count = fixed.size() - 2;
  std::vector<Buffer> given;
  bool same = !outside && (!total || total->element_count() == 1);
  for (int64_t k = 0; k < count; k++)
    if (fixed[k] != fixed[k]) {
      given.push_back(args.take());
      need(divides(given.back(), j.rows), "softxent: a number has a wrong shape");
      same = same && given.back().element_count() == 1;
    }
  const int64_t n = same ? 1 : j.rows;
  double* numbers = memory.take(count * n);
  size_t next = 0;
  for (int64_t k = 0; k < count; k++) {
    double* column = numbers + k * n;
    if (fixed[k] != fixed[k])
      spread(given[next++], n, column);
    else
      std::fill_n(column, n, fixed[k]);
    if (k == G && total) {
      spread(*total, n, column);
      for (int64_t i = 0; i < n; i++) column[i] = column[i] != 0 ? 1 / column[i] : 0;
    }
  }
  for (int64_t i = 0; outside && i < n; i++)
    if (j.label[i * j.label_step] == OUTSIDE) numbers[Y * n + i] = __builtin_nan("");
  j.numbers = numbers;
  j.number_count = count;
  j.number_step = n;
  j.number_row = same ? 0 : 1;
}

// Writes results of the rows: each, or the sum of those that share an entry, divided by the total of the entry.
static void write_rows(const double* found, int64_t rows, const Buffer& out, const std::vector<double>& totals) {
  const int64_t n = out.element_count(), each = rows / (n ? n : 1), shared = totals.empty() ? 1 : n / totals.size();
  typed(out, [&](auto* a) {
    typedef std::remove_reference_t<decltype(*a)> T;
    for (int64_t i = 0; i < n; i++) {
      const double sum = each == 1 ? found[i] : sum_as_numpy(found + i * each, each), total = totals.empty() ? 1 : totals[i / shared];
      a[i] = (T)(total == 1 ? sum : total != 0 ? sum / total : __builtin_nan(""));
    }
  });
}

static double* parts_of(const Buffer& parts, int64_t rows) {
  need(parts.element_count() == 2 * PARTS * rows && parts.element_type() == ffi::DataType::U32, "softxent: parts have a wrong shape");
  return (double*)parts.untyped_data();
}

// The rows of a job from `first` on.
static Job part(Job j, int64_t first, int64_t n, int64_t size, int64_t wide) {
  j.rows = n;
  j.z = (const char*)j.z + first * j.z_step * size;
  j.dz = j.dz ? (char*)j.dz + first * j.dz_step * size : nullptr;
  j.v = j.v ? (const char*)j.v + first * j.v_step * wide : nullptr;
  j.label = j.label ? j.label + first * j.label_step : nullptr;
  j.numbers += first * j.number_row;
  j.result += first;
  j.parts = j.parts ? j.parts + first : nullptr;
  return j;
}

static ffi::Error compute(Op op, ffi::RemainingArgs buffers, ffi::RemainingRets rets, ffi::Span<const double> fixed, int64_t given) {
  Arguments args(buffers);
  const Buffer z = args.take();
  const Type type = type_of(z);
  const int64_t size = size_of(type), wide = type == F64 ? 8 : 4;
  Job j = {};
  j.cols = z.dimensions().back();
  j.rows = j.cols ? z.element_count() / j.cols : 0;
  j.z = z.untyped_data();
  j.z_step = j.cols;
  size_t ret = 0;
  if (op != FORWARD) {
    const Buffer dz = output(rets, ret++);
    need(dz.element_count() == z.element_count() && dz.element_type() == z.element_type(), "softxent: the result must be like z");
    j.dz = dz.untyped_data();
    if (j.dz != j.z) advise(j.dz, dz.size_bytes());  // XLA takes new memory for a large result: 125 MiB in small pages cost 90 ms
    j.dz_step = j.cols;
  }
  const int64_t results = op == CURVATURE ? PRODUCTS : given & WITH_ENTROPY ? OUTPUTS : LSE + 1;
  Rows memory(NUMBERS + 2 + OUTPUTS, j.rows ? j.rows : 1);
  const bool outside = given & LABEL && set_label(j, args.take(), memory);
  int64_t groups = 1;
  Off kind = SAME;
  if (given & OFF) {
    const Buffer off = args.take();
    const Type o = type_of(off);
    need(o == type || (o == F32 && size == 2), "softxent: off must have the type of z, or float32");
    kind = o == type ? SAME : WIDE;
    groups = j.cols ? off.element_count() / j.cols : 1;
    need(groups && off.element_count() == groups * j.cols && j.rows % groups == 0, "softxent: off has a wrong shape");
    j.off = off.untyped_data();
    j.off_by_row = groups == j.rows && groups > 1;
    j.off_step = j.off_by_row ? j.cols : 0;
    groups = j.off_by_row ? 1 : groups;
  }
  if (given & V) {
    const Buffer v = args.take();
    need(v.element_count() == z.element_count() && size_of(type_of(v)) == wide, "softxent: v has a wrong shape or type");
    j.v = v.untyped_data();
    j.v_step = j.cols;
  }
  if (given & PARTS_READ) j.parts = parts_of(args.take(), j.rows);
  std::vector<Buffer> total;
  if (given & TOTAL) {
    total.push_back(args.take());
    need(divides(total[0], j.rows ? j.rows : total[0].element_count()), "softxent: total has a wrong shape");
  }
  if (j.rows) set_numbers(j, args, fixed, total.empty() ? nullptr : &total[0], outside, memory);
  if (given & PARTS_WRITTEN) j.parts = parts_of(output(rets, rets.size() - 1), j.rows);
  j.parts_step = j.rows;
  j.result = memory.take(results * j.rows);
  j.result_count = results;
  j.result_step = j.rows;
  j.entropy = given & WITH_ENTROPY || j.number_count == NUMBERS;
  set_transform(j, type, fixed[fixed.size() - 2], fixed[fixed.size() - 1]);
  const int64_t rows = j.rows / groups;
  for (int64_t i = 0; i < groups && rows; i++) {
    Job p = part(j, i * rows, rows, size, wide);
    if (groups > 1) p.off = (const char*)j.off + i * j.cols * (kind == SAME ? size : 4);
    run(op == FUSED && given & PARTS_READ ? BACKWARD : op, p, type, kind, most_threads, nullptr);
  }
  std::vector<double> totals(total.empty() ? 0 : total[0].element_count());
  if (!total.empty()) spread(total[0], totals.size(), totals.data());
  const size_t last = rets.size() - (given & PARTS_WRITTEN ? 1 : 0);
  for (int64_t k = 0; ret < last; k++, ret++) write_rows(j.result + k * j.rows, j.rows, output(rets, ret), totals);
  return ffi::Error::Success();
}

// sums [K, 7, *rows, 2] over different columns are merged in the order of `pairs`. The results are those of the forward pass, and parts.
static ffi::Error merge(ffi::RemainingArgs buffers, ffi::RemainingRets rets, ffi::Span<const double> fixed,
                        ffi::Span<const int64_t> pairs) {
  Arguments args(buffers);
  const Buffer sums = args.take(), label = args.take();
  const int64_t shards = sums.dimensions().front();
  Job j = {};
  j.rows = sums.element_count() / (2 * PARTS * shards);
  if (!j.rows) return ffi::Error::Success();
  Rows memory(NUMBERS + 2 + OUTPUTS, j.rows);
  const bool outside = set_label(j, label, memory);
  set_numbers(j, args, fixed, nullptr, outside, memory);
  for (int64_t k : pairs) need(k >= 0 && k < shards, "softxent: pairs must be indices of shards");
  j.result = memory.take(OUTPUTS * j.rows);
  j.result_count = OUTPUTS;
  j.result_step = j.rows;
  j.parts = parts_of(output(rets, rets.size() - 1), j.rows);
  j.parts_step = j.rows;
  j.entropy = true;
  std::vector<double> copy((const double*)sums.untyped_data(), (const double*)sums.untyped_data() + shards * PARTS * j.rows);
  isa().merge(j, copy.data(), pairs.begin(), pairs.size() / 2);
  for (size_t k = 0; k + 1 < rets.size(); k++) write_rows(j.result + k * j.rows, j.rows, output(rets, k), {});
  return ffi::Error::Success();
}

// XLA flushes subnormal numbers to 0 on its threads. During a call they are kept, so that the results have the bits that they have elsewhere.
class Subnormals {
  std::fenv_t before;

 public:
  Subnormals() {
    std::fegetenv(&before);
    std::fesetenv(FE_DFL_ENV);
  }
  ~Subnormals() { std::fesetenv(&before); }
};

template <class F> static ffi::Error guarded(F f) {
  const Subnormals kept;
  try {
    return f();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "softxent: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}
template <Op op>
static ffi::Error kernel_call(ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Span<const double> fixed, int64_t given) {
  return guarded([&] { return compute(op, args, rets, fixed, given); });
}
static ffi::Error merge_sums(ffi::RemainingArgs args, ffi::RemainingRets rets, ffi::Span<const double> fixed,
                             ffi::Span<const int64_t> pairs) {
  return guarded([&] { return merge(args, rets, fixed, pairs); });
}

#define ARGUMENTS ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<ffi::Span<const double>>("fixed")
XLA_FFI_DEFINE_HANDLER(forward_call, kernel_call<FORWARD>, ARGUMENTS.Attr<int64_t>("given"));
XLA_FFI_DEFINE_HANDLER(fused_call, kernel_call<FUSED>, ARGUMENTS.Attr<int64_t>("given"));
XLA_FFI_DEFINE_HANDLER(curvature_call, kernel_call<CURVATURE>, ARGUMENTS.Attr<int64_t>("given"));
XLA_FFI_DEFINE_HANDLER(log_softmax_call, kernel_call<LOG_SOFTMAX>, ARGUMENTS.Attr<int64_t>("given"));
XLA_FFI_DEFINE_HANDLER(merge_call, merge_sums, ARGUMENTS.Attr<ffi::Span<const int64_t>>("pairs"));

const std::vector<std::pair<const char*, void*>>& xla_calls() {
  static const std::vector<std::pair<const char*, void*>> all = {
      {"softxent_forward", (void*)forward_call},     {"softxent_fused", (void*)fused_call},
      {"softxent_curvature", (void*)curvature_call}, {"softxent_log_softmax", (void*)log_softmax_call},
      {"softxent_merge", (void*)merge_call},
  };
  return all;
}
}
