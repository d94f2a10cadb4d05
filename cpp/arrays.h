// The arrays of a caller in Python, which bind.cpp reads for a call of the kernel: those of NumPy by the buffer protocol, and tensors by their
// addresses, because DLPack would take a microsecond each.
//
// It assumes the GIL, and that a tensor has its memory for as long as the call takes.
#pragma once
#include <nanobind/nanobind.h>
#include <string.h>
#include <algorithm>
#include <memory>
#include <optional>
#include "run.h"

namespace softxent {
namespace nb = nanobind;

enum Integer { I8 = TYPES, U8, I16, U16, I32, U32, I64, U64 };  // dtypes of labels, after those of Type

inline void need(bool ok, const char* what) {
  if (!ok) throw nb::value_error(what);
}

// An array of NumPy, a tensor as (address, dtype, shape, strides in elements), or None. An address of 0 is memory that was freed.
class Array {
  struct Held {  // is released even if the constructor of the array throws
    Py_buffer view = {};
    ~Held() { PyBuffer_Release(&view); }
  } held;

  static int dtype_of(const Py_buffer& b) {
    const char* f = b.format + (*b.format == '@' || *b.format == '=');
    const int size = b.itemsize == 8 ? 3 : b.itemsize == 4 ? 2 : (int)b.itemsize - 1;
    if (!*f || f[1]) return -1;
    if (strchr("bhilq", *f)) return I8 + 2 * size;
    if (strchr("BHILQ", *f)) return U8 + 2 * size;
    return *f == 'f' ? F32 : *f == 'd' ? F64 : *f == 'e' ? F16 : -1;
  }
  void read_buffer(PyObject* from, bool written) {
    Py_buffer& view = held.view;
    if (PyObject_GetBuffer(from, &view, PyBUF_STRIDES | PyBUF_FORMAT | (written ? PyBUF_WRITABLE : 0))) throw nb::python_error();
    dtype = dtype_of(view);
    data = (char*)view.buf;
    axes = view.ndim;
    for (int k = 0; k < axes; k++) {
      length[k] = view.shape[k];
      step[k] = view.strides[k] / view.itemsize;
      need(step[k] * view.itemsize == view.strides[k] || length[k] <= 1, "strides must be whole numbers of elements");
    }
  }
  void read_tuple(PyObject* from) {
    auto number = [](PyObject* tuple, Py_ssize_t k) { return PyLong_AsLongLong(PyTuple_GetItem(tuple, k)); };
    PyObject *shape = PyTuple_GetItem(from, 2), *strides = PyTuple_GetItem(from, 3);
    const Py_ssize_t n = shape && strides ? PyTuple_Size(shape) : -1;
    if (n < 0 || n > AXES) throw nb::type_error("a tensor must be (address, dtype, shape, strides), of at most 64 axes");
    axes = (int)n;
    for (int k = 0; k < axes; k++) {
      length[k] = number(shape, k);
      step[k] = number(strides, k);
    }
    dtype = (int)number(from, 1);
    data = (char*)PyLong_AsVoidPtr(PyTuple_GetItem(from, 0));
    if (PyErr_Occurred()) throw nb::python_error();
    need(data || !count(), "the memory of a tensor was freed");
  }

 public:
  char* data = nullptr;
  int dtype = -1, axes = -1;
  int64_t length[AXES], step[AXES];

  explicit Array(nb::handle from, bool written = false) {
    if (PyTuple_Check(from.ptr()))
      read_tuple(from.ptr());
    else if (!from.is_none())
      read_buffer(from.ptr(), written);
  }
  Array(const Array&) = delete;
  explicit operator bool() const { return axes >= 0; }
  int64_t count() const {
    int64_t n = 1;
    for (int k = 0; k < axes; k++) n *= length[k];
    return n;
  }
  bool has_shape_of(const Array& a) const { return axes == a.axes && std::equal(length, length + axes, a.length); }
  Type type() const {
    if (dtype == U16) return BF16;  // NumPy has no other name for its bits
    if (dtype < 0 || dtype >= TYPES)
      throw nb::type_error("dtype must be float32, float64, float16 or bfloat16 (NumPy: its bits as uint16)");
    return (Type)dtype;
  }
  Steps steps(int axis) const {  // with the classes on this axis
    Steps s;
    for (int k = 0; k < axes; k++) (k == axis ? s.column : s.row[k - (k > axis)]) = step[k];
    if (length[axis] <= 1) s.column = 1;
    return s;
  }

  // Of an array of the rows: whether it has their axes, is [rows], or has one entry for all of them.
  bool is_of_rows(const Layout& l, int64_t rows) const {
    return !axes || (axes == 1 && length[0] == rows) || (axes == l.axes && std::equal(length, length + axes, l.length));
  }
  // The step between the entries of all rows, if there is one.
  std::optional<int64_t> single_step() const {
    int64_t n = 1, found = 0;
    for (int k = axes - 1; k >= 0; n *= length[k--]) {
      if (length[k] == 1) continue;
      if (n > 1 && step[k] != n * found) return std::nullopt;
      if (n == 1) found = step[k];
    }
    return found;
  }
  // Calls f(row, the place of its entry) for all rows.
  template <class F> void each(int64_t rows, F f) const {
    const std::optional<int64_t> by = single_step();
    const int64_t inner = by || !axes ? rows : length[axes - 1], in = by ? *by : step[axes - 1];
    for (int64_t first = 0; first < rows; first += inner) {
      int64_t at = 0, outer = first / inner;
      for (int k = axes - 2; k >= 0 && !by; outer /= length[k--]) at += outer % length[k] * step[k];
      for (int64_t i = 0; i < inner; i++) f(first + i, at + i * in);
    }
  }
};

// Calls f with the memory of an array of integers, or of one of float32 or float64.
template <class F> void with_integers(const Array& a, F f) {
  if (a.dtype == I8) return f((int8_t*)a.data);
  if (a.dtype == U8) return f((uint8_t*)a.data);
  if (a.dtype == I16) return f((int16_t*)a.data);
  if (a.dtype == U16) return f((uint16_t*)a.data);
  if (a.dtype == I32) return f((int32_t*)a.data);
  if (a.dtype == U32) return f((uint32_t*)a.data);
  if (a.dtype == I64) return f((int64_t*)a.data);
  if (a.dtype == U64) return f((uint64_t*)a.data);
  throw nb::type_error("labels must be integers");
}
template <class F> void with_floats(const Array& a, F f) {
  if (a.dtype != F32 && a.dtype != F64) throw nb::type_error("numbers and results of the rows must be float32 or float64");
  a.dtype == F32 ? f((float*)a.data) : f((double*)a.data);
}

// A number of the rows: a float, an array of the rows, or (float, array of the rows or None, array [C] of numbers of the labels or None), the
// product of these. None is 0.
struct RowNumber {
  double scalar = 0;
  std::unique_ptr<Array> of_row, of_label;

  RowNumber() = default;
  explicit RowNumber(nb::handle from) {
    PyObject* p = from.ptr();
    if (from.is_none()) return;
    if (PyTuple_Check(p) && PyTuple_Size(p) == 3) {
      scalar = PyFloat_AsDouble(PyTuple_GetItem(p, 0));
      read(of_row, PyTuple_GetItem(p, 1));
      read(of_label, PyTuple_GetItem(p, 2));
    } else if (PyFloat_Check(p) || PyLong_Check(p)) {
      scalar = PyFloat_AsDouble(p);
    } else {
      scalar = 1;
      read(of_row, p);
    }
    if (scalar == -1 && PyErr_Occurred()) throw nb::python_error();
  }
  bool is_same() const { return !of_label && (!of_row || !of_row->axes); }  // for all rows
  // Writes it for rows with these labels; those that are no classes have no number of the label.
  void write(double* out, const Layout& l, int64_t rows, const int64_t* label, int64_t label_step, int64_t classes) const {
    std::fill_n(out, rows, 1.0);
    if (of_row) {
      need(of_row->is_of_rows(l, rows), "a number of the rows must have their shape");
      with_floats(*of_row, [&](auto* a) { of_row->each(rows, [&](int64_t i, int64_t at) { out[i] = a[at]; }); });
    }
    if (of_label) {
      need(of_label->axes == 1 && of_label->length[0] == classes, "a number of the labels must be [C]");
      with_floats(*of_label, [&](auto* a) {
        for (int64_t i = 0; i < rows; i++) {
          const uint64_t t = label[i * label_step];
          if (t < (uint64_t)classes) out[i] *= a[t * of_label->step[0]];
        }
      });
    }
    for (int64_t i = 0; i < rows; i++) out[i] *= scalar;
  }

 private:
  static void read(std::unique_ptr<Array>& to, nb::handle from) {
    if (!from.is_none()) to = std::make_unique<Array>(from);
  }
};
}
