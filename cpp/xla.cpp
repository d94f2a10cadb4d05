// The kernels as custom calls of XLA on the CPU, which softxent/jax/native.py registers. A handler gets the memory of XLA's arrays, describes
// it in a Job and runs the kernel on it (run.cpp); Python is not involved.
//
// Every handler takes, in this order, and except for z only what the first number of the attribute `given` says:
//   z [*rows, C]    label [*rows], int32 or int64    off [C], [*rows, C]    v [*rows, C]    parts [7 or 12, *rows, 2]    total
//   numbers of the rows: those of Number whose entry in the attribute `fixed` is NaN; the others are in `fixed`, then temperature and cap
// In z, and in v, off and the gradient where they have all axes of z, the axis C is at the place that the second number of `given` says.
// label, total, off and numbers may have a prefix of *rows as their shape: all rows of an entry then share it. total is the sum of the rows'
// weights, whose inverse is g; the losses are then divided by it, and added up if their result has fewer axes than the rows. Labels at the
// lower end of their type are special: IGNORED, LARGEST and OUTSIDE, in this order, of which the last makes y NaN. parts are the sums
// of Part and, of TANGENT_SUMS and HESSIAN, those of Tangent: float64 as pairs of uint32, for XLA has no float64 unless JAX enables it.
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>
#include "ffi.h"
#include "run.h"
#include "xla.h"

namespace softxent {
using ffi::Buffer;

static const char* const WRONG_SIZE = "softxent: this jaxlib has another interface for custom calls";

static std::atomic<int> most_threads{1};
void set_xla_threads(int threads) { most_threads = threads; }

static void need(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}
static Type type_of(const Buffer& b) {
  switch (b.type) {
    case ffi::F32:
      return F32;
    case ffi::F64:
      return F64;
    case ffi::BF16:
      return BF16;
    case ffi::F16:
      return F16;
    default:
      throw std::invalid_argument("softxent: dtype must be float32, float64, float16 or bfloat16");
  }
}
// Calls f with a pointer of the buffer's type.
template <class F> static void typed(const Buffer& b, F f) {
  switch (b.type) {
    case ffi::F32:
      return f((float*)b.data);
    case ffi::F64:
      return f((double*)b.data);
    case ffi::S32:
      return f((int32_t*)b.data);
    case ffi::S64:
      return f((int64_t*)b.data);
    case ffi::PRED:
      return f((bool*)b.data);
    default:
      throw std::invalid_argument("softxent: an argument has a wrong dtype");
  }
}
// Writes each entry of the buffer rows / entries times.
static void spread(const Buffer& b, int64_t rows, double* out) {
  const int64_t n = b.count();
  typed(b, [&](auto* a) {
    for (int64_t i = 0; i < n; i++) std::fill_n(out + i * (rows / n), rows / n, (double)a[i]);
  });
}
static bool divides(const Buffer& b, int64_t rows) { return b.count() && rows % b.count() == 0; }

// Reads the arguments one after the other.
class Arguments {
  const ffi::Buffers& all;
  int64_t next = 0;

 public:
  explicit Arguments(const ffi::Buffers& all) : all(all) {}
  Buffer take() {
    need(next < all.count && all.kinds[next] == ffi::BUFFER, "softxent: an argument is missing");
    return *all.items[next++];
  }
};
static Buffer output(const ffi::Buffers& rets, int64_t i) {
  need(i < rets.count && rets.kinds[i] == ffi::BUFFER, "softxent: a result is missing");
  return *rets.items[i];
}

// An attribute.
template <class T> struct Span {
  const T* data;
  int64_t count;
  const T& operator[](int64_t i) const { return data[i]; }
};
template <class T> static Span<T> attribute(const ffi::Attributes& all, std::string_view name) {
  const ffi::DataType type = std::is_same_v<T, double> ? ffi::F64 : ffi::S64;
  for (int64_t i = 0; i < all.count; i++) {
    const ffi::Array& found = *all.items[i];
    if (name == std::string_view(all.names[i]->begin, all.names[i]->size) && all.kinds[i] == ffi::ARRAY && found.type == type)
      return {(const T*)found.data, (int64_t)found.count};
  }
  throw std::invalid_argument("softxent: an attribute is missing, or has a wrong type");
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
  const int64_t n = label.count(), each = j.rows / n;
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
static void set_numbers(Job& j, Arguments& args, Span<double> fixed, const Buffer* total, bool outside, Rows& memory) {
  const int64_t count = fixed.count - 2;
  std::vector<Buffer> given;
  bool same = !outside && (!total || total->count() == 1);
  for (int64_t k = 0; k < count; k++)
    if (fixed[k] != fixed[k]) {
      given.push_back(args.take());
      need(divides(given.back(), j.rows), "softxent: a number has a wrong shape");
      same = same && given.back().count() == 1;
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
  const int64_t n = out.count(), each = rows / (n ? n : 1), shared = totals.empty() ? 1 : n / totals.size();
  typed(out, [&](auto* a) {
    typedef std::remove_reference_t<decltype(*a)> T;
    for (int64_t i = 0; i < n; i++) {
      const double sum = each == 1 ? found[i] : sum_as_numpy(found + i * each, each), total = totals.empty() ? 1 : totals[i / shared];
      a[i] = (T)(total == 1 ? sum : total != 0 ? sum / total : __builtin_nan(""));
    }
  });
}

// Sets the sums of the rows and, if they are among the parts, their tangents.
static void set_parts(Job& j, const Buffer& parts, bool tangents) {
  need(parts.count() == 2 * (PARTS + tangents * TANGENTS) * j.rows && parts.type == ffi::U32, "softxent: parts have a wrong shape");
  j.parts = (double*)parts.data;
  j.tangents = tangents ? j.parts + PARTS * j.rows : nullptr;
  j.parts_step = j.tangents_step = j.rows;
}

// The steps of an array with the classes on this axis.
static Steps steps_of(const Buffer& a, int64_t axis) {
  Steps s = {};
  int64_t step = 1;
  for (int64_t k = a.rank; k-- > 0; step *= a.dims[k]) (k == axis ? s.column : s.row[k - (k > axis)]) = step;
  return s;
}

static void compute(Op op, const ffi::Buffers& buffers, const ffi::Buffers& rets, Span<double> fixed, Span<int64_t> flags) {
  need(flags.count == 2 && fixed.count >= 2, "softxent: an attribute has a wrong shape");
  const int64_t given = flags[0], axis = flags[1];
  Arguments args(buffers);
  const Buffer z = args.take();
  const Type type = type_of(z);
  const int64_t size = size_of(type), wide = type == F64 ? 8 : 4;
  need(z.rank > 0 && z.rank <= AXES && axis >= 0 && axis < z.rank, "softxent: z has a wrong number of axes");
  Job j = {};
  j.cols = z.dims[axis];
  j.rows = j.cols ? z.count() / j.cols : 0;
  j.z = z.data;
  Layout l = {};
  for (int64_t k = 0; k < z.rank; k++)
    if (k != axis) l.length[l.axes++] = z.dims[k];
  l.z = l.off = l.v = l.dz = steps_of(z, axis);
  int64_t ret = 0;
  if (op != FORWARD && op != TANGENT_SUMS) {
    const Buffer dz = output(rets, ret++);
    need(dz.count() == z.count() && dz.type == z.type, "softxent: the result must be like z");
    j.dz = dz.data;
    if (j.dz != j.z) advise(j.dz, dz.count() * size);  // XLA takes new memory for a large result: 125 MiB in small pages cost 90 ms
  }
  const bool cut = op == TANGENT_SUMS || op == HESSIAN;
  const int64_t results = op == CURVATURE || op == HESSIAN ? PRODUCTS : given & WITH_ENTROPY ? OUTPUTS : LSE + 1;
  const int64_t last = rets.count - (given & PARTS_WRITTEN ? 1 : 0);
  const bool predicted = op == FORWARD && results == OUTPUTS && last > OUTPUTS;
  Rows memory(NUMBERS + 2 + OUTPUTS + 1, j.rows ? j.rows : 1);
  const bool outside = given & LABEL && set_label(j, args.take(), memory);
  j.type = j.off_type = type;
  if (given & OFF) {
    const Buffer off = args.take();
    j.off_type = type_of(off);
    const int64_t at = off.rank == z.rank ? axis : off.rank - 1;
    bool fits = at >= 0 && off.rank <= z.rank && off.dims[at] == j.cols;
    for (int64_t k = 0; fits && k < off.rank; k++) fits = k == at || off.dims[k] == l.length[k - (k > at)];
    need(fits, "softxent: off has a wrong shape");
    j.off = off.data;
    j.off_by_row = off.rank > 1;
    l.off = steps_of(off, at);
  }
  if (given & V) {
    const Buffer v = args.take();
    need(v.count() == z.count() && size_of(type_of(v)) == wide, "softxent: v has a wrong shape or type");
    j.v = v.data;
  }
  if (given & PARTS_READ) set_parts(j, args.take(), cut);
  std::vector<Buffer> total;
  if (given & TOTAL) {
    total.push_back(args.take());
    need(divides(total[0], j.rows ? j.rows : total[0].count()), "softxent: total has a wrong shape");
  }
  if (j.rows) set_numbers(j, args, fixed, total.empty() ? nullptr : &total[0], outside, memory);
  if (given & PARTS_WRITTEN) set_parts(j, output(rets, rets.count - 1), cut);
  j.result = memory.take((results + predicted) * j.rows);
  j.predicted = predicted ? j.result + OUTPUTS * j.rows : nullptr;
  j.result_count = results;
  j.result_step = j.rows;
  j.entropy = given & WITH_ENTROPY || j.number_count == NUMBERS;
  set_transform(j, fixed[fixed.count - 2], fixed[fixed.count - 1]);
  run(op == FUSED && given & PARTS_READ ? BACKWARD : op, j, l, most_threads, nullptr);
  std::vector<double> totals(total.empty() ? 0 : total[0].count());
  if (!total.empty()) spread(total[0], totals.size(), totals.data());
  for (int64_t k = 0; ret < last; k++, ret++) write_rows(j.result + k * j.rows, j.rows, output(rets, ret), totals);
}

// parts [K, 7 or 12, *rows, 2] of different columns are merged in the order of `pairs`. The results are those of the forward pass, v of the
// label if there are tangents, and the parts of all columns.
static void merge(const ffi::Buffers& buffers, const ffi::Buffers& rets, Span<double> fixed, Span<int64_t> pairs) {
  Arguments args(buffers);
  const Buffer sums = args.take(), label = args.take();
  const int64_t shards = sums.dims[0], fields = sums.dims[1];
  const bool tangents = fields == PARTS + TANGENTS;
  Job j = {};
  j.rows = sums.count() / (2 * fields * shards);
  if (!j.rows) return;
  Rows memory(NUMBERS + 2 + OUTPUTS, j.rows);
  const bool outside = set_label(j, label, memory);
  set_numbers(j, args, fixed, nullptr, outside, memory);
  for (int64_t k = 0; k < pairs.count; k++) need(pairs[k] >= 0 && pairs[k] < shards, "softxent: pairs must be indices of shards");
  j.result = memory.take(OUTPUTS * j.rows);
  j.result_count = OUTPUTS;
  j.result_step = j.rows;
  set_parts(j, output(rets, rets.count - 1), tangents);
  j.entropy = true;
  set_transform(j, fixed[fixed.count - 2], INFINITY);
  const int64_t step = fields * j.rows;
  std::vector<double> copy((const double*)sums.data, (const double*)sums.data + shards * step);
  double* const moved = tangents ? copy.data() + PARTS * j.rows : nullptr;
  isa().merge(j, {copy.data(), step, moved, step}, pairs.data, pairs.count / 2);
  for (int64_t k = 0; k < OUTPUTS; k++) write_rows(j.result + k * j.rows, j.rows, output(rets, k), {});
  if (!tangents) return;
  std::copy_n(moved, TANGENTS * j.rows, j.tangents);
  write_rows(j.tangents + VT * j.rows, j.rows, output(rets, OUTPUTS), {});
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

// XLA asks a handler for the version of the interface that it knows, before it calls it.
static void tell_version(const ffi::Extension* asked) {
  ffi::Metadata& about = *((const ffi::MetadataExtension*)asked)->metadata;
  need(asked->size >= sizeof(ffi::MetadataExtension) && about.size >= FFI_SIZE(ffi::Metadata, traits), WRONG_SIZE);
  about.version = ffi::VERSION;
  about.traits = 0;
}

template <class F> static ffi::Error* handled(const ffi::Frame& call, F compute) {
  const Subnormals kept;
  const auto failed = [&](const char* message, ffi::Code code) {
    ffi::NewError made = {FFI_SIZE(ffi::NewError, code), nullptr, message, code};
    return call.api->create(&made);
  };
  try {
    need(call.size >= FFI_SIZE(ffi::Frame, attributes), WRONG_SIZE);
    if (call.extension && call.extension->type == ffi::METADATA)
      tell_version(call.extension);
    else
      compute(attribute<double>(call.attributes, "fixed"));
    return nullptr;
  } catch (const std::bad_alloc&) {
    return failed("softxent: out of memory", ffi::RESOURCE_EXHAUSTED);
  } catch (const std::exception& error) {
    return failed(error.what(), ffi::INTERNAL);
  }
}
template <Op op> static ffi::Error* kernel_call(const ffi::Frame* call) {
  return handled(*call,
                 [&](auto fixed) { compute(op, call->arguments, call->results, fixed, attribute<int64_t>(call->attributes, "given")); });
}
static ffi::Error* merge_call(const ffi::Frame* call) {
  return handled(*call, [&](auto fixed) { merge(call->arguments, call->results, fixed, attribute<int64_t>(call->attributes, "pairs")); });
}

const std::vector<std::pair<const char*, void*>>& xla_calls() {
  static const std::vector<std::pair<const char*, void*>> all = {
      {"softxent_forward", (void*)kernel_call<FORWARD>},
      {"softxent_fused", (void*)kernel_call<FUSED>},
      {"softxent_curvature", (void*)kernel_call<CURVATURE>},
      {"softxent_log_softmax", (void*)kernel_call<LOG_SOFTMAX>},
      {"softxent_tangent_sums", (void*)kernel_call<TANGENT_SUMS>},
      {"softxent_hessian", (void*)kernel_call<HESSIAN>},
      {"softxent_merge", (void*)merge_call},
  };
  return all;
}
}
