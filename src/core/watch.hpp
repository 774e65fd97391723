// Where a framework's tensors lie, asked at each step. Beside bindings.cpp the only file that knows
// Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "table.hpp"

namespace adamas {

template <class T, int columns>
using Matrix =
    nanobind::ndarray<T, nanobind::shape<-1, columns>, nanobind::c_contig, nanobind::device::cpu>;

// Remembers where parameters and their moments lie, and sees at each step whether they still do and
// where the gradients are. What it asks of a tensor costs some 30 ns through DLPack's exchange API
// and 10 ns through PyTorch's C shim, against 70 ns and more for each question put through Python.
class Watch {
 public:
  // Bits of look()'s answer.
  enum : int { moved = 1, strange = 2, changed = 4, uneven = 8 };

  // `states` are dictionaries with an int as `step`, or a tensor that counts on a device, and
  // `moments` the keys of the tensors in each that a step writes, in the order of a row's columns.
  // `shim` is None or the C shim: what makes a handle of a tensor, and the addresses of what tells
  // where a handle's tensor lies and of what gives a handle back. `wrapper` is None or the class of
  // tensors that are wrappers: what counts of one is its `_local_tensor`, and a gradient must have
  // its parameter's `_spec`.
  Watch(nanobind::capsule exchange_api, nanobind::list params, nanobind::list states,
        nanobind::list moments, nanobind::object shim, nanobind::object wrapper);
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Writes the addresses of parameters and moments into the rows; their columns are the first.
  void fill(Matrix<std::int64_t, row_columns> rows) const;

  // Writes the gradients' addresses into the rows, 0 for None, and the parameters' steps, -1 where
  // there is no gradient, else 0 for those that a device counts. Answers
  //   moved    a parameter, moment or step count is not what it was: the watch is of no use;
  //   strange  gradients lie unlike their parameters, and which() tells which;
  //   changed  gradients lie elsewhere than at the last look;
  //   uneven   the step counts are not all the same, or a gradient is None.
  int look(Matrix<std::int64_t, row_columns> rows,
           nanobind::ndarray<std::int64_t, nanobind::ndim<1>> steps);
  const std::vector<std::int64_t>& which() const { return which_; }

 private:
  struct Place {
    std::int64_t address, kind, layout;
    const void* shape;  // within the framework's own tensor
    bool single;        // one element
    bool operator==(const Place& other) const {
      return address == other.address && kind == other.kind && layout == other.layout;
    }
  };
  using Handle = std::unique_ptr<void, int (*)(void*)>;
  // A key of a state dictionary and, if it is a moment's, what was under it.
  struct Item {
    nanobind::object key, moment, local;  // the last is what a wrapper holds, else null
    int column;                           // of a row, for the moment's address
    Place place;
    Handle handle;  // holds the moment's memory; null without a shim
  };
  struct Parameter {
    nanobind::object tensor, state, local, spec;  // the last two null but for a wrapper
    nanobind::object grad_spec;                   // the last that was found equal to it
    nanobind::object count;  // the step count, where it is a tensor on a device, else null
    Place place;
    std::size_t items_end;  // of its own; they begin where the previous parameter's end
  };

  Place place(PyObject* tensor) const;
  nanobind::object unwrap(PyObject* tensor) const;  // null if it is no wrapper
  Place place_of_grad(Parameter& parameter, PyObject* grad) const;
  void add_items(PyObject* state, nanobind::handle moments, nanobind::handle make_handle);
  bool stays(const Item& item, PyObject* value) const;
  PyObject* step_of(std::size_t i) const;
  // Inlined, or else g++ takes it for a call without effect and leaves it out.
  __attribute__((always_inline)) inline void fetch(std::size_t i) const;
  bool suspicious(const Place& gradient) const;

  nanobind::capsule exchange_api_;
  int (*tensor_from_object_)(void* object, nanobind::dlpack::dltensor* out);
  int (*data_pointer_)(void* handle, void** address) = nullptr;
  int (*release_)(void* handle) = nullptr;
  nanobind::object wrapper_, local_slot_, spec_slot_;
  nanobind::str grad_{"grad"}, step_{"step"};
  std::vector<Parameter> parameters_;
  std::vector<Item> items_;  // of all states, each in its dictionary's order
  std::vector<std::int64_t> which_;
};

}  // namespace adamas
