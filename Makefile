# Two commands: `make demo` and `make test`. All they need goes into .venv; nothing else on the machine changes.
# DIR=folder     where the demo goes (default ki67-demo)
# PYTHON=python  which Python .venv is made with (default: the first of these that is 3.11 or newer)
DIR ?= ki67-demo
PYTHON ?= python3.11 python3.12 python3.13 python3

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt

.PHONY: help demo test lint format types imports unit venv clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo    synthetic slides, two trained models, a Ki-67 index in a QuPath project (DIR=$(DIR))"
	@echo "make test    all checks: lint, types, import contracts, tests"
	@echo "make venv    only set up .venv for development"
	@echo "make lint | format | types | imports | unit    one of the checks"
	@echo "make clean   remove .venv and all caches"

demo: $(VENV)/.installed
	$(BIN)/qupath-ext demo "$(DIR)"

test: lint types imports unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-logo

unit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q --numprocesses auto --dist loadfile

venv: $(VENV)/.installed-dev

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing qupath-ext into $(VENV); the first time takes some minutes"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing qupath-ext and its development tools into $(VENV); the first time takes some minutes"
	@$(INSTALL) --editable ".[dev]"
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@for python in $(PYTHON); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    found=$$("$$python" -c 'import sys; print(sys.executable)'); \
	    if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "making $(VENV) with $$found"; exec "$$python" -m venv --clear $(VENV); \
	    fi; \
	done; \
	if [ -n "$$found" ]; then \
	    echo "error: $$found cannot make virtual environments; expected: the modules venv and ensurepip;" \
	        "on Debian or Ubuntu install python3-venv, or name another Python: make PYTHON=/path/to/python3.11" >&2; \
	else \
	    echo "error: no Python 3.11 or newer under the names: $(PYTHON);" \
	        "install one from python.org or name it: make PYTHON=/path/to/python3.11" >&2; \
	fi; exit 1
