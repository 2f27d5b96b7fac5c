# Everything runs in .venv. PYTHON picks the interpreter that makes it: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help setup demo test lint format cover bench clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.dev  ## Make .venv with everything that development needs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mplan (PyTorch and OR-Tools are large; a few minutes on a slow line) ..."
	$(BIN)/python -m pip install --quiet -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mplan and its development tools ..."
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	bash tools/system_packages.sh
	$(BIN)/python -m mplan.cli doctor --prepare > /dev/null
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## Train a digits CNN, compile it for an STM32F746, run it in the emulator
	$(BIN)/python examples/digits.py --out demo-out

test: $(VENV)/.dev  ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

cover:  ## Run all tests and require 95 % coverage of ir/ and passes/
	$(MAKE) test PYTEST_ARGS="--cov=mplan/ir --cov=mplan/passes --cov-report="
	$(BIN)/python -m coverage report --fail-under=95

lint: $(VENV)/.dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## Run the benchmarks
	for script in attention memory planner mcu; do $(BIN)/python benchmarks/$$script.py; done

clean:  ## Remove .venv and everything generated
	rm -rf $(VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache .coverage*
