// Where a framework's tensors lie, asked at each step. Beside bindings.cpp the only file that knows
// Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <vector>

namespace adamas {

template <class T, int columns>
using Matrix =
    nanobind::ndarray<T, nanobind::shape<-1, columns>, nanobind::c_contig, nanobind::device::cpu>;

// Remembers where parameters and their moments lie, and sees at each step whether they still do and
// where the gradients are. What it asks of a tensor costs some 30 ns through DLPack's exchange API,
// against 100 ns and more for each question put through Python.
class Watch {
 public:
  // Bits of look()'s answer.
  enum : int { moved = 1, strange = 2, changed = 4, uneven = 8 };

  // `states` are dictionaries with an int as `step` and, under `moments`, tensors; a state may lack
  // the last of them.
  Watch(nanobind::capsule exchange_api, nanobind::list params, nanobind::list states,
        nanobind::tuple moments);

  // Writes the addresses of parameters and moments into the rows; their columns are the first.
  void fill(Matrix<std::int64_t, 8> rows) const;

  // Writes the gradients' addresses into the rows, 0 for None, and the parameters' steps, -1 where
  // there is no gradient. Answers
  //   moved    a parameter, moment or step count is not what it was: the watch is of no use;
  //   strange  gradients lie unlike their parameters, and which() tells which;
  //   changed  gradients lie elsewhere than at the last look;
  //   uneven   the step counts are not all the same, or a gradient is None.
  int look(Matrix<std::int64_t, 8> rows, nanobind::ndarray<std::int64_t, nanobind::ndim<1>> steps);
  const std::vector<std::int64_t>& which() const { return which_; }

  // Sets the step count of each state to the number in `steps` and one more, but for -1.
  void advance(nanobind::ndarray<const std::int64_t, nanobind::ndim<1>> steps) const;

 private:
  struct Place {
    std::int64_t address, kind, layout;
    bool operator==(const Place& other) const {
      return address == other.address && kind == other.kind && layout == other.layout;
    }
  };
  // Where look() will read: never followed, only fetched ahead into the caches.
  struct Hint {
    const void *object, *shape;
  };
  Place place(PyObject* tensor, Hint* hint = nullptr) const;
  void fetch(std::size_t i) const;
  PyObject* item(Py_ssize_t i, nanobind::handle key) const;  // borrowed, null if there is none
  bool suspicious(const Place& gradient) const;

  nanobind::capsule exchange_api_;
  int (*tensor_from_object_)(void* object, nanobind::dlpack::dltensor* out);
  nanobind::list params_, states_;
  nanobind::tuple moments_;
  nanobind::str grad_{"grad"}, step_{"step"};
  std::vector<Place> places_;  // for each parameter its own, then its moments'
  std::vector<Hint> hints_;    // the same
  std::vector<std::int64_t> which_;
};

}  // namespace adamas
