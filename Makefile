# make demo | view | test | check.  Each makes .venv and installs what it needs when that is missing.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
DIR ?=
PORT ?= 8501

.PHONY: help venv venv-test venv-check demo view test check clean

help:
	@echo "make demo   train, index, name and trace on the bundled model; report in out/demo"
	@echo "make view   the viewer on http://127.0.0.1:$(PORT)  (DIR=... for your own dictionaries)"
	@echo "make test   all tests that need no network"
	@echo "make check  ruff, pyright and the tests that are not slow"
	@echo "make venv   only the virtual environment .venv"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "saekit needs Python 3.11 or newer with its venv module (Debian: apt install python3 python3-venv)."; exit 1; }
	$(PYTHON) -m venv .venv

# The stamps are remade when the list of dependencies changes.
.venv/.base: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

.venv/.test: .venv/.base
	$(INSTALL) -e '.[test]'
	@touch $@

.venv/.check: .venv/.test
	$(INSTALL) -e '.[test,check]'
	@touch $@

venv: .venv/.base
venv-test: .venv/.test
venv-check: .venv/.check

demo: .venv/.base
	$(BIN)/saekit demo --out out/demo

view: .venv/.base
	$(BIN)/saekit view $(DIR) --port $(PORT)

test: .venv/.test
	$(BIN)/python -m pytest

check: .venv/.check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m pytest -m "not slow and not network and not browser"

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
