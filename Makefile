# `make` alone lists the targets. Every one of them makes the virtual environment it needs.

PYTHON ?= python3
# More arguments for pip when it installs torch: where to find a CPU build, for example.
TORCH_ARGS ?=
# Processes of the test suite ("auto": one for each available core), and more arguments for pytest.
JOBS ?= auto
PYTEST_ARGS ?=

# What the two long targets run.
# One thread: nets of this size gain nothing from a second, and on a busy machine it makes them several times slower.
COMPARE = OMP_NUM_THREADS=1 $(BIN)/bayesnn compare digits --net mlp --net lenet5 --epochs 60 --out results/digits
BENCH = OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench.py --out results/bench.json

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help compare test lint types bench bench-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=python3.12  TORCH_ARGS='--index-url ...'  JOBS=4  PYTEST_ARGS='-m \"not slow\"'"

compare: $(VENV)/.stamp-run ## compare the methods on the digits; the report is results/digits/report.html
	$(COMPARE)

# One thread in each worker: several processes that each start a thread for every core slow one another down.
test: $(VENV)/.stamp-test ## run the whole test suite, in parallel
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.stamp-test ## check style with ruff
	$(BIN)/ruff check .

types: $(VENV)/.stamp-test ## check types with mypy, strictly
	$(BIN)/mypy

bench: $(VENV)/.stamp-run ## what the library costs beside plain training, as ratios with their bounds
	$(BENCH)

bench-check: $(VENV)/.stamp-run ## the same, and fail where a ratio is 15 % worse than benchmarks/baseline.json
	$(BENCH) --check benchmarks/baseline.json

clean: ## remove the virtual environment, caches and builds; results/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched after its step succeeded, so a step that was interrupted is done again.

$(VENV)/.stamp-venv:
	@command -v $(PYTHON) > /dev/null || { echo "expected Python 3.11 or newer, but there is no $(PYTHON): run make with PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "expected Python 3.11 or newer, but $(PYTHON) is %d.%d: run make with PYTHON=/path/to/python" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone, at its pin: the packages after it find it there and bring no build of their own.
$(VENV)/.stamp-torch: $(VENV)/.stamp-venv constraints.txt
	$(INSTALL) $(TORCH_ARGS) torch
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-torch pyproject.toml constraints.txt
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-torch pyproject.toml constraints.txt
	$(INSTALL) --editable '.[test]'
	@touch $@
