#include "arrays.hpp"

#include <algorithm>

namespace nb = nanobind;

namespace adamas {
namespace {

constexpr int aligned_flag = 0x0100, writeable_flag = 0x0400;
constexpr int grad_column = 1;  // of a row

// What an array of NumPy begins with, as its C interface has kept it since its first version.
struct Fields {
  PyObject head;
  const char* data;
  int dimensions;
  const Py_ssize_t *sizes, *strides;
  PyObject *base, *dtype;
  int flags;

  static const Fields& of(nb::handle array) {
    return *reinterpret_cast<const Fields*>(array.ptr());
  }
};

bool lies(const Fields& array, const void* dtype, const std::vector<Py_ssize_t>& sizes,
          const std::vector<Py_ssize_t>& strides) {
  return array.dtype == dtype && static_cast<std::size_t>(array.dimensions) == sizes.size() &&
         std::equal(sizes.begin(), sizes.end(), array.sizes) &&
         std::equal(strides.begin(), strides.end(), array.strides);
}

}  // namespace

ArrayWatch::ArrayWatch(nb::list arrays, nb::object type) : type_(type) {
  for (nb::handle array : arrays) {
    if (!nb::isinstance(array, type)) throw nb::type_error("only NumPy's arrays can be watched");
    const Fields& it = Fields::of(array);
    places_.push_back({nb::borrow(array),
                       it.data,
                       it.dtype,
                       {it.sizes, it.sizes + it.dimensions},
                       {it.strides, it.strides + it.dimensions}});
  }
}

bool ArrayWatch::look(nb::list grads, Matrix<std::int64_t, row_columns> rows) const {
  if (grads.size() != places_.size() || rows.shape(0) != places_.size()) return false;
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    const Fields& array = Fields::of(place.array);
    if (array.data != place.data || !(array.flags & writeable_flag) ||
        !lies(array, place.dtype, place.sizes, place.strides))
      return false;
    const nb::handle object = grads[i];
    if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != type_.ptr()) return false;
    const Fields& grad = Fields::of(object);
    if (!(grad.flags & aligned_flag) || !lies(grad, place.dtype, place.sizes, place.strides))
      return false;
    rows(i, grad_column) = reinterpret_cast<std::intptr_t>(grad.data);
  }
  return true;
}

nb::tuple ArrayWatch::fields(nb::handle array) {
  const Fields& it = Fields::of(array);
  nb::list sizes, strides;
  for (int i = 0; i < it.dimensions; ++i) {
    sizes.append(it.sizes[i]);
    strides.append(it.strides[i]);
  }
  return nb::make_tuple(reinterpret_cast<std::intptr_t>(it.data), nb::tuple(sizes),
                        nb::tuple(strides), reinterpret_cast<std::intptr_t>(it.dtype), it.flags);
}

}  // namespace adamas
