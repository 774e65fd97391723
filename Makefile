# make train   trains a network on handwritten digits (ARGS="..." for more: see `adamas train --help`)
# make test    runs the tests
# Each makes the virtual environment it needs, once, and reinstalls when a source has changed.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
CLIENTS := .venv/clients
MKDOCS := .venv/mkdocs
SOURCES := pyproject.toml constraints.txt CMakeLists.txt README.md $(shell find src -type f -not -name '*.pyc')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One process more than there are processors: some tests wait for programs that they start.
WORKERS := --numprocesses $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist worksteal

.PHONY: train test nightly examples check docs sanitize arm64 bench clean

train: $(INSTALLED)
	$(BIN)/adamas train $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

# Thousands of random sequences beside torch.optim, for a run overnight.
nightly: $(INSTALLED)
	ADAMAS_EXAMPLES=5000 $(BIN)/python -m pytest tests/torch/test_differential.py $(ARGS)

# The scripts of examples/ and other trainers with adamas; installs what they need.
examples: $(CLIENTS)
	$(BIN)/python -m pytest -m examples tests/test_examples.py tests/test_clients.py $(ARGS)

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The documentation in build/site: every public name is in it, and nothing of it is elsewhere.
docs: $(MKDOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python -m pytest -m site tests/test_site.py $(ARGS)

# The core's own test and the kept hashes, under each sanitizer; the kernels for GPUs interpreted, all
# that they do with memory watched.
sanitize: $(INSTALLED) build/address/core_test build/thread/core_test
	build/address/core_test
	build/address/core_test fork
	$(BIN)/python tests/core/replay.py build/address/core_test
	build/thread/core_test
	$(BIN)/python tests/core/replay.py build/thread/core_test
	ADAMAS_SANITIZE=1 $(BIN)/python -m pytest $(WORKERS) tests/gpu

build/address/core_test: SANITIZERS := address,undefined
build/thread/core_test: SANITIZERS := thread
build/%/core_test: CMakeLists.txt $(wildcard src/core/*) tests/core/core_test.cpp $(INSTALLED)
	$(BIN)/cmake -S . -B build/$* -DADAMAS_PYTHON=OFF -DADAMAS_SANITIZE=$(SANITIZERS)
	$(BIN)/cmake --build build/$* --parallel

# The same on another processor; needs g++-aarch64-linux-gnu and qemu-user.
arm64: $(INSTALLED)
	$(BIN)/cmake -S . -B build/arm64 -DADAMAS_PYTHON=OFF -DCMAKE_SYSTEM_NAME=Linux \
		-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
		-DCMAKE_EXE_LINKER_FLAGS=-static
	$(BIN)/cmake --build build/arm64 --parallel
	qemu-aarch64 build/arm64/core_test
	$(BIN)/python tests/core/replay.py qemu-aarch64 build/arm64/core_test

bench: $(INSTALLED)
	$(BIN)/python benchmarks/step.py $(ARGS)

$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "scikit-build-core>=0.10" "nanobind>=2.2" cmake ninja
	$(PIP) --no-build-isolation ".[dev]"
	touch $@

$(CLIENTS): $(INSTALLED)
	$(PIP) --no-build-isolation ".[examples]"
	touch $@

$(MKDOCS): $(INSTALLED)
	$(PIP) --no-build-isolation ".[docs]"
	touch $@

clean:
	rm -rf build .venv
