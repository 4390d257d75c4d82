# Two commands do everything: `make train` and `make test`. Both set up what they need and are fast the second time.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv/.peers

.PHONY: setup train test test-all bench format check-format clean help
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv and install the locked versions

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), f"expected Python 3.11 to 3.13, found {sys.version}; run make PYTHON=python3.12"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

train: $(READY) ## train a math expert on the embedded base (minutes)
	$(BIN)/python train.py env=math

test: $(READY) check-format ## format, lint, types, imports and the tests (under 10 minutes)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

test-all: test ## the slow tests too
	$(BIN)/pytest -m slow

bench: $(READY) ## side-by-side measurements against other tools (a quarter of an hour): a table, and bench/results.json
	@test -e $(PEERS) || { $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[bench]' \
	  && touch $(PEERS); } || echo "not all peers could be installed; their rows will be left out"
	$(BIN)/python -m bench

format: $(READY) ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-format: $(READY) ## fail if the code is not in the project's style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## delete what can be made again; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
