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
constexpr int step_column = -1;                                         // of none
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

bool holds_one(const nb::dlpack::dltensor& tensor) {
  for (int i = 0; i < tensor.ndim; ++i)
    if (tensor.shape[i] != 1) return false;
  return true;
}

std::int64_t kind_of(const nb::dlpack::dltensor& tensor) {
  return (std::int64_t(tensor.device.device_type) << 40) +
         (std::int64_t(tensor.device.device_id) << 24) + (std::int64_t(tensor.dtype.code) << 16) +
         (std::int64_t(tensor.dtype.bits) << 8) + tensor.dtype.lanes;
}

// The value of an object's slot, by the descriptor that its class keeps: faster than by its name.
nb::object slot(const nb::object& descriptor, PyObject* object) {
  descrgetfunc get = Py_TYPE(descriptor.ptr())->tp_descr_get;
  PyObject* value = get(descriptor.ptr(), object, reinterpret_cast<PyObject*>(Py_TYPE(object)));
  if (!value) throw nb::python_error();
  return nb::steal(value);
}

}  // namespace

// After a step over more memory than the caches hold, what a look reads of each tensor is in memory
// again, in some dozens of places one behind the other; fetching them ahead shortens the look.
void Watch::fetch(std::size_t i) const {
  if (i >= parameters_.size()) return;
  const auto fetch_tensor = [](const Place& place) {
    // Shape and strides lie within the framework's own tensor; the lines are never followed.
    for (int line = -2; line <= 1; ++line)
      __builtin_prefetch(static_cast<const char*>(place.shape) + 64 * line);
  };
  const Parameter& parameter = parameters_[i];
  __builtin_prefetch(parameter.tensor.ptr());
  __builtin_prefetch(parameter.state.ptr());
  fetch_tensor(parameter.place);
  for (std::size_t k = i ? parameters_[i - 1].items_end : 0; k < parameter.items_end; ++k)
    if (items_[k].moment) fetch_tensor(items_[k].place);
}

Watch::Watch(nb::capsule exchange_api, nb::list params, nb::list states, nb::list moments,
             nb::object shim, nb::object wrapper)
    : exchange_api_(exchange_api), wrapper_(wrapper) {
  const auto* api = static_cast<const ExchangeApi*>(exchange_api.data("dlpack_exchange_api"));
  if (!api || api->header.major != 1 || !api->tensor_from_object)
    throw nb::value_error("the framework's DLPack exchange API is not of version 1");
  tensor_from_object_ = api->tensor_from_object;
  if (!wrapper.is_none()) {
    local_slot_ = wrapper.attr("_local_tensor");
    spec_slot_ = wrapper.attr("_spec");
  }
  nb::object make_handle;
  if (!shim.is_none()) {
    make_handle = shim[0];
    data_pointer_ = reinterpret_cast<decltype(data_pointer_)>(nb::cast<std::intptr_t>(shim[1]));
    release_ = reinterpret_cast<decltype(release_)>(nb::cast<std::intptr_t>(shim[2]));
  }
  if (params.size() != states.size() || params.size() != moments.size())
    throw nb::value_error("a state and moments are needed for each parameter");
  for (std::size_t i = 0; i < params.size(); ++i) {
    nb::object param = params[i], state = states[i];
    add_items(state.ptr(), moments[i], make_handle);
    nb::object local = unwrap(param.ptr()), spec;
    if (local) spec = slot(spec_slot_, param.ptr());
    const Place found = place((local ? local : param).ptr());
    nb::object count = nb::borrow(PyDict_GetItem(state.ptr(), step_.ptr()));
    if (count && PyLong_CheckExact(count.ptr())) count.reset();
    parameters_.push_back({param, state, local, spec, {}, count, found, items_.size()});
  }
}

void Watch::add_items(PyObject* state, nb::handle moments, nb::handle make_handle) {
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(state, &at, &key, &value);) {
    Item item{nb::borrow(key), {}, {}, 0, {}, {nullptr, release_}};
    int column = moments_column;
    for (nb::handle name : moments) {
      if (item.key.equal(name)) {
        item.moment = nb::borrow(value);
        item.column = column;
        item.local = unwrap(value);
        const nb::object tensor = item.local ? item.local : item.moment;
        item.place = place(tensor.ptr());
        if (make_handle) {
          const nb::object handle = make_handle(tensor);
          item.handle.reset(PyCapsule_GetPointer(handle.ptr(), nullptr));
        }
      }
      ++column;
    }
    if (item.key.equal(step_)) item.column = step_column;
    items_.push_back(std::move(item));
  }
}

Watch::Place Watch::place(PyObject* tensor) const {
  nb::dlpack::dltensor found{};
  if (tensor_from_object_(tensor, &found) != 0) {
    PyErr_Clear();  // it has no memory of its own, or none that DLPack can tell of
    return {0, -1, 0, nullptr, false};
  }
  const auto address = reinterpret_cast<std::intptr_t>(found.data) + found.byte_offset;
  return {static_cast<std::int64_t>(address), kind_of(found), layout_of(found), found.shape,
          holds_one(found)};
}

nb::object Watch::unwrap(PyObject* tensor) const {
  if (reinterpret_cast<PyObject*>(Py_TYPE(tensor)) != wrapper_.ptr()) return {};
  return slot(local_slot_, tensor);
}

// A gradient that is wrapped otherwise than its parameter lies like no parameter.
Watch::Place Watch::place_of_grad(Parameter& parameter, PyObject* grad) const {
  if (!parameter.local) return place(grad);
  const nb::object local = unwrap(grad);
  if (!local) return {0, -1, 0, nullptr, false};
  const nb::object spec = slot(spec_slot_, grad);
  if (!spec.is(parameter.spec) && !spec.is(parameter.grad_spec)) {
    if (!spec.equal(parameter.spec)) return {0, -1, 0, nullptr, false};
    parameter.grad_spec = spec;
  }
  return place(local.ptr());
}

// torch's lazily conjugated tensors are complex, and its lazily negated ones imaginary parts of
// complex tensors; DLPack does not tell of either. The latter have gaps between their elements, so
// that they lie unlike any dense parameter, but for a single one, at an odd multiple of its size.
bool Watch::suspicious(const Place& gradient) const {
  const std::int64_t bytes = (gradient.kind >> 8 & 0xff) / 8;
  return (gradient.kind >> 16 & 0xff) == complex_code ||
         (gradient.single && (gradient.address & bytes) != 0);
}

bool Watch::stays(const Item& item, PyObject* value) const {
  if (value != item.moment.ptr()) return false;  // and a wrapper keeps what it holds
  if (!item.handle) return place((item.local ? item.local : item.moment).ptr()) == item.place;
  void* address = nullptr;
  return data_pointer_(item.handle.get(), &address) == 0 &&
         reinterpret_cast<std::intptr_t>(address) == item.place.address;
}

// The count in a parameter's state (borrowed), null if that state is not what it was. Reads the
// dictionary in its order, which is faster than looking the keys up.
PyObject* Watch::step_of(std::size_t i) const {
  const Item* item = items_.data() + (i ? parameters_[i - 1].items_end : 0);
  const Item* const end = items_.data() + parameters_[i].items_end;
  PyObject *count = nullptr, *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(parameters_[i].state.ptr(), &at, &key, &value); ++item) {
    if (item == end || key != item->key.ptr()) return nullptr;
    if (item->column == step_column) count = value;
    if (item->moment && !stays(*item, value)) return nullptr;
  }
  return item == end ? count : nullptr;
}

void Watch::fill(Matrix<std::int64_t, row_columns> rows) const {
  std::size_t k = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    rows(i, address_column) = parameters_[i].place.address;
    for (; k < parameters_[i].items_end; ++k)
      if (items_[k].moment) rows(i, items_[k].column) = items_[k].place.address;
  }
}

int Watch::look(Matrix<std::int64_t, row_columns> rows,
                nb::ndarray<std::int64_t, nb::ndim<1>> steps) {
  if (rows.shape(0) != parameters_.size() || steps.shape(0) != parameters_.size())
    throw nb::value_error("a row and a step are needed for each parameter");
  int answer = 0;
  which_.clear();
  PyObject* last_count = nullptr;  // neighbours mostly share it
  std::int64_t step = 0;
  constexpr std::size_t ahead = 16;
  for (std::size_t i = 0; i < ahead; ++i) fetch(i);
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    fetch(i + ahead);
    Parameter& parameter = parameters_[i];
    PyObject* param = parameter.tensor.ptr();
    const Place& own = parameter.place;
    PyObject* count = step_of(i);
    if (!count || (parameter.local && !unwrap(param).is(parameter.local))) return moved;
    if (!(place((parameter.local ? parameter.local : parameter.tensor).ptr()) == own)) return moved;
    if (count != last_count) {
      step = 0;
      if (parameter.count ? count != parameter.count.ptr() : !PyLong_CheckExact(count))
        return moved;
      if (!parameter.count) step = PyLong_AsLongLong(count);
      if (step < 0) return PyErr_Clear(), moved;
      last_count = count;
    }
    nb::object grad = nb::steal(PyObject_GetAttr(param, grad_.ptr()));
    if (!grad.is_valid()) throw nb::python_error();
    const Place there = grad.is_none() ? Place{} : place_of_grad(parameter, grad.ptr());
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

}  // namespace adamas
