# Two commands on a fresh machine: `make demo` and `make test`. Neither asks anything.
PYTHON ?= python3
BIN := .venv/bin
# Most tests keep one processor busy. Each worker holds a torch and some daemons, so a large machine gets four too.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

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
	$(PYTEST)

# The suite without linters, stopping at the first failure: for the inner loop.
fast: install-test
	$(PYTEST) -x

# The same tests with everything of which `test` takes a sample (tests/amount.py); it tells what each of them saw.
nightly: install-test
	NIGHTLY=1 $(PYTEST) -rP --show-capture stdout --timeout 7200

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
