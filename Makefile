# quietchoir: `make demo` and `make test` do all the set-up themselves on a fresh machine with Python 3.11+, make and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export QUIETCHOIR_HOME ?= $(HOME)/.cache/quietchoir
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help setup models demo demo-compare serve test fuzz lint format bench scale-out figures clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: $(VENV)/ready $(VENV)/compiled  ## make .venv, install the tested set of packages, compile the kernels

# torch first, alone and pinned: a plain resolve would take a build with gigabytes of CUDA libraries.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "quietchoir needs Python 3.11 or newer, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --progress-bar on -c constraints.txt "torch==2.13.0"
	$(BIN)/pip install --progress-bar on -c constraints.txt -e '.[dev,bench,scale]'
	@touch $@ $(VENV)/compiled

# The installation has compiled them; this does it again when a source changes. Without a compiler it says so and goes on.
$(VENV)/compiled: $(VENV)/ready setup.py core/engine/native/sources.py $(wildcard core/engine/native/src/*)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

models: setup  ## fetch the model files that demo and tests use
	@$(BIN)/quietchoir model pull smollm2-135m-instruct
	@$(BIN)/quietchoir model pull minilm-l6-v2

demo: setup models  ## four households learn together over TLS, then one answers; about five minutes
	$(BIN)/python -m quietchoir.simulations.demo --out demo

demo-compare: setup models  ## together against alone and central, three seeds
	$(BIN)/python -m quietchoir.simulations.compare --out demo/compare.json

serve: setup models  ## a local assistant on 127.0.0.1
	$(BIN)/quietchoir serve

# Two workers: much of a test with real processes is waiting. A file stays with one of them, as its fixtures do.
test: setup models  ## every test
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

fuzz: setup  ## the long fuzzing runs, whole
	QUIETCHOIR_FUZZ=full $(BIN)/python -m pytest tests -m fuzz $(ARGS)

lint: setup  ## ruff format and check, mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# mypy needs the package's own name, whatever this checkout's folder is called
	mkdir -p build/lint/quietchoir
	for part in *.py core crypto federation plugins simulations tests; do ln -sfn ../../../$$part build/lint/quietchoir/$$part; done
	cd build/lint && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p quietchoir

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The engines that `bench engine` compares with; one of them is compiled here, for about ten minutes.
$(VENV)/peers: $(VENV)/ready
	$(BIN)/pip install --progress-bar on -c constraints.txt 'llama-cpp-python>=0.3.36' 'openvino-genai>=2026.4'
	@touch $@

bench: setup models $(VENV)/peers  ## every benchmark; JSON beside each table
	$(BIN)/quietchoir bench --out build/bench.json

scale-out: setup  ## the same federation under Ray and on stock Flower processes, compared; some minutes
	$(BIN)/python -m quietchoir.simulations.scale --out build/scale-out.json

figures: setup  ## the pictures in docs/
	$(BIN)/python -m quietchoir.simulations.figures --out docs

clean:
	rm -rf build dist demo *.egg-info
