#include "watch.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>

#include "pool.hpp"

namespace nb = nanobind;

namespace adamas {
namespace {

constexpr int address_column = 0, grad_column = 1, moments_column = 2;  // of a row
constexpr std::int64_t most_steps = std::int64_t{1} << 53;  // formats.py's
constexpr int step_column = -1;                                         // of none
constexpr std::int64_t nowhere = -1;                                    // a kind
constexpr int impl_lines = 3;  // of memory, that a TensorImpl takes
// Parameters that one thread looks at sooner than it wakes another.
constexpr std::size_t few = 512;

// A number that tensors of the same shape and strides share. A stride along a dimension of size 1
// says nothing.
std::int64_t layout_of(std::int64_t dimensions, const std::int64_t* sizes,
                       const std::int64_t* strides) {
  auto hash = static_cast<std::uint64_t>(dimensions);
  const auto mix = [&hash](std::int64_t value) {
    hash = (hash ^ static_cast<std::uint64_t>(value)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (std::int64_t i = 0; i < dimensions; ++i) {
    mix(sizes[i]);
    mix(sizes[i] > 1 ? strides[i] : 1);
  }
  return static_cast<std::int64_t>(hash);
}

// The TensorImpl of an at::Tensor.
const void* impl_of(const void* tensor) { return *static_cast<const void* const*>(tensor); }

// The value of an object's slot, by the descriptor that its class keeps: faster than by its name.
nb::object slot(const nb::object& descriptor, PyObject* object) {
  descrgetfunc get = Py_TYPE(descriptor.ptr())->tp_descr_get;
  PyObject* value = get(descriptor.ptr(), object, reinterpret_cast<PyObject*>(Py_TYPE(object)));
  if (!value) throw nb::python_error();
  return nb::steal(value);
}

template <class Function>
void take(Function*& function, nb::handle address) {
  function = reinterpret_cast<Function*>(nb::cast<std::intptr_t>(address));
}

Torch torch_of(nb::tuple parts) {
  Torch torch{nb::cast<std::ptrdiff_t>(parts[0]),
              nb::cast<std::ptrdiff_t>(parts[1]),
              nb::cast<std::ptrdiff_t>(parts[2]),
              nb::cast<std::uint64_t>(parts[3]),
              nb::cast<std::uint64_t>(parts[4]),
              reinterpret_cast<const void*>(nb::cast<std::intptr_t>(parts[5]))};
  take(torch.data_pointer, parts[6]);
  take(torch.grad, parts[7]);
  take(torch.bump_version, parts[8]);
  return torch;
}

}  // namespace

// After a step over more memory than the caches hold, what a look reads of each tensor is in memory
// again, in some dozens of places one behind the other; fetching them ahead shortens the look.
void Watch::fetch(std::size_t i) const {
  for (std::size_t k = i ? parameters_[i - 1].lines_end : 0; k < parameters_[i].lines_end; ++k)
    __builtin_prefetch(lines_[k]);
  const char* grad = static_cast<const char*>(parameters_[i].grad_impl);
  for (int line = 0; line < impl_lines; ++line) __builtin_prefetch(grad + 64 * line);
}

void Watch::add_lines(nb::handle object) {
  const void* found = tensor(object);
  const char* impl = static_cast<const char*>(impl_of(found));
  lines_.push_back(found);
  for (int line = 0; line < impl_lines; ++line) lines_.push_back(impl + 64 * line);
  lines_.push_back(*reinterpret_cast<const void* const*>(impl + torch_.storage));
}

Watch::Watch(nb::tuple torch, nb::list params, nb::list states, nb::list moments,
             nb::object wrapper)
    : torch_(torch_of(torch)), wrapper_(wrapper) {
  if (!wrapper.is_none()) {
    local_slot_ = wrapper.attr("_local_tensor");
    spec_slot_ = wrapper.attr("_spec");
  }
  if (params.size() != states.size() || params.size() != moments.size())
    throw nb::value_error("a state and moments are needed for each parameter");
  for (std::size_t i = 0; i < params.size(); ++i) {
    nb::object param = params[i], state = states[i];
    add_items(state.ptr(), moments[i]);
    nb::object local = unwrap(param.ptr()), spec;
    if (local) {
      wrapped_ = true;
      spec = slot(spec_slot_, param.ptr());
    }
    const Place found = place(tensor(local ? local : param));
    nb::object count = nb::borrow(PyDict_GetItem(state.ptr(), step_.ptr()));
    if (count && PyLong_CheckExact(count.ptr())) count.reset();
    if (!local) lines_.push_back(torch_.grad(impl_of(tensor(param))));
    add_lines(local ? local : param);
    parameters_.push_back({param, state, local, spec, {}, count, found, nullptr,
                           items_.size(), lines_.size()});
  }
}

void Watch::add_items(PyObject* state, nb::handle moments) {
  const auto* dictionary = reinterpret_cast<const PyDictObject*>(state);
  const char* keys = reinterpret_cast<const char*>(dictionary->ma_keys);
  lines_.insert(lines_.end(), {dictionary, keys, keys + 64});
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(state, &at, &key, &value);) {
    Item item{nb::borrow(key), {}, {}, 0, {}};
    int column = moments_column;
    for (nb::handle name : moments) {
      if (item.key.equal(name)) {
        item.moment = nb::borrow(value);
        item.column = column;
        item.local = unwrap(value);
        const nb::object& found = item.local ? item.local : item.moment;
        item.place = place(tensor(found));
        if (item.place.kind == nowhere) throw nb::value_error("a moment has no memory");
        add_lines(found);
      }
      ++column;
    }
    if (item.key.equal(step_)) item.column = step_column;
    items_.push_back(std::move(item));
  }
}

const void* Watch::tensor(nb::handle object) const {
  return reinterpret_cast<const char*>(object.ptr()) + torch_.field;
}

Watch::Place Watch::place(const void* tensor) const {
  const char* const impl = static_cast<const char*>(impl_of(tensor));
  const auto& told = *reinterpret_cast<const Description*>(impl + torch_.described);
  void* address = nullptr;
  // The keys before all: a helper that asked Python would wait for the caller, and that for it; and
  // of a tensor that has no memory, the shim would complain on the standard error.
  if (!(told.keys & torch_.dense) || told.keys & torch_.otherwise ||
      torch_.data_pointer(tensor, &address))
    return {0, nowhere, 0};
  return {reinterpret_cast<std::intptr_t>(address), told.type & 0xffffffff,
          layout_of(told.dimensions, told.sizes(), told.strides())};
}

nb::object Watch::unwrap(PyObject* tensor) const {
  if (reinterpret_cast<PyObject*>(Py_TYPE(tensor)) != wrapper_.ptr()) return {};
  return slot(local_slot_, tensor);
}

Watch::Place Watch::place_of_grad(Parameter& parameter, bool& is_none) const {
  if (!parameter.local) {
    const void* grad = torch_.grad(impl_of(tensor(parameter.tensor)));
    parameter.grad_impl = impl_of(grad);
    is_none = parameter.grad_impl == torch_.undefined;
    return is_none ? Place{} : place(grad);
  }
  const nb::object grad = nb::steal(PyObject_GetAttr(parameter.tensor.ptr(), grad_.ptr()));
  if (!grad.is_valid()) throw nb::python_error();
  is_none = grad.is_none();
  if (is_none) return {};
  const nb::object found = unwrap_grad(parameter, grad.ptr());
  return found ? place(tensor(found)) : Place{0, nowhere, 0};
}

// Null for a gradient that is wrapped otherwise than its parameter, and so lies like no parameter.
nb::object Watch::unwrap_grad(Parameter& parameter, PyObject* grad) const {
  nb::object local = unwrap(grad);
  if (!local) return {};
  const nb::object spec = slot(spec_slot_, grad);
  if (!spec.is(parameter.spec) && !spec.is(parameter.grad_spec)) {
    if (!spec.equal(parameter.spec)) return {};
    parameter.grad_spec = spec;
  }
  return local;
}

bool Watch::stays(const Item& item, PyObject* value) const {
  // A wrapper keeps what it holds.
  return value == item.moment.ptr() &&
         place(tensor(item.local ? item.local : item.moment)) == item.place;
}

// The number of steps that a parameter has made, 0 where a device counts them; -1 if it, its state
// or the count is not what it was. Reads the dictionary in its order, which is faster than looking
// the keys up.
std::int64_t Watch::stays(std::size_t i) const {
  const Parameter& parameter = parameters_[i];
  const nb::object& held = parameter.local ? parameter.local : parameter.tensor;
  const Item* item = items_.data() + (i ? parameters_[i - 1].items_end : 0);
  const Item* const end = items_.data() + parameter.items_end;
  PyObject *count = nullptr, *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(parameter.state.ptr(), &at, &key, &value); ++item) {
    if (item == end || key != item->key.ptr()) return -1;
    if (item->column == step_column) count = value;
    if (item->moment && !stays(*item, value)) return -1;
  }
  if (item != end || !count || !(place(tensor(held)) == parameter.place)) return -1;
  if (parameter.local && !unwrap(parameter.tensor.ptr()).is(parameter.local)) return -1;
  if (parameter.count) return count == parameter.count.ptr() ? 0 : -1;
  int overflow = 0;
  const long long steps =
      PyLong_CheckExact(count) ? PyLong_AsLongLongAndOverflow(count, &overflow) : -1;
  return steps < most_steps ? steps : -1;
}

void Watch::fill(Matrix<std::int64_t, row_columns> rows) const {
  std::size_t k = 0;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    rows(i, address_column) = parameters_[i].place.address;
    for (; k < parameters_[i].items_end; ++k)
      if (items_[k].moment) rows(i, items_[k].column) = items_[k].place.address;
  }
}

// Threads that help find the interpreter lock held by the caller, so that nothing changes what they
// read; they touch no reference count and raise no Python exception.
int Watch::look(Matrix<std::int64_t, row_columns> rows,
                nb::ndarray<std::int64_t, nb::ndim<1>> steps, int threads) {
  const std::size_t count = parameters_.size();
  if (rows.shape(0) != count || steps.shape(0) != count)
    throw nb::value_error("a row and a step are needed for each parameter");
  Seen all;
  std::mutex mutex;  // of all
  std::atomic<std::size_t> next{0};
  const auto share = static_cast<int>(std::min<std::size_t>(threads, count / few + 1));
  const auto work = [&] {
    Seen seen;
    for (std::size_t begin; (begin = next.fetch_add(few / 2)) < count;)
      look_at(begin, std::min(begin + few / 2, count), rows, steps, seen);
    const std::lock_guard<std::mutex> lock(mutex);
    all.add(seen);
  };
  // Beside a GPU the framework's threads sleep, and are more than it is worth waking.
  const bool on_cpu = count != 0 && parameters_.front().place.on_cpu();
  run(wrapped_ ? 0 : share - 1, work, on_cpu ? Helpers::of_framework : Helpers::own);
  which_ = std::move(all.which);
  std::sort(which_.begin(), which_.end());
  return all.answer | (all.least != all.most ? uneven : 0);
}

// Stops where one has moved.
void Watch::look_at(std::size_t begin, std::size_t end, Matrix<std::int64_t, row_columns>& rows,
                    nb::ndarray<std::int64_t, nb::ndim<1>>& steps, Seen& seen) {
  constexpr std::size_t ahead = 4;
  for (std::size_t i = begin; i < std::min(begin + ahead, end); ++i) fetch(i);
  for (std::size_t i = begin; i < end; ++i) {
    if (i + ahead < end) fetch(i + ahead);
    Parameter& parameter = parameters_[i];
    const std::int64_t step = stays(i);
    if (step < 0) {
      seen.answer |= moved;
      return;
    }
    bool is_none = false;
    const Place there = place_of_grad(parameter, is_none);
    steps(i) = is_none ? -1 : step;
    seen.add(steps(i));
    if (is_none) seen.answer |= uneven;
    if (rows(i, grad_column) != there.address) seen.answer |= changed;
    rows(i, grad_column) = there.address;
    const bool alike =
        there.kind == parameter.place.kind && there.layout == parameter.place.layout;
    if (!is_none && !alike) {
      seen.answer |= strange;
      seen.which.push_back(static_cast<std::int64_t>(i));
    }
  }
}

void Watch::touch(nb::ndarray<const std::int64_t, nb::ndim<1>> steps) const {
  if (steps.shape(0) != parameters_.size())
    throw nb::value_error("a step is needed for each parameter");
  try {
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (steps(i) >= 0) torch_.bump_version(tensor(parameters_[i].tensor));
  } catch (const std::exception& error) {  // of tensors made in inference mode, with its stack
    const std::string text = error.what();
    throw std::runtime_error(text.substr(0, text.find('\n')));
  }
}

}  // namespace adamas
