// Sees at each step whether NumPy arrays still lie where they did, and their gradients like them,
// without asking Python of each.

#pragma once

#include <Python.h>

#include <vector>

#include "watch.hpp"

namespace adamas {

class ArrayWatch {
 public:
  // The arrays, and numpy.ndarray.
  ArrayWatch(nanobind::list arrays, nanobind::object type);

  // Writes the gradients' addresses, unless an array has moved, was resized or is read-only, or its
  // gradient is anything but a plain array of its type that lies like it: then it answers false.
  bool look(nanobind::list grads, Matrix<std::int64_t, row_columns> rows) const;

  // What it reads of an array, to be compared with what NumPy says: the address, the dimensions,
  // sizes and strides, the dtype's identity, and the flags.
  static nanobind::tuple fields(nanobind::handle array);

 private:
  struct Place {
    nanobind::object array;
    const void *data, *dtype;
    std::vector<Py_ssize_t> sizes, strides;
  };

  nanobind::object type_;
  std::vector<Place> places_;
};

}  // namespace adamas
