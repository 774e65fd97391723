// The core as a Python module; adamas.native is its face.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "arrays.hpp"
#include "isa.hpp"
#include "norm.hpp"
#include "pool.hpp"
#include "step.hpp"
#include "watch.hpp"

namespace nb = nanobind;
using adamas::ArrayWatch;
using adamas::Matrix;
using adamas::Watch;

// Lets other threads have the interpreter meanwhile.
class Released {
 public:
  ~Released() noexcept(false) {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      // The interpreter has ended, and ends a daemon's thread here by unwinding its stack: through
      // ours it cannot, so the thread waits for the end of the process.
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* const state_ = PyEval_SaveThread();
};

static std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const auto& isa : adamas::isas()) names.emplace_back(isa.name);
  return names;
}

// The rows of a table, checked as far as one can without following their addresses.
static const adamas::Row* rows_of(Matrix<const std::int64_t, adamas::row_columns> table,
                                  std::int64_t sets, int threads, std::int64_t grain,
                                  std::size_t isa) {
  if (threads < 1 || grain < 0 || isa >= adamas::isas().size())
    throw nb::value_error(
        "threads must be at least 1, grain at least 0, and isa an index of isas()");
  const auto* rows = reinterpret_cast<const adamas::Row*>(table.data());
  for (const adamas::Row* row = rows; row != rows + table.shape(0); ++row)
    if (row->size < 0 || row->coefficients < 0 || row->coefficients >= sets || row->run < 1 ||
        !adamas::known(row->types))
      throw nb::value_error(
          "a row has a negative size or a run below 1, or names no coefficients or no types");
  return rows;
}

using Counts = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::device::cpu>;

// Sets `step` of each state to the number in `steps` and one more, but for -1. It is done in the
// call that steps, since between two calls an interrupt could part them; and before the arithmetic,
// while the states are still in the caches.
static void count(nb::list states, Counts steps) {
  if (states.size() != steps.shape(0)) throw nb::value_error("a count is needed for each state");
  static PyObject* key = PyUnicode_InternFromString("step");
  nb::object next;  // shared by neighbours with the same count
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (steps(i) < 0) continue;
    if (!next.is_valid() || steps(i) != steps(i - 1)) next = nb::int_(steps(i) + 1);
    if (PyDict_SetItem(PyList_GET_ITEM(states.ptr(), i), key, next.ptr())) throw nb::python_error();
  }
}

static void step(Matrix<const std::int64_t, adamas::row_columns> table,
                 Matrix<const double, adamas::coefficient_count> coefficients, int threads,
                 std::int64_t grain, std::size_t isa, nb::list states, Counts steps,
                 std::optional<Matrix<double, adamas::measure_count>> measures,
                 adamas::Gate* gate) {
  const auto sets = static_cast<std::int64_t>(coefficients.shape(0));
  const adamas::Row* rows = rows_of(table, sets, threads, grain, isa);
  if (measures && measures->shape(0) != table.shape(0))
    throw nb::value_error("measures are needed for each row");
  const auto add = [](std::int64_t sum, const adamas::Row& row) { return sum + row.size; };
  if (gate && gate->size() != std::accumulate(rows, rows + table.shape(0), std::int64_t{0}, add))
    throw nb::value_error("a gate must have the rows' elements");
  auto* found = measures ? reinterpret_cast<adamas::Measures*>(measures->data()) : nullptr;
  count(states, steps);
  const Released interpreter;
  adamas::step(rows, table.shape(0), coefficients.data(), adamas::isas()[isa].kernel, threads,
               grain, found, gate);
}

static std::pair<double, double> square_sum(Matrix<const std::int64_t, adamas::row_columns> table,
                                            double scale, int threads, std::int64_t grain,
                                            std::size_t isa) {
  const adamas::Row* rows = rows_of(table, INT64_MAX, threads, grain, isa);
  const Released interpreter;
  const adamas::Estimate estimate = adamas::square_sum(
      rows, table.shape(0), scale, adamas::isas()[isa].square_sum, threads, grain);
  return {estimate.value, estimate.error};
}

static std::vector<std::int64_t> exact_square_sum(
    Matrix<const std::int64_t, adamas::row_columns> table, double scale, int threads,
    std::int64_t grain) {
  const adamas::Row* rows = rows_of(table, INT64_MAX, threads, grain, 0);
  const Released interpreter;
  const adamas::Digits digits =
      adamas::exact_square_sum(rows, table.shape(0), scale, threads, grain);
  return {digits.begin(), digits.end()};
}

static void make_gate(adamas::Gate* gate, std::vector<std::int64_t> ends) {
  if (!std::is_sorted(ends.begin(), ends.end()) || (!ends.empty() && ends[0] < 0))
    throw nb::value_error("parts must end one behind the other");
  new (gate) adamas::Gate(std::move(ends));
}

static std::size_t part_of(const adamas::Gate& gate, std::size_t part) {
  if (part >= gate.parts()) throw nb::index_error("a gate has no such part");
  return part;
}

static void open_gate(adamas::Gate& gate, std::size_t part) { gate.open(part_of(gate, part)); }

static bool wait_at_gate(adamas::Gate& gate, std::size_t part) {
  part_of(gate, part);
  const Released interpreter;
  return gate.wait(part);
}

// Gives the calling thread the default floating-point environment, which flushes no denormals, and
// answers with the one that it had.
static nb::bytes default_floating_point() {
  std::fenv_t callers;
  std::fegetenv(&callers);
  std::fesetenv(FE_DFL_ENV);
  return nb::bytes(reinterpret_cast<const char*>(&callers), sizeof callers);
}

static void restore_floating_point(nb::bytes environment) {
  std::fenv_t callers;
  if (environment.size() != sizeof callers) throw nb::value_error("it is no environment");
  std::memcpy(&callers, environment.c_str(), sizeof callers);
  std::fesetenv(&callers);
}

// Whether a list's or tuple's objects, or a dictionary's values, are a list's; == would compare
// tensors element by element. Counts no references, for which it would have to fetch every object.
static bool identical(nb::handle one, nb::list other) {
  PyObject** const theirs = PySequence_Fast_ITEMS(other.ptr());
  const Py_ssize_t count = PyList_GET_SIZE(other.ptr());
  if (PyDict_Check(one.ptr())) {
    Py_ssize_t at = 0, i = 0;
    PyObject* value;
    while (PyDict_Next(one.ptr(), &at, nullptr, &value))
      if (i == count || value != theirs[i++]) return false;
    return i == count;
  }
  const nb::object items = nb::steal(PySequence_Fast(one.ptr(), "it has no items"));
  if (!items.is_valid()) throw nb::python_error();
  PyObject** const mine = PySequence_Fast_ITEMS(items.ptr());
  return PySequence_Fast_GET_SIZE(items.ptr()) == count && std::equal(mine, mine + count, theirs);
}

NB_MODULE(_core, module) {
  // Hooks of autograd hold optimizers in cycles that Python does not see, up to its end.
  nb::set_leak_warnings(false);
  module.def("isas", isa_names);
  module.def("environment", &std::getenv, nb::arg("name"));  // os.environ takes 1 us to ask
  module.def("adopt", &adamas::adopt, nb::arg("parallel"), nb::arg("most_threads"));
  module.def("step", step, nb::arg("rows"), nb::arg("coefficients"), nb::arg("threads"),
             nb::arg("grain"), nb::arg("isa"), nb::arg("states"), nb::arg("steps"),
             nb::arg("measures").none(), nb::arg("gate").none());
  module.def("default_floating_point", default_floating_point);
  module.def("restore_floating_point", restore_floating_point, nb::arg("environment"));
  module.def("square_sum", square_sum, nb::arg("rows"), nb::arg("scale"), nb::arg("threads"),
             nb::arg("grain"), nb::arg("isa"));
  module.def("exact_square_sum", exact_square_sum, nb::arg("rows"), nb::arg("scale"),
             nb::arg("threads"), nb::arg("grain"));
  module.def("identical", identical, nb::arg("one"), nb::arg("other"));
  nb::class_<adamas::Gate>(module, "Gate")
      .def("__init__", make_gate, nb::arg("ends"))
      .def("open", open_gate, nb::arg("part"))
      .def("wait", wait_at_gate, nb::arg("part"))
      .def("close", &adamas::Gate::close);
  nb::class_<ArrayWatch>(module, "ArrayWatch")
      .def(nb::init<nb::list, nb::object>(), nb::arg("arrays"), nb::arg("type"))
      .def("look", &ArrayWatch::look, nb::arg("grads"), nb::arg("rows"))
      .def_static("fields", &ArrayWatch::fields, nb::arg("array"));
  nb::class_<Watch>(module, "Watch")
      .def(nb::init<nb::tuple, nb::list, nb::list, nb::list, nb::object>(), nb::arg("torch"),
           nb::arg("params"), nb::arg("states"), nb::arg("moments"), nb::arg("wrapper").none())
      .def("fill", &Watch::fill, nb::arg("rows"))
      .def("look", &Watch::look, nb::arg("rows"), nb::arg("steps"), nb::arg("threads"))
      .def("which", &Watch::which)
      .def("touch", &Watch::touch, nb::arg("steps"));
}
