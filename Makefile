# make demo [DATA=DIR] [OUT=DIR]   install, then the whole main job: on a phantom cohort, or on DATA in PanTS's layout
# make test                        install, then the tests;  make test-long: those too long for every change
# make lint                        ruff and mypy;            make clean: remove the environment and what tools left
# PYTHON (3.11 or newer) makes the environment VENV.

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install

.PHONY: demo test test-long lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/pants-dist demo $(if $(DATA),--data "$(DATA)") --out "$(OUT)"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m long

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is missing or older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv "$(VENV)" || \
	  { echo "$(PYTHON) cannot make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV), once: torch and others are downloaded (up to 5 GB), which may take some minutes"
	@$(PIP) -e . && touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV), once: torch, test tools and others are downloaded (up to 5 GB), which may take some minutes"
	@$(PIP) -e '.[dev]' && touch $@ $(VENV)/installed

clean:
	rm -rf "$(VENV)" build dist .mypy_cache .pytest_cache .ruff_cache
