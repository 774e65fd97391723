#include "watch.hpp"

namespace nb = nanobind;

namespace adamas {
namespace {

// The head of DLPack's C exchange API, version 1: a framework's functions for its own tensors.
struct ExchangeApi {
  struct {
    std::uint32_t major, minor;
    void* previous;
  } header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, nb::dlpack::dltensor* out);
};

constexpr int address_column = 0, grad_column = 1, moments_column = 2;  // of a row
constexpr std::uint8_t complex_code = 5;                                // kDLComplex

// A number that tensors of the same shape and strides share. A stride along a dimension of size 1
// says nothing.
std::int64_t layout_of(const nb::dlpack::dltensor& tensor) {
  auto hash = static_cast<std::uint64_t>(tensor.ndim);
  const auto mix = [&hash](std::int64_t value) {
    hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (int i = 0; i < tensor.ndim; ++i) {
    mix(tensor.shape[i]);
    mix(tensor.shape[i] > 1 ? tensor.strides[i] : 1);
  }
  return static_cast<std::int64_t>(hash);
}

std::int64_t kind_of(const nb::dlpack::dltensor& tensor) {
  return (std::int64_t(tensor.device.device_type) << 40) +
         (std::int64_t(tensor.device.device_id) << 24) + (std::int64_t(tensor.dtype.code) << 16) +
         (std::int64_t(tensor.dtype.bits) << 8) + tensor.dtype.lanes;
}

}  // namespace

Watch::Watch(nb::capsule exchange_api, nb::list params, nb::list states, nb::tuple moments)
    : exchange_api_(exchange_api), params_(params), states_(states), moments_(moments) {
  const auto* api = static_cast<const ExchangeApi*>(exchange_api.data("dlpack_exchange_api"));
  if (!api || api->header.major != 1 || !api->tensor_from_object)
    throw nb::value_error("the framework's DLPack exchange API is not of version 1");
  tensor_from_object_ = api->tensor_from_object;
  if (params.size() != states.size()) throw nb::value_error("a state is needed for each parameter");
  hints_.resize(params.size() * (1 + moments.size()));
  Hint* hint = hints_.data();
  for (std::size_t i = 0; i < params.size(); ++i) {
    places_.push_back(place(nb::handle(params[i]).ptr(), hint++));
    for (nb::handle key : moments) {
      PyObject* moment = item(i, key);
      places_.push_back(moment ? place(moment, hint) : Place{});
      ++hint;
    }
  }
}

Watch::Place Watch::place(PyObject* tensor, Hint* hint) const {
  nb::dlpack::dltensor found{};
  if (tensor_from_object_(tensor, &found) != 0) {
    PyErr_Clear();  // it has no memory of its own, or none that DLPack can tell of
    return {0, -1, 0};
  }
  if (hint) *hint = {tensor, found.shape};
  const auto address = reinterpret_cast<std::intptr_t>(found.data) + found.byte_offset;
  return {static_cast<std::int64_t>(address), kind_of(found), layout_of(found)};
}

PyObject* Watch::item(Py_ssize_t i, nb::handle key) const {
  PyObject* found = PyDict_GetItemWithError(PyList_GET_ITEM(states_.ptr(), i), key.ptr());
  if (!found && PyErr_Occurred()) throw nb::python_error();
  return found;
}

// torch's lazily conjugated tensors are complex, and its lazily negated ones imaginary parts of
// complex tensors, at odd multiples of their element size; DLPack does not tell of either.
bool Watch::suspicious(const Place& gradient) const {
  const std::int64_t bytes = (gradient.kind >> 8 & 0xff) / 8;
  return (gradient.kind >> 16 & 0xff) == complex_code || (gradient.address & bytes) != 0;
}

// After a step over more memory than the caches hold, what a look reads of each tensor is in memory
// again, in some dozens of places one behind the other; fetching them ahead halves the look.
void Watch::fetch(std::size_t i) const {
  if (i >= params_.size()) return;
  const std::size_t each = 1 + moments_.size();
  for (std::size_t k = i * each; k < (i + 1) * each; ++k) {
    const Hint& hint = hints_[k];
    if (!hint.object) continue;
    __builtin_prefetch(hint.object);
    // Of the framework's own tensor, whose shape and strides lie within it.
    for (int line = -2; line <= 1; ++line)
      __builtin_prefetch(static_cast<const char*>(hint.shape) + 64 * line);
  }
  __builtin_prefetch(PyList_GET_ITEM(states_.ptr(), i));
}

void Watch::fill(Matrix<std::int64_t, 8> rows) const {
  const std::size_t each = 1 + moments_.size();
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const Place* place = &places_[i * each];
    rows(i, address_column) = place[0].address;
    for (std::size_t k = 1; k < each; ++k) rows(i, moments_column + k - 1) = place[k].address;
  }
}

int Watch::look(Matrix<std::int64_t, 8> rows, nb::ndarray<std::int64_t, nb::ndim<1>> steps) {
  if (rows.shape(0) != params_.size() || steps.shape(0) != params_.size())
    throw nb::value_error("a row and a step are needed for each parameter");
  int answer = 0;
  which_.clear();
  const Place* expected = places_.data();
  constexpr std::size_t ahead = 8;
  for (std::size_t i = 0; i < ahead; ++i) fetch(i);
  for (std::size_t i = 0; i < params_.size(); ++i) {
    fetch(i + ahead);
    PyObject* param = PyList_GET_ITEM(params_.ptr(), i);
    const Place& own = *expected++;
    if (!(place(param) == own)) return moved;
    for (nb::handle key : moments_) {
      PyObject* moment = item(i, key);
      if (!((moment ? place(moment) : Place{}) == *expected++)) return moved;
    }
    PyObject* count = item(i, step_);
    if (!count || !PyLong_CheckExact(count)) return moved;
    const std::int64_t step = PyLong_AsLongLong(count);
    if (step < 0) return PyErr_Clear(), moved;

    nb::object grad = nb::steal(PyObject_GetAttr(param, grad_.ptr()));
    if (!grad.is_valid()) throw nb::python_error();
    const Place there = grad.is_none() ? Place{} : place(grad.ptr());
    steps(i) = grad.is_none() ? -1 : step;
    if (grad.is_none() || steps(i) != steps(0)) answer |= uneven;
    if (rows(i, grad_column) != there.address) answer |= changed;
    rows(i, grad_column) = there.address;
    const bool alike = there.kind == own.kind && there.layout == own.layout;
    if (!grad.is_none() && (!alike || suspicious(there))) {
      answer |= strange;
      which_.push_back(static_cast<std::int64_t>(i));
    }
  }
  return answer;
}

void Watch::advance(nb::ndarray<const std::int64_t, nb::ndim<1>> steps) const {
  nb::object next;  // shared by neighbours with the same count
  for (std::size_t i = 0; i < states_.size(); ++i) {
    if (steps(i) < 0) continue;
    if (!next.is_valid() || steps(i) != steps(i - 1)) next = nb::int_(steps(i) + 1);
    if (PyDict_SetItem(PyList_GET_ITEM(states_.ptr(), i), step_.ptr(), next.ptr()))
      throw nb::python_error();
  }
}

}  // namespace adamas
