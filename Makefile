# Everything runs in .venv, which is made on first use. Two knobs:
#   PYTHON  the interpreter that makes .venv (3.11 or newer)
#   TORCH   the torch to install; set PIP_EXTRA_INDEX_URL as well if your build of it (CPU only, ROCm) is on another index
PYTHON ?= python3
TORCH ?= torch==2.13.0

BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## make .venv and install the package with everything needed to work on it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Expunge needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo not there). Name a newer one: make setup PYTHON=python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)"
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## serve ten requests with the built-in model, and write a page about it
	$(BIN)/expunge demo --out runs/demo

test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## check style, types and the order of imports between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

clean:  ## delete .venv, builds and caches; runs/ stays
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
