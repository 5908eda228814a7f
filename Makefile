# Every target makes the environment it needs: .venv, made once, made anew when
# constraints.txt changes and updated when pyproject.toml does.
#
#   make demo PYTHON=/path/to/python3.12     choose the interpreter

PYTHON ?= python3
# The build of PyTorch that the benchmarks are compared with; a CPU build is enough.
TORCH ?= torch==2.13.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Two workers on two cores: TensorFlow, OpenBLAS and scikit-learn would otherwise start
# two threads in each of them. A file is one worker's, so that its fixtures are made once.
ONE_THREAD := TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 OMP_NUM_THREADS=1 \
    LOKY_MAX_CPU_COUNT=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

.PHONY: help install demo test test-all bench lint
.DELETE_ON_ERROR:

help:
	@echo "make install   installs everything into .venv; demo and test do so too"
	@echo "make demo      process, train, generate and evaluate the embedded data set"
	@echo "make test      the default tests"
	@echo "make test-all  slow tests too, and those on CELLGAN_DATA_DIR's real data"
	@echo "make bench     every script in benchmarks/"
	@echo "make lint      ruff, mypy, the rules of the architecture"

install: .venv/installed

demo: .venv/installed
	$(BIN)/python main.py --param parameters.json --process --train --generate --evaluate

test: .venv/installed
	$(PYTEST)

test-all: .venv/installed
	$(PYTEST) -m "not gpu"

bench: .venv/bench
	set -e; for script in $(filter-out %/turns.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_architecture.py

.venv/bench: .venv/installed
	$(PIP) "$(TORCH)" harmonypy scvi-tools
	@touch $@

.venv/installed: .venv/made pyproject.toml
	@echo "installing cellgan and what it needs into .venv (some minutes, once)"
	$(PIP) --editable ".[test]"
	@touch $@

.venv/made: constraints.txt
	@for python in "$(PYTHON)" python3.13 python3.12 python3.11; do \
	    if "$$python" -c 'import ensurepip, sys, venv; \
	        sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	        echo "making .venv with $$("$$python" --version)"; \
	        "$$python" -m venv --clear .venv && touch $@; exit; \
	    fi; \
	done; \
	echo "cellgan needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian and" >&2; \
	echo "Ubuntu: python3-venv); found: $$("$(PYTHON)" --version 2>&1)." >&2; \
	echo "    Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	exit 1
