# Set-up, demo, tests and benchmarks of merganser. Needs git, make and Python 3.11 or newer; installs the rest in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo zoo zoo-report test nightly lint bench parity clean
.DEFAULT_GOAL := help

help: ## Show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## Make .venv and install merganser with everything the tests and the demo need

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("merganser needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is about 200 MB; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: $(STAMP) ## Fine-tune two siblings of a real encoder, merge them four ways, score them
	@PYTHONPATH=examples $(BIN)/python -m demo

zoo: $(STAMP) ## Train the models that merges are judged on (50 minutes on two free cores; ZOO_CUT=small: 3)
	@PYTHONPATH=.:examples $(BIN)/python -m zoo

zoo-report: zoo ## Merge the zoo with every method and score it; writes docs/zoo.md (hours on two cores; goes on where it was)
	@PYTHONPATH=.:examples $(BIN)/python -m zoo.report

test: $(STAMP) lint ## Lint, types, layering, and all tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4

nightly: $(STAMP) ## The long sweeps that `make test` leaves out, with quantizers installed (about an hour on two cores)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[nightly]"
	@$(BIN)/python -m pytest -m nightly -n auto --maxprocesses 4

lint: $(STAMP) ## ruff, mypy and the import contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --quiet 2>/dev/null || $(BIN)/lint-imports

bench: $(STAMP) ## Measure against cat + cp and against mergekit; writes docs/benchmarks.md (long)
	@$(BIN)/python benchmarks/run.py

parity: $(STAMP) ## Run mergekit 0.1.5 and merganser on the same recipes; writes docs/parity.md (15 minutes)
	@$(BIN)/python parity/run.py

clean: ## Remove .venv and caches inside the repository
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
