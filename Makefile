# quietchoir: `make demo` and `make test` do all the set-up themselves on a fresh machine with
# Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
SOAK ?= long
VENV := .venv
BIN := $(VENV)/bin
export QUIETCHOIR_HOME ?= $(HOME)/.cache/quietchoir
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

# One at a time, in the order they stand: the tests' first line comes before the set-up.
.NOTPARALLEL:
.PHONY: help said setup clients tested-set system-packages models demo demo-loop demo-compare serve test check \
	coverage debug fuzz lint format bench soak fresh scale-out figures clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/ready $(VENV)/compiled  ## make .venv, install the tested set of packages, compile the kernels

# torch first, and alone: whether CUDA's libraries are needed (gigabytes) is what its build says. A
# small build whose hash the set knows is taken where pip, as this machine sets it up, finds one.
# TORCH_INDEX names an index with another build, such as PyTorch's own of CPU builds; then that
# index is trusted for torch. All else is checked against the set's hashes.
PIN = $(BIN)/python .ci/tested_set.py lines
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quietchoir needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifdef TORCH_INDEX
	$(BIN)/pip install --progress-bar on --no-deps --index-url $(TORCH_INDEX) "torch==$$($(PIN) version)"
else
	@$(PIN) small > $(VENV)/small.txt && $(BIN)/pip install -q --no-deps --require-hashes -r $(VENV)/small.txt 2>/dev/null || \
		{ $(PIN) torch > $(VENV)/torch.txt && set -x && \
		$(BIN)/pip install --progress-bar on --no-deps --only-binary=:all: --require-hashes -r $(VENV)/torch.txt; }
endif
	$(PIN) rest > $(VENV)/rest.txt
	$(BIN)/pip install --progress-bar on --no-deps --only-binary=:all: --require-hashes -r $(VENV)/rest.txt
	$(BIN)/pip install --progress-bar on --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@ $(VENV)/compiled

tested-set: setup  ## resolve pyproject.toml anew for every machine, with hashes (ARGS=--upgrade: the newest versions)
	$(BIN)/python .ci/tested_set.py refresh $(ARGS)
	$(BIN)/python .ci/tested_set.py check

system-packages:  ## what tests and the engine can use and pip does not bring (Debian and its like)
	.ci/system-packages install

# The installation has compiled them; this does it again when a source changes. Without a compiler
# it says so and goes on.
$(VENV)/compiled: $(VENV)/ready setup.py core/engine/backends/native/sources.py \
		$(wildcard core/engine/backends/native/src/*) crypto/pir/scan.cpp
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

models: setup  ## fetch the model files that demo and tests use
	@$(BIN)/quietchoir model pull smollm2-135m-instruct
	@$(BIN)/quietchoir model pull minilm-l6-v2

demo: setup models  ## four households learn together over TLS, then one answers; about four minutes
	$(BIN)/python -m quietchoir.simulations.demo --out demo

demo-loop: setup models  ## four owners correct their assistants, three give that to a federation, one example is forgotten
	$(BIN)/python -m quietchoir.simulations.demo_loop --out demo

demo-compare: setup models  ## together against alone and central, three seeds
	$(BIN)/python -m quietchoir.simulations.compare --out demo/compare.json

serve: setup models  ## a local assistant on 127.0.0.1
	$(BIN)/quietchoir serve

# Files that took at most five processor seconds; tests/fast.txt is the list.
FAST = $$(grep -v '^\#' tests/fast.txt)

# Two workers: much of a test with real processes is waiting. A file stays with one of them, as its
# fixtures do; tests/conftest.py says in which order they come.
PYTEST = -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: said setup models $(VENV)/clients/ready  ## every test
	$(BIN)/python $(PYTEST) $(ARGS)

check: lint models  ## lint and the fast half of the tests: within three minutes on two cores
	$(BIN)/python $(PYTEST) $(FAST) $(ARGS)

# Real clients of the node's API, which must not share the tested set's environment.
clients: $(VENV)/clients/ready  ## the clients that the tests ask the node with, in an environment of their own

$(VENV)/clients/ready: constraints-clients.txt
	@$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/pip install -q --no-deps --only-binary=:all: --require-hashes -r constraints-clients.txt
	@touch $@

# Of the fast tests of the two wings that keep secrets: a tracer makes Python about half slower.
COVERED = $$(grep '^tests/\(crypto\|federation\)' tests/fast.txt)

coverage: setup models  ## which lines of crypto/ and federation/ their fast tests run; about a minute
	mkdir -p build && rm -f build/coverage*
	$(BIN)/python -m coverage run $(PYTEST) -q $(COVERED) $(ARGS)
	$(BIN)/python -m coverage combine -q && $(BIN)/python -m coverage report

test-rest: said setup models $(VENV)/clients/ready  ## every test that `make coverage` does not run
	$(BIN)/python $(PYTEST) $(addprefix --ignore=,$(shell grep '^tests/\(crypto\|federation\)' tests/fast.txt)) $(ARGS)

said:
	@.ci/system-packages say

fuzz: setup  ## the long fuzzing runs, whole
	QUIETCHOIR_FUZZ=full $(BIN)/python -m pytest tests -m fuzz $(ARGS)

CPP = $(wildcard core/engine/backends/native/src/*.h core/engine/backends/native/src/*.cpp \
	tests/core/engine/backends/native/*.cpp crypto/pir/*.cpp)

lint: setup  ## ruff format and check, clang-format, mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	@# mypy needs the package's own name, whatever this checkout's folder is called
	mkdir -p build/lint/quietchoir
	for part in *.py core crypto federation private_search plugins simulations tests examples; do \
		ln -sfn ../../../$$part build/lint/quietchoir/$$part; done
	cd build/lint && ../../$(BIN)/mypy -n 2 --config-file ../../pyproject.toml -p quietchoir

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

debug: setup  ## the kernels with -O1 -g and sanitizers, played by check.cpp, kept in build/debug
	$(BIN)/python -m quietchoir.tests.core.engine.backends.native.debug build/debug $(ARGS)

# The engines and the server that `bench engine` and `bench serve` compare with; one of them is
# compiled here, for about ten minutes.
$(VENV)/peers: $(VENV)/ready
	$(BIN)/pip install --progress-bar on --no-deps --require-hashes -r constraints-peers.txt
	@touch $@

bench: setup models $(VENV)/peers  ## every benchmark; JSON beside each table
	$(BIN)/quietchoir bench --out build/bench.json

soak: setup models  ## a node under an hour of mixed use: nothing lost, memory flat (SOAK=short: ten minutes)
	$(BIN)/python -m quietchoir.simulations.soak --seconds $(if $(filter short,$(SOAK)),600,3600) --out build/soak.json $(ARGS)

fresh:  ## demo and test as a stranger meets them: empty home, public index, no system packages; timed (ARGS: other targets)
	$(PYTHON) .ci/fresh.py $(ARGS)

scale-out: setup  ## the same federation under Ray and on stock Flower processes, compared; some minutes
	$(BIN)/python -m quietchoir.simulations.scale --out build/scale-out.json

figures: setup  ## the pictures in docs/
	$(BIN)/python -m quietchoir.simulations.figures --out docs

clean:
	rm -rf build dist demo *.egg-info
