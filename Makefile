# Everything that people and CI run. Set-up happens by itself, and again only when what is to be installed changes.
#
#   make demo    build recipes/digits.yaml, time the bundles, say where the report lies
#   make test    linters, types, import layers and every test: what CI runs
#   make emulators    fetch qemu and an ARM64 Python: 140 MB, once (docs/emulated-cpus.md)
#
# Where pip should look for packages is pip's own configuration (PIP_EXTRA_INDEX_URL and so on).

# The first of these that works and is new enough; PYTHON=... names another.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Compiling all that is installed takes a third of the set-up; Python compiles what is used when it is first used.
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

PYTEST_ARGS ?= --numprocesses 2 --dist loadfile

.PHONY: help demo test lint setup emulators constraints clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed
	$(BIN)/qdeploy build recipes/digits.yaml
	$(BIN)/qdeploy bench runs/digits
	@echo "The report with its pictures: $(CURDIR)/runs/digits/report.html"

# A file's tests stay together: they share what they build. One after the other: make test PYTEST_ARGS=
test: lint
	$(BIN)/pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/.installed-dev

emulators: $(VENV)/.installed
	$(BIN)/python -m qdeploy.targets._emulators

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "qdeploy needs Python 3.11 or later: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing into $(VENV); the first time takes about a minute and 1.5 GB."
	$(INSTALL) -e ".[build]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing into $(VENV); the first time takes about a minute and 1.5 GB."
	$(INSTALL) -e ".[build,dev]"
	@touch $(VENV)/.installed $@

# The newest versions that pyproject.toml allows, tried in an environment of their own, written down as the new pins.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet -e ".[build,dev]"
	{ sed -n '/^#/p' constraints.txt; \
	  build/constraints/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
