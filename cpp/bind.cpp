// The Python module _kernel, which kernels/cpu.py calls (and contract.py, bits16). It checks the arrays, describes them in a
// Job, and runs the kernel on it (run.cpp), with the GIL released.
//
// It assumes that its callers have checked what a user can get wrong (labels, options), and that nobody writes to the arrays during a call.
// It checks shapes, types and strides itself, because a wrong one would be an access outside the arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <pthread.h>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>
#include "run.h"
#include "xla.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace softxent {
typedef nb::ndarray<nb::device::cpu> Writable;
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
typedef std::tuple<double, double> Transform;  // temperature and cap
static void set_transform(Job& j, Transform transform) {
  const auto [temperature, cap] = transform;
  need(temperature > 0 && cap > 0, "temperature and cap must be positive");
  set_transform(j, temperature, cap);
}
// A job, and where its arrays lie: [*rows, C], with any strides.
struct Call {
  Job job = {};
  Layout layout;
};
template <class A> static Steps steps_of(const A& a) {
  Steps s;
  const size_t last = a.ndim() - 1;
  for (size_t k = 0; k < last; k++) s.row[k] = a.stride(k);
  s.column = a.shape(last) <= 1 ? 1 : a.stride(last);
  return s;
}
template <class A> static bool like(const A& a, const Dense& z) {
  bool same = a.ndim() == z.ndim();
  for (size_t k = 0; same && k < z.ndim(); k++) same = a.shape(k) == z.shape(k);
  return same;
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
static Call call_of(const Dense& z, const std::optional<Labels>& label, const Numbers& numbers, const std::optional<Dense>& off,
                    Transform transform) {
  need(z.ndim() > 0 && z.ndim() <= AXES, "z must have 1 to 64 axes");
  Call c;
  Job& j = c.job;
  Layout& l = c.layout;
  l.axes = (int)z.ndim() - 1;
  j.rows = 1;
  for (int k = 0; k < l.axes; k++) j.rows *= l.length[k] = z.shape(k);
  j.cols = z.shape(l.axes);
  j.z = z.data();
  l.z = l.off = l.v = l.dz = steps_of(z);
  if (label) set_label(j, *label);
  set_numbers(j, numbers);
  if (off) {
    j.off_by_row = off->ndim() > 1;
    need(j.off_by_row ? like(*off, z) : off->ndim() == 1 && (int64_t)off->shape(0) == j.cols && (off->stride(0) == 1 || j.cols <= 1),
         "off must have the shape of z, or be [C] with adjacent entries");
    j.off = off->data();
    l.off = j.off_by_row ? steps_of(*off) : Steps{{}, 1};
  }
  set_transform(j, transform);
  return c;
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
static void set_out(Call& c, const Writable& a, const Dense& z) {
  need(like(a, z) && a.dtype() == z.dtype(), "out must be like z");
  c.job.dz = a.data();
  c.layout.dz = steps_of(a);
}

struct Lent {  // the memory of an array, for as long as there is the array
  const Kept block;
  explicit Lent(size_t bytes) : block(large_block(bytes)) {
    if (!block.data) throw std::bad_alloc();
  }
  ~Lent() { give_back(block); }
};
static nb::ndarray<nb::numpy, uint8_t> buffer(size_t bytes) {
  auto lent = std::make_unique<Lent>(bytes);
  void* data = lent->block.data;
  const nb::capsule owner(lent.get(), [](void* lent) noexcept { delete (Lent*)lent; });
  lent.release();
  return nb::ndarray<nb::numpy, uint8_t>(data, {bytes}, owner);
}

// Once Python ends, a daemon thread that asks for the GIL is unwound by pthread_exit (before Python 3.14), and the first function that is
// noexcept then ends the process by std::terminate. So it sleeps instead, as from 3.14 on, until the process is gone.
static std::atomic<bool> ending{false};
static std::atomic<int> asking{0};  // threads that ask for the GIL, from before they look at `ending` until they have it
static std::thread::id ends;        // the thread that ends Python
static void before_gil() {
  asking++;
  if (!ending || std::this_thread::get_id() == ends) return;
  asking--;
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}
static void at_exit() {
  ends = std::this_thread::get_id();
  ending = true;
  nb::gil_scoped_release free;
  while (asking) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// Runs pending signal handlers. Returns whether one raised an exception.
static bool interrupted() {
  before_gil();
  nb::gil_scoped_acquire held;
  asking--;
  return PyErr_CheckSignals() != 0;
}
class Released {  // without the GIL, until it is asked for again, also after an error
  struct Asked {
    ~Asked() { asking--; }
  } asked;
  nb::gil_scoped_release free;

 public:
  ~Released() { before_gil(); }
};
static void call(Op op, const Job& j, const Layout& l, Type type, Off kind, int threads) {
  const bool complete = [&] {
    const Released free;
    return run(op, j, l, type, kind, threads, interrupted);
  }();
  if (!complete) throw nb::python_error();
}

static void call(Op op, const Call& c, const Dense& z, const std::optional<Dense>& off, int threads) {
  const Type type = type_of(z.dtype());
  Off kind = SAME;
  if (off) {
    const Type o = type_of(off->dtype());
    need(o == type || (o == F32 && size_of(type) == 2), "off must have the type of z, or float32 for bfloat16 and float16");
    kind = o == type ? SAME : WIDE;
  }
  call(op, c.job, c.layout, type, kind, threads);
}

// The memory of a caller's tensor, if there is one. An address of 0 is a tensor whose memory was freed, never one that is not there.
typedef std::optional<uintptr_t> Address;
// Numbers of the rows, if there are some: their address, and the step between rows (0: the same for all).
typedef std::optional<std::tuple<uintptr_t, int64_t>> Column;
static bool freed(const Address& a) { return a && !*a; }
static bool freed(const Column& c) { return c && !std::get<0>(*c); }
template <class T> static T* memory_of(const Address& a) { return (T*)a.value_or(0); }

// The steps of a tensor with the classes on `axis`.
static Steps steps_of(const std::vector<int64_t>& strides, size_t axis) {
  Steps s;
  for (size_t k = 0; k < strides.size(); k++) (k == axis ? s.column : s.row[k - (k > axis)]) = strides[k];
  return s;
}

// The frequent calls from PyTorch: logits of any strides, numbers that are the same for all rows (y times the class weight of the label, and
// all of them times the row's sample weight), and a reduction. It takes addresses, because each array would cost a microsecond. Those of
// tensors that may be missing, [rows] being adjacent numbers:
//   label [rows], else the truth is `off`    dz like z, the gradient            parts [7, rows], written, or read if there are upstreams
//   outputs [rows] each, the first four of Output                             factors [C], class weights
//   off [C], or like z if it has strides, in the type of z or, if `wide`, in that of the computation
//   samples, sample weights                 upstreams, the gradients of the outputs (not of the sum or mean)
// Outputs and upstreams are float32 for float32 logits, and else float64; the other numbers are float64. Returns the sum or mean of the
// losses and the number of correct rows (if count_correct), or none if a label is neither ignored nor a class, or memory was freed.
typedef std::vector<int64_t> Strides;
static std::optional<std::tuple<double, int64_t>> quick(Address z, Address label, Address dz, Address parts, std::array<Address, 4> outputs,
                                                        bool count_correct, const std::vector<int64_t>& shape, size_t axis,
                                                        const Strides& z_strides, const std::optional<Strides>& dz_strides, int type,
                                                        int64_t ignore, double y, double r, double q, Address factors, Column samples,
                                                        Address off, const std::optional<Strides>& off_strides, bool wide, bool mean,
                                                        std::optional<std::array<Column, 4>> upstreams, double temperature, double cap,
                                                        int threads) {
  need(axis < shape.size() && shape.size() <= AXES && z_strides.size() == shape.size(), "shape, axis and strides do not fit");
  need((!dz_strides || dz_strides->size() == shape.size()) && (!off_strides || off_strides->size() == shape.size()),
       "strides do not fit the shape");
  Layout l = {};
  int64_t rows = 1;
  const int64_t cols = shape[axis];
  for (size_t k = 0; k < shape.size(); k++)
    if (k != axis) rows *= l.length[l.axes++] = shape[k];
  l.z = l.v = steps_of(z_strides, axis);
  l.dz = dz_strides ? steps_of(*dz_strides, axis) : l.z;
  l.off = off_strides ? steps_of(*off_strides, axis) : off ? Steps{{}, 1} : l.z;
  if (freed(z) || freed(label) || freed(parts) || freed(factors) || freed(samples) || freed(off)) return std::nullopt;
  for (int k = 0; upstreams && k < 4; k++)
    if (freed((*upstreams)[k])) return std::nullopt;
  const int64_t* t = memory_of<const int64_t>(label);
  const double *weight = memory_of<const double>(factors), *sample = samples ? (const double*)std::get<0>(*samples) : nullptr;
  const int64_t sample_step = samples ? std::get<1>(*samples) : 0;
  const bool single = type == F32, more = count_correct || outputs[LOGPROB] || outputs[ENTROPY], same = !weight && !sample && !upstreams;
  int64_t counted = t ? 0 : rows;
  for (int64_t i = 0; t && i < rows; i++) {
    if (t[i] == ignore) continue;
    if ((uint64_t)t[i] >= (uint64_t)cols) return std::nullopt;
    counted++;
  }
  const bool all = counted == rows, weighted = mean && (weight || sample);
  auto given = [&](int k) { return upstreams && (*upstreams)[k]; };
  const int64_t results = more ? OUTPUTS : LSE + 1, numbers = given(LSE) || given(LOGPROB) || given(ENTROPY) ? NUMBERS : GRAD_LSE;
  const int64_t needed = rows * (results + (same ? 0 : numbers) + (all ? 0 : 1) + (weighted ? 1 : 0));
  const Memory memory(needed * sizeof(double), Memory::ROWS);
  if (!memory.data()) throw std::bad_alloc();
  double* free = (double*)memory.data();
  auto take = [&](int64_t n) { return std::exchange(free, free + n); };
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
  j.z = memory_of<const void>(z);
  j.dz = memory_of<void>(dz);
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
      const auto [address, step] = (*upstreams)[k].value_or(std::tuple(0, 0));
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
  j.off = memory_of<const void>(off);
  j.off_by_row = off_strides.has_value();
  j.result = take(results * rows);
  j.result_count = results;
  j.result_step = rows;
  j.parts = memory_of<double>(parts);
  j.parts_step = rows;
  j.entropy = outputs[ENTROPY] || given(ENTROPY);
  set_transform(j, {temperature, cap});
  call(!dz ? FORWARD : upstreams && parts ? BACKWARD : FUSED, j, l, (Type)type, wide ? WIDE : SAME, threads);
  for (int k = 0; k < 4; k++) {
    const double* found = j.result + k * rows;
    for (int64_t i = 0; outputs[k] && i < rows; i++)
      single ? memory_of<float>(outputs[k])[i] = (float)found[i] : memory_of<double>(outputs[k])[i] = found[i];
  }
  const double sum = upstreams ? 0 : sum_as_numpy(j.result, rows);
  int64_t correct = 0;
  for (int64_t i = 0; count_correct && i < rows; i++) correct += j.result[CORRECT * rows + i] != 0;
  return std::tuple(mean ? (total != 0 ? sum / total : __builtin_nan("")) : sum, correct);
}

static nb::dict named(std::initializer_list<std::pair<const char*, int>> codes) {
  nb::dict found;
  for (const auto& [name, code] : codes) found[name] = code;
  return found;
}

static int64_t first_outside(const Labels& label, int64_t classes, int64_t ignore) {
  const int64_t *t = label.data(), step = label.stride(0);
  for (int64_t i = 0, n = label.shape(0); i < n; i++)
    if ((uint64_t)t[i * step] >= (uint64_t)classes && t[i * step] != ignore) return i;
  return -1;
}
}

// nanobind, and PyGILState_Ensure in `interrupted`, know the main interpreter alone: in another one, a call would wait forever.
#define PyInit__kernel in_the_main_interpreter
// noconvert is needed because nanobind would otherwise convert an output of another type to a copy, fill the copy and drop it.
NB_MODULE(_kernel, m) {
  using namespace softxent;
  typedef std::optional<Dense> Off_;
  typedef std::optional<Results> Parts_;
  at_import();
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(at_exit));
  pthread_atfork(nullptr, nullptr, [] { asking = 0; });  // a child has none of these threads
  m.attr("BLOCK") = BLOCK;
  m.attr("SHORT_ROW") = SHORT_ROW;
  m.attr("SMALL_CALL") = SMALL_CALL;
  m.attr("IGNORED") = IGNORED;
  m.attr("LARGEST") = LARGEST;
  m.attr("OUTSIDE") = OUTSIDE;
  m.attr("DTYPES") = named({{"float32", F32}, {"float64", F64}, {"bfloat16", BF16}, {"float16", F16}});
  m.attr("GIVEN") = named({{"OFF", OFF},
                           {"V", V},
                           {"PARTS_READ", PARTS_READ},
                           {"TOTAL", TOTAL},
                           {"PARTS_WRITTEN", PARTS_WRITTEN},
                           {"LABEL", LABEL},
                           {"WITH_ENTROPY", WITH_ENTROPY}});
  m.def("isa", [] { return isa().name; });
  m.def(
      "forward",
      [](Dense z, Labels label, Numbers numbers, Off_ off, Transform transform, Results result, Parts_ parts, int threads) {
        Call c = call_of(z, label, numbers, off, transform);
        set_result(c.job, result, 2, OUTPUTS);
        if (parts) set_parts(c.job, *parts);
        call(FORWARD, c, z, off, threads);
      },
      "z"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a, "result"_a.noconvert(),
      "parts"_a.noconvert().none(), "threads"_a = 1);
  m.def(
      "backward",
      [](Dense z, Labels label, Numbers numbers, Off_ off, Transform transform, Results parts, Writable out, int threads) {
        Call c = call_of(z, label, numbers, off, transform);
        set_parts(c.job, parts);
        set_out(c, out, z);
        call(BACKWARD, c, z, off, threads);
      },
      "z"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a, "parts"_a.noconvert(),
      "out"_a.noconvert(), "threads"_a = 1);
  m.def(
      "fused",
      [](Dense z, Labels label, Numbers numbers, Off_ off, Transform transform, Writable out, Results result, Parts_ parts, int threads) {
        Call c = call_of(z, label, numbers, off, transform);
        set_out(c, out, z);
        set_result(c.job, result, 2, OUTPUTS);
        if (parts) set_parts(c.job, *parts);
        call(FUSED, c, z, off, threads);
      },
      "z"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a, "out"_a.noconvert(),
      "result"_a.noconvert(), "parts"_a.noconvert().none(), "threads"_a = 1);
  m.def(
      "curvature",
      [](Dense z, Dense v, Labels label, Numbers numbers, Off_ off, Transform transform, bool gauss_newton, Writable out, Results result,
         int threads) {
        Call c = call_of(z, label, numbers, off, transform);
        set_out(c, out, z);
        set_result(c.job, result, PRODUCTS, PRODUCTS);
        need(like(v, z) && type_of(v.dtype()) == (type_of(z.dtype()) == F64 ? F64 : F32),
             "v must have the shape of z and the type of the computation");
        c.job.v = v.data();
        c.layout.v = steps_of(v);
        c.job.gauss_newton = gauss_newton;
        call(CURVATURE, c, z, off, threads);
      },
      "z"_a.noconvert(), "v"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "off"_a.noconvert().none(), "transform"_a,
      "gauss_newton"_a, "out"_a.noconvert(), "result"_a.noconvert(), "threads"_a = 1);
  m.def(
      "log_softmax",
      [](Dense z, Numbers scale, Transform transform, Writable out, int threads) {
        need(scale.shape(0) == 1, "scale must be [1, R] or [1, 1]");
        Call c = call_of(z, std::nullopt, scale, std::nullopt, transform);
        set_out(c, out, z);
        call(LOG_SOFTMAX, c, z, std::nullopt, threads);
      },
      "z"_a.noconvert(), "scale"_a.noconvert(), "transform"_a, "out"_a.noconvert(), "threads"_a = 1);
  m.def(
      "merge",
      [](nb::ndarray<double, nb::ndim<3>, nb::c_contig, nb::device::cpu> sums,
         nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu, nb::ro> pairs, Labels label, Numbers numbers, double temperature,
         Results result, Results parts) {
        Job j = {};
        j.rows = sums.shape(2);
        set_label(j, label);
        set_numbers(j, numbers);
        set_result(j, result, 2, OUTPUTS);
        set_parts(j, parts);
        const int64_t shards = sums.shape(0), count = pairs.shape(0);
        need(sums.shape(1) == PARTS && pairs.shape(1) == 2 && shards > 0, "sums must be [K, 7, R], and pairs [K - 1, 2]");
        for (int64_t k = 0; k < 2 * count; k++) need(pairs.data()[k] >= 0 && pairs.data()[k] < shards, "pairs must be indices of shards");
        set_transform(j, temperature, INFINITY);
        isa().merge(j, sums.data(), pairs.data(), count);
      },
      "sums"_a.noconvert(), "pairs"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "temperature"_a, "result"_a.noconvert(),
      "parts"_a.noconvert());
  m.def("quick", quick);
  m.def("xla_calls", [] {  // the handlers for XLA as capsules, by name
    nb::dict found;
    for (const auto& [name, handler] : xla_calls()) found[name] = nb::capsule(handler, "xla._CUSTOM_CALL_TARGET");
    return found;
  });
  m.def("set_xla_threads", set_xla_threads, "threads"_a);
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
#undef PyInit__kernel
extern "C" NB_EXPORT PyObject* PyInit__kernel(void) {
  if (!PyInterpreterState_GetID(PyInterpreterState_Get())) return in_the_main_interpreter();
  PyErr_SetString(PyExc_ImportError, "softxent: the interpreter must be the main one of the process; got a subinterpreter");
  return nullptr;
}
