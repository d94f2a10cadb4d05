// The Python module _kernel, which kernels/cpu.py calls (and contract.py, bits16). It checks the arrays, describes them in a
// Job, and runs the kernel on it (run.cpp), with the GIL released.
//
// It assumes that its callers have checked what a user can get wrong (labels, options), and that nobody writes to the arrays during a call.
// It checks shapes, types and strides itself, because a wrong one would be an access outside the arrays.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <pthread.h>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>
#include "arrays.h"
#include "run.h"
#include "xla.h"

namespace nb = nanobind;
using namespace nb::literals;
namespace softxent {
typedef nb::ndarray<int64_t, nb::ndim<1>, nb::device::cpu, nb::ro> Labels;
typedef nb::ndarray<double, nb::ndim<2>, nb::device::cpu, nb::ro> Numbers;
typedef nb::ndarray<double, nb::ndim<2>, nb::device::cpu> Results;
typedef nb::ndarray<double, nb::ndim<3>, nb::device::cpu> Shared;  // of each shard: sums, or tangents

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
// Memory for numbers, labels and results of the rows.
class Space {
  const Memory memory;
  double* next;

 public:
  explicit Space(int64_t n) : memory((n ? n : 1) * sizeof(double), Memory::ROWS), next((double*)memory.data()) {
    if (!next) throw std::bad_alloc();
  }
  double* take(int64_t n) { return std::exchange(next, next + n); }
};

// What is known of labels before a call: the first row whose label is neither a class nor `ignored` (or -1), how many rows are ignored, and
// the sum of the others' `weight`. `out`, if given, gets the labels as the kernel takes them: int64, and IGNORED.
static std::tuple<int64_t, int64_t, double> labels(nb::handle label, int64_t classes, int64_t ignored, nb::handle weight, nb::handle out) {
  const Array from(label), to(out, true);
  const RowNumber of_rows(weight);
  const int64_t rows = from.count();
  const bool weighted = !of_rows.is_same();
  need(!to || (to.dtype == I64 && to.axes == 1 && to.length[0] == rows && (rows <= 1 || to.step[0] == 1)), "out must be int64 [R]");
  Space space(!weighted ? 0 : to ? rows : 2 * rows);
  int64_t first = -1, count = 0, *found = to ? (int64_t*)to.data : weighted ? (int64_t*)space.take(rows) : nullptr;
  with_integers(from, [&](auto* t) {
    from.each(rows, [&](int64_t i, int64_t at) {
      const bool large = (uint64_t)t[at] > INT64_MAX && t[at] > 0, none = (int64_t)t[at] == ignored && !large;
      count += none;
      if (!none && (uint64_t)t[at] >= (uint64_t)classes && first < 0) first = i;
      if (found) found[i] = none ? IGNORED : (int64_t)t[at];
    });
  });
  if (first >= 0 || !weighted) {
    double one = 0;
    if (!weighted) of_rows.write(&one, {}, 1, nullptr, 0, classes);
    return {first, count, one * (double)(rows - count)};
  }
  Layout l = {};
  l.axes = from.axes;
  std::copy_n(from.length, from.axes, l.length);
  double* weights = space.take(rows);
  of_rows.write(weights, l, rows, found, 1, classes);
  for (int64_t i = 0; i < rows; i++)
    if (found[i] == IGNORED) weights[i] = 0;
  return {first, count, sum_as_numpy(weights, rows)};
}

// The numbers of the rows, from a tuple.
struct AllNumbers {
  RowNumber each[NUMBERS];
  int64_t count;
  bool same = true;

  explicit AllNumbers(nb::tuple from) : count(from.size()) {
    need(count <= NUMBERS, "there are at most 7 numbers of a row");
    while (count > GRAD_LSE && from[count - 1].is_none()) count--;
    for (int64_t k = 0; k < count; k++) {
      each[k] = RowNumber(from[k]);
      same = same && each[k].is_same();
    }
    if (count > GRAD_LSE) count = NUMBERS;
  }
  bool of_entropy() const { return each[GRAD_ENTROPY].of_row || each[GRAD_ENTROPY].scalar != 0; }
  int64_t size(int64_t rows) const { return count * (same ? 1 : rows); }
  void set(Job& j, const Layout& l, Space& space) const {
    const int64_t rows = same ? 1 : j.rows;
    double* out = space.take(count * rows);
    for (int64_t k = 0; k < count; k++) each[k].write(out + k * rows, l, rows, j.label, j.label_step, j.cols);
    j.numbers = out;
    j.number_count = count;
    j.number_step = rows;
    j.number_row = same ? 0 : 1;
  }
};

// What a call gives for each row: an array [K, R], float64, or a tuple of arrays of the rows, each of them or None. Of loss and gradient, K is
// 2, OUTPUTS or, with the most probable class, one more.
struct AllResults {
  static constexpr int64_t WITH_PREDICTED = OUTPUTS + 1;
  std::unique_ptr<Array> whole, each[WITH_PREDICTED];
  int64_t count = 0;

  AllResults(nb::handle from, Op op) {
    if (op == BACKWARD || op == LOG_SOFTMAX || op == TANGENT_SUMS) return;
    const bool products = op == CURVATURE || op == HESSIAN;
    count = products ? PRODUCTS : LSE + 1;
    if (!PyTuple_Check(from.ptr())) {
      whole = std::make_unique<Array>(from, true);
      const int64_t length = whole->axes == 2 ? whole->length[0] : 0;
      need(whole->dtype == F64 && (length == count || (!products && (length == OUTPUTS || length == WITH_PREDICTED))) &&
               (whole->length[1] <= 1 || whole->step[1] == 1),
           "result has a wrong shape");
      count = whole->length[0];
      return;
    }
    need(PyTuple_Size(from.ptr()) <= WITH_PREDICTED, "there are at most 6 results of a row");
    for (int64_t k = 0; k < PyTuple_Size(from.ptr()); k++) {
      const nb::handle one = PyTuple_GetItem(from.ptr(), k);
      if (one.is_none()) continue;
      each[k] = std::make_unique<Array>(one, true);
      if (k >= count) count = k < OUTPUTS ? OUTPUTS : WITH_PREDICTED;
    }
  }
  bool of_entropy() const { return whole ? count >= OUTPUTS : bool(each[ENTROPY]); }
  int64_t size(int64_t rows) const { return whole ? 0 : count * rows; }
  void set(Job& j, Space& space) const {
    if (!count) return;
    if (whole) need(whole->length[1] == j.rows, "result has a wrong shape");
    j.result_count = std::min<int64_t>(count, OUTPUTS);
    j.result = whole ? (double*)whole->data : space.take(count * j.rows);
    j.result_step = whole ? whole->step[0] : j.rows;
    j.predicted = count == WITH_PREDICTED ? j.result + OUTPUTS * j.result_step : nullptr;
  }
  void write(const Job& j, const Layout& l) const {
    for (int64_t k = 0; k < WITH_PREDICTED; k++)
      if (each[k]) {
        need(each[k]->is_of_rows(l, j.rows), "a result of the rows must have their shape");
        with_floats(*each[k], [&](auto* a) {
          each[k]->each(j.rows, [&](int64_t i, int64_t at) { a[at] = (std::remove_reference_t<decltype(*a)>)j.result[k * j.rows + i]; });
        });
      }
  }
};

typedef std::tuple<double, double> Transform;  // temperature and cap
static void set_transform(Job& j, Transform transform) {
  const auto [temperature, cap] = transform;
  need(temperature > 0 && cap > 0, "temperature and cap must be positive");
  set_transform(j, temperature, cap);
}

// A call of the kernel, with the arguments of kernels/__init__.py: z, off, v and out have the classes on `axis`; label is an array of the
// rows, in which `ignored` stands for IGNORED if it is given. Returns the sum of the losses and that of `correct`, if they are computed.
static std::tuple<double, double> call(int op_, nb::handle z_, int axis, nb::handle label_, nb::tuple numbers_, nb::handle off_,
                                       Transform transform, nb::handle out_, nb::handle result_, nb::handle parts_, int threads,
                                       nb::handle v_, bool gauss_newton, nb::handle ignored_, nb::handle tangents_) {
  const Op op = (Op)op_;
  const bool along = op == CURVATURE || op == TANGENT_SUMS || op == HESSIAN;
  const Array z(z_), label(label_), off(off_), v(v_), out(out_, true), parts(parts_, op != BACKWARD && op != HESSIAN),
      tangents(tangents_, op != HESSIAN);
  const AllNumbers numbers(numbers_);
  const AllResults results(result_, op);
  const Type type = z.type();
  need(z.axes > 0, "z must have 1 to 64 axes");
  axis = axis < 0 ? axis + z.axes : axis;
  need(op_ >= 0 && op_ < OPS && axis >= 0 && axis < z.axes, "op or axis does not exist");
  Job j = {};
  Layout l;
  l.axes = 0;
  j.rows = 1;
  j.cols = z.length[axis];
  for (int k = 0; k < z.axes; k++)
    if (k != axis) j.rows *= l.length[l.axes++] = z.length[k];
  j.z = z.data;
  l.z = l.off = l.v = l.dz = z.steps(axis);

  j.type = j.off_type = type;
  if (off) {
    j.off_type = off.type();
    j.off_by_row = off.axes > 1 || z.axes == 1;
    need(off.has_shape_of(z) || (off.axes == 1 && off.length[0] == j.cols && (off.step[0] == 1 || j.cols <= 1)),
         "off must have the shape of z, or be [C] with adjacent entries");
    j.off = off.data;
    l.off = j.off_by_row ? off.steps(axis) : Steps{{}, 1};
  }
  if (v) {
    need(v.has_shape_of(z) && v.type() == (type == F64 ? F64 : F32), "v must have the shape of z and the type of the computation");
    j.v = v.data;
    l.v = v.steps(axis);
  }
  if (out) {
    need(out.has_shape_of(z) && out.type() == type, "out must be like z");
    j.dz = out.data;
    l.dz = out.steps(axis);
  }
  auto of_rows = [&](const Array& a, int64_t count, const char* what) {
    need(a.dtype == F64 && a.axes == 2 && a.length[0] == count && a.length[1] == j.rows && (j.rows <= 1 || a.step[1] == 1), what);
    return (double*)a.data;
  };
  if (parts) {
    j.parts = of_rows(parts, PARTS, "parts must be [7, R]");
    j.parts_step = parts.step[0];
  }
  if (tangents) {
    j.tangents = of_rows(tangents, TANGENTS, "tangents must be [5, R]");
    j.tangents_step = tangents.step[0];
  }
  const bool cut = op == TANGENT_SUMS || op == HESSIAN;
  need((op == FORWARD || op == TANGENT_SUMS || out) && (op == LOG_SOFTMAX || label) && ((op != BACKWARD && !cut) || parts) &&
           (!along || v) && cut == bool(tangents),
       "an array is missing");
  need(op == LOG_SOFTMAX ? numbers.count == 1 : op == TANGENT_SUMS || numbers.count == GRAD_LSE || numbers.count == NUMBERS,
       "a number is missing");

  const bool some_ignored = !ignored_.is_none();
  const int64_t ignored = some_ignored ? nb::cast<int64_t>(ignored_) : 0;
  const std::optional<int64_t> step = label.dtype == I64 && !some_ignored ? label.single_step() : std::nullopt;
  Space space(numbers.size(j.rows) + results.size(j.rows) + (label && !step ? j.rows : 0));
  if (label) {
    need(label.is_of_rows(l, j.rows), "label must have one label a row");
    j.label = (const int64_t*)label.data;
    j.label_step = step.value_or(1);
    if (!step) {
      int64_t* copy = (int64_t*)space.take(j.rows);
      with_integers(label, [&](auto* t) {
        label.each(j.rows, [&](int64_t i, int64_t at) { copy[i] = some_ignored && (int64_t)t[at] == ignored ? IGNORED : (int64_t)t[at]; });
      });
      j.label = copy;
    }
  }
  numbers.set(j, l, space);
  results.set(j, space);
  j.entropy = numbers.of_entropy() || results.of_entropy() || (op == CURVATURE && numbers.count == NUMBERS);
  j.gauss_newton = gauss_newton;
  set_transform(j, transform);
  const bool small = j.rows * j.cols < SMALL_CALL;  // to release the GIL takes a tenth of a microsecond
  const bool complete = small ? run(op, j, l, 1, nullptr) : [&] {
    const Released free;
    return run(op, j, l, threads, interrupted);
  }();
  if (!complete) throw nb::python_error();
  results.write(j, l);
  if (op != FORWARD && op != FUSED) return {0, 0};
  return {sum_as_numpy(j.result, j.rows), results.count >= OUTPUTS ? sum_as_numpy(j.result + CORRECT * j.result_step, j.rows) : 0};
}

// The sum of adjacent float64 numbers, with the bits of NumPy's sum, which takes two microseconds more.
static double sum(nb::handle numbers) {
  const Array a(numbers);
  need(a.dtype == F64 && a.axes == 1 && (a.length[0] <= 1 || a.step[0] == 1), "numbers must be float64 [R], adjacent");
  return sum_as_numpy((const double*)a.data, a.length[0]);
}

static nb::dict named(std::initializer_list<std::pair<const char*, int>> codes) {
  nb::dict found;
  for (const auto& [name, code] : codes) found[name] = code;
  return found;
}
}

// nanobind, and PyGILState_Ensure in `interrupted`, know the main interpreter alone: in another one, a call would wait forever.
#define PyInit__kernel in_the_main_interpreter
// noconvert is needed because nanobind would otherwise convert an output of another type to a copy, fill the copy and drop it.
NB_MODULE(_kernel, m) {
  using namespace softxent;
  at_import();
  nb::module_::import_("atexit").attr("register")(nb::cpp_function(at_exit));
  pthread_atfork(nullptr, nullptr, [] { asking = 0; });  // a child has none of these threads
  m.attr("BLOCK") = BLOCK;
  m.attr("SHORT_ROW") = SHORT_ROW;
  m.attr("SMALL_CALL") = SMALL_CALL;
  m.attr("IGNORED") = IGNORED;
  m.attr("LARGEST") = LARGEST;
  m.attr("LARGEST_LOGIT") = LARGEST_LOGIT;
  m.attr("OUTSIDE") = OUTSIDE;
  m.attr("DTYPES") = named({{"float32", F32},
                            {"float64", F64},
                            {"bfloat16", BF16},
                            {"float16", F16},
                            {"int8", I8},
                            {"uint8", U8},
                            {"int16", I16},
                            {"uint16", U16},
                            {"int32", I32},
                            {"uint32", U32},
                            {"int64", I64},
                            {"uint64", U64}});
  m.attr("OPS") = named({{"FORWARD", FORWARD},
                         {"BACKWARD", BACKWARD},
                         {"FUSED", FUSED},
                         {"CURVATURE", CURVATURE},
                         {"LOG_SOFTMAX", LOG_SOFTMAX},
                         {"TANGENT_SUMS", TANGENT_SUMS},
                         {"HESSIAN", HESSIAN}});
  m.attr("GIVEN") = named({{"OFF", OFF},
                           {"V", V},
                           {"PARTS_READ", PARTS_READ},
                           {"TOTAL", TOTAL},
                           {"PARTS_WRITTEN", PARTS_WRITTEN},
                           {"LABEL", LABEL},
                           {"WITH_ENTROPY", WITH_ENTROPY}});
  m.def("isa", [] { return isa().name; });
  m.def("call", call, "op"_a, "z"_a, "axis"_a, "label"_a.none(), "numbers"_a, "off"_a.none(), "transform"_a, "out"_a.none(),
        "result"_a.none(), "parts"_a.none(), "threads"_a, "v"_a.none() = nb::none(), "gauss_newton"_a = false,
        "ignored"_a.none() = nb::none(), "tangents"_a.none() = nb::none());
  m.def("labels", labels, "label"_a, "classes"_a, "ignored"_a, "weight"_a, "out"_a.none() = nb::none());
  m.def("sum", sum, "numbers"_a);
  m.def(
      "merge",
      [](Shared sums, nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu, nb::ro> pairs, Labels label, Numbers numbers,
         double temperature, Results result, Results parts, std::optional<Shared> tangents) {
        Job j = {};
        j.rows = sums.shape(2);
        set_label(j, label);
        set_numbers(j, numbers);
        set_result(j, result, 2, OUTPUTS);
        set_parts(j, parts);
        const int64_t shards = sums.shape(0), count = pairs.shape(0);
        auto are = [&](const Shared& a, int64_t fields) {
          return (int64_t)a.shape(0) == shards && (int64_t)a.shape(1) == fields && (int64_t)a.shape(2) == j.rows &&
                 (j.rows <= 1 || a.stride(2) == 1) && (j.rows == 0 || a.stride(1) == j.rows);
        };
        need(are(sums, PARTS) && pairs.shape(1) == 2 && shards > 0, "sums must be [K, 7, R], and pairs [K - 1, 2]");
        need(!tangents || are(*tangents, TANGENTS), "tangents must be [K, 5, R]");
        for (int64_t k = 0; k < 2 * count; k++) need(pairs.data()[k] >= 0 && pairs.data()[k] < shards, "pairs must be indices of shards");
        set_transform(j, temperature, INFINITY);
        const Shards all = {sums.data(), sums.stride(0), tangents ? tangents->data() : nullptr, tangents ? tangents->stride(0) : 0};
        isa().merge(j, all, pairs.data(), count);
      },
      "sums"_a.noconvert(), "pairs"_a.noconvert(), "label"_a.noconvert(), "numbers"_a.noconvert(), "temperature"_a, "result"_a.noconvert(),
      "parts"_a.noconvert(), "tangents"_a.noconvert().none() = nb::none());
  m.def("xla_calls", [] {  // the handlers for XLA as capsules, by name
    nb::dict found;
    for (const auto& [name, handler] : xla_calls()) found[name] = nb::capsule(handler, "xla._CUSTOM_CALL_TARGET");
    return found;
  });
  m.def("set_xla_threads", set_xla_threads, "threads"_a);
  m.def("buffer", buffer, "bytes"_a);
  m.def("trim", trim);
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
