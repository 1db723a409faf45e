# A newcomer needs two commands: `make quickstart` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# The pinned set for this interpreter; CONSTRAINTS= (empty) takes the newest versions pyproject allows.
PYTAG := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
CONSTRAINTS ?= constraints-$(PYTAG).txt
TORCH ?= torch==2.13.0
# Test processes, for two cores; `make test` has one more, as its two longest files mostly wait for Slurm.
WORKERS ?=
PYTEST_WORKERS = 3
PYTEST_FLAGS ?=
PYTEST ?= $(BIN)/python -m pytest -n $(or $(WORKERS),$(PYTEST_WORKERS)) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

# Containers often set it. Every process of the tests, some hundreds, would compile the package and the tests anew.
unexport PYTHONDONTWRITEBYTECODE

ROUNDS ?= 100
FUZZ_MINUTES ?= 5

.PHONY: .types quickstart smoke test test-fast test-unit chaos fuzz check format install clean help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/.installed  ## the whole pipeline on real text, ending with a report to open
	$(BIN)/tsugiki run configs/quickstart.yaml

smoke: $(VENV)/.installed  ## the same graph on a few hundred short documents, in about a minute
	$(BIN)/tsugiki run configs/smoke.yaml

test: PYTEST_WORKERS = 4
test: $(VENV)/.installed  ## all tests
	$(PYTEST) tests

test-fast: $(VENV)/.installed  ## unit tests that take seconds, in under two minutes
	$(PYTEST) -m 'not slow' tests/unit

test-unit: $(VENV)/.installed  ## unit and distributed tests only
	$(PYTEST) tests/unit tests/distributed

chaos: $(VENV)/.installed  ## whole runs under random kills, ROUNDS=100 of them; goes on where it was ended
	OMP_NUM_THREADS=1 $(BIN)/python tests/support/chaos.py --rounds $(ROUNDS) --out runs/chaos

fuzz: $(VENV)/.installed  ## fuzzers on other examples than those of make test, FUZZ_MINUTES=5
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz --fuzz-minutes $(FUZZ_MINUTES)

check: $(VENV)/.installed .types  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .types && ../$(BIN)/mypy --config-file ../pyproject.toml

# mypy does not read the editable install: the package as a tree of links.
.types:
	rm -rf .types && mkdir -p .types/tsugiki
	cd .types/tsugiki && ln -s ../../tsugiki/* . && \
	  for room in data tokenizer pretrain evaluation experiment slurm; do ln -s ../../$$room .; done

format: $(VENV)/.installed  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/.installed  ## set up .venv

# torch goes first and alone: once a CPU build is there, nothing pulls CUDA packages afterwards.
$(VENV)/.installed: pyproject.toml $(wildcard $(CONSTRAINTS))
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + "; give another one: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

clean:  ## remove the environment, caches and runs of the quick start and the tests
	rm -rf $(VENV) .venv312 .mypy_cache .ruff_cache .pytest_cache .hypothesis .types *.egg-info build runs/quickstart runs/smoke
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
