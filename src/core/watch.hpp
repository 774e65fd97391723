// Where a framework's tensors lie, asked at each step. Beside bindings.cpp the only file that knows
// Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "table.hpp"

namespace adamas {

template <class T, int columns>
using Matrix =
    nanobind::ndarray<T, nanobind::shape<-1, columns>, nanobind::c_contig, nanobind::device::cpu>;

// What PyTorch exports of its own tensors; see adamas.torch.watch. A tensor is told by the address
// of its at::Tensor, whose first word is that of its TensorImpl.
struct Torch {
  std::ptrdiff_t field;    // of a Python tensor, that is its at::Tensor,
  std::ptrdiff_t storage;  // and of a TensorImpl, that is the address of its memory's description,
  std::ptrdiff_t described;  // and that is its Description;
  // of its keys, that of tensors that have strides, and those of tensors whose memory does not hold
  // what they are: classes that have Python say it, zeros, and lazily conjugated or negated ones;
  std::uint64_t dense, otherwise;
  const void* undefined;  // the TensorImpl of none
  // Of the C shim: 0 where it finds an answer, which it does not of tensors without memory.
  int (*data_pointer)(const void* tensor, void** answer);
  // Of C++: TensorImpl::grad, and autograd::impl::bump_version.
  const void* (*grad)(const void* impl);
  void (*bump_version)(const void* tensor);
};

// The last words of a TensorImpl; adamas.torch.watch has found that they are these. They are read
// where they are, because asking the shim for each takes longer.
struct Description {
  static constexpr std::int64_t most_inside = 5;
  std::int64_t dimensions;
  std::int64_t numbers[2 * most_inside];  // sizes and strides; of more, where they are
  std::int64_t offset, elements;
  std::int64_t type;  // two bytes of the dtype, one of the device's type, one of its index; flags
  std::uint64_t keys;

  const std::int64_t* sizes() const {
    return dimensions <= most_inside ? numbers : reinterpret_cast<const std::int64_t*>(numbers[0]);
  }
  const std::int64_t* strides() const { return sizes() + std::max(dimensions, most_inside); }
};

// Remembers where parameters and their moments lie, and sees at each step whether they still do and
// where the gradients are. Each question put to torch costs some 2 ns; through Python, 70 and more.
class Watch {
 public:
  // Bits of look()'s answer.
  enum : int { moved = 1, strange = 2, changed = 4, uneven = 8 };

  // `states` are dictionaries with an int as `step`, or a tensor that counts on a device, and
  // `moments` the keys of the tensors in each that a step writes, in the order of a row's columns.
  // `torch` is what struct Torch holds, in its order. `wrapper` is None or the class of tensors
  // that are wrappers: what counts of one is its `_local_tensor`, and a gradient must have its
  // parameter's `_spec`. Of others, `grad` must be torch's own.
  Watch(nanobind::tuple torch, nanobind::list params, nanobind::list states, nanobind::list moments,
        nanobind::object wrapper);
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
  // `threads` is how many may look, the caller's among them.
  int look(Matrix<std::int64_t, row_columns> rows,
           nanobind::ndarray<std::int64_t, nanobind::ndim<1>> steps, int threads);
  const std::vector<std::int64_t>& which() const { return which_; }

  // Tells autograd that the parameters are written whose step is not -1: a graph that saved one
  // must not use it.
  void touch(nanobind::ndarray<const std::int64_t, nanobind::ndim<1>> steps) const;

 private:
  struct Place {
    std::int64_t address, kind, layout;  // the kind is a dtype and a device
    bool on_cpu() const { return (kind >> 16 & 0xff) == 0; }
    bool operator==(const Place& other) const {
      return address == other.address && kind == other.kind && layout == other.layout;
    }
  };
  // A key of a state dictionary and, if it is a moment's, what was under it.
  struct Item {
    nanobind::object key, moment, local;  // the last is what a wrapper holds, else null
    int column;                           // of a row, for the moment's address
    Place place;
  };
  struct Parameter {
    nanobind::object tensor, state, local, spec;  // the last two null but for a wrapper
    nanobind::object grad_spec;                   // the last that was found equal to it
    nanobind::object count;  // the step count, where it is a tensor on a device, else null
    Place place;
    const void* grad_impl;             // the last TensorImpl; never followed
    std::size_t items_end, lines_end;  // of its own; they begin where the previous parameter's end
  };
  // What look() has seen of some parameters.
  struct Seen {
    int answer = 0;
    std::int64_t least = INT64_MAX, most = INT64_MAX;  // of the steps
    std::vector<std::int64_t> which;
    void add(std::int64_t step) {
      most = least == INT64_MAX ? step : std::max(most, step);
      least = std::min(least, step);
    }
    void add(const Seen& other) {
      answer |= other.answer;
      which.insert(which.end(), other.which.begin(), other.which.end());
      if (other.least == INT64_MAX) return;
      add(other.least);
      add(other.most);
    }
  };

  const void* tensor(nanobind::handle object) const;  // as Torch has it
  Place place(const void* tensor) const;
  void add_lines(nanobind::handle tensor);
  nanobind::object unwrap(PyObject* tensor) const;  // null if it is no wrapper
  Place place_of_grad(Parameter& parameter, bool& is_none) const;
  nanobind::object unwrap_grad(Parameter& parameter, PyObject* grad) const;
  void add_items(PyObject* state, nanobind::handle moments);
  bool stays(const Item& item, PyObject* value) const;
  std::int64_t stays(std::size_t i) const;
  void look_at(std::size_t begin, std::size_t end, Matrix<std::int64_t, row_columns>& rows,
               nanobind::ndarray<std::int64_t, nanobind::ndim<1>>& steps, Seen& seen);
  // Inlined, or else g++ takes it for a call without effect and leaves it out.
  __attribute__((always_inline)) inline void fetch(std::size_t i) const;

  Torch torch_;
  nanobind::object wrapper_, local_slot_, spec_slot_;
  bool wrapped_ = false;  // whether any parameter is
  nanobind::str grad_{"grad"}, step_{"step"};
  std::vector<Parameter> parameters_;
  std::vector<Item> items_;         // of all states, each in its dictionary's order
  std::vector<const void*> lines_;  // of memory, that a look reads; never followed
  std::vector<std::int64_t> which_;
};

}  // namespace adamas
