# Every target sets up what it needs. Variables: NP= ranks, PYTHON= interpreter,
# MPIEXEC= a site's own launcher (then no MPI wheel is installed), EXTRA= the MPI wheel's extra.
PYTHON ?= python3
NP ?= 8
EXTRA ?= mpich
VENV ?= .venv
BIN := $(VENV)/bin
ifdef MPIEXEC
extras := report,test,dev
else
MPIEXEC := $(abspath $(BIN))/mpiexec
extras := $(EXTRA),report,test,dev
endif
SETTINGS := $(VENV)/.settings
READY := $(VENV)/.ready
# One rank is to be one node: its BLAS gets one thread however many ranks share this machine.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest
# Ends a hung run by SIGTERM first: SIGKILL would leave mpiexec's ranks behind.
LIMIT := $(shell command -v timeout >/dev/null && echo "timeout --kill-after=20 600")

.DEFAULT_GOAL := help
.PHONY: help setup run test test-serial lint type ci bench clean

help:  ## list the targets
	@grep -hE '^[a-zA-Z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): setup.cfg pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "goco_mpi needs Python >= 3.11: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(extras)]'
	@touch $@

setup: $(READY)  ## create .venv with goco, an MPI and all tools

run: $(READY)  ## train on real data with one rank ten times slower, and compare (NP=8)
	@$(BIN)/python examples/demo.py --mpiexec '$(MPIEXEC)' -n $(NP)

test: test-serial test-1 test-2 test-3 test-4 test-8  ## all tests: serial, then on 1, 2, 3, 4, 8 ranks

test-serial: $(READY)
	$(PYTEST) -m "not mpi" --goco-mpiexec='$(MPIEXEC)'

test-%: $(READY)  ## the MPI tests on % ranks, such as make test-4
	$(LIMIT) $(MPIEXEC) -n $* env $(PYTEST) --only-mpi -q tests/engine

lint: $(READY)  ## ruff and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(READY)  ## mypy --strict
	$(BIN)/mypy

bench: $(READY)  ## measure: every figure a ratio to a raw limit measured in the same run
	$(BIN)/goco bench --mpiexec '$(MPIEXEC)'

ci:  ## everything, in a fresh virtual environment
	rm -rf .venv-ci
	$(MAKE) VENV=.venv-ci lint type test
	rm -rf .venv-ci

clean:  ## remove what make and the tests created
	rm -rf .venv .venv-ci build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find goco_mpi tests examples -name __pycache__ -type d -exec rm -rf {} +
