# Two commands on a fresh machine: `make demo` and `make test`. Neither asks anything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint check fast nightly install-demo install-test clean

install-demo:
	@$(PYTHON) tools/setup_venv.py offline

install-test:
	@$(PYTHON) tools/setup_venv.py offline test

demo: install-demo
	@tools/demo

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/python -m pytest -m "not nightly"

# The suite without linters, stopping at the first failure: for the inner loop.
fast: install-test
	$(BIN)/python -m pytest -x -m "not nightly"

nightly: install-test
	$(BIN)/python -m pytest -m nightly --timeout 7200

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
