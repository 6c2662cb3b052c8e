# Every target sets up what it needs. PYTHON is the interpreter that makes the virtual environment (3.11 or later).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A fifth of the 19,000 Python files that this brings is ever imported: those are compiled then, and the others never.
QUICKLY := --quiet --no-compile
# Files of tests side by side, one a core, in the order of tests/conftest.py: the tests' own runs have one thread each.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-faults lint audit bench gpu-check gpu-check-wheels clean

demo: $(VENV)/.installed
	$(BIN)/python run_suite.py configs/suites/demo.yaml --jobs 2

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/faults tests/distributed -m "faults or not faults"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own: the tool's dependencies are none of the project's. It asks a service on the network.
audit:
	test -x $(VENV)/audit/bin/pip-audit || $(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit -r requirements-dev.txt

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.loss --shapes 2048,256,8192 2048,768,8192
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.telemetry

# With the interpreter that has the GPU's torch, not the virtual environment; nothing is installed.
gpu-check: OUT ?= out/gpu-check
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(OUT)

# For a machine with a GPU and no package index: what it may lack, to be carried there in the checkout.
gpu-check-wheels: GPU_PYTHON ?= 3.12
gpu-check-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version $(GPU_PYTHON) \
		--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest wheels -r requirements-gpu-check.txt

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUICKLY) -r requirements.txt
	touch $@

# Which names requirements.txt: one look at everything.
$(VENV)/.installed-dev: requirements-dev.txt requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUICKLY) -r requirements-dev.txt
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) runs data_cache
