# make demo [DATA=DIR] [OUT=DIR]   install, then the whole main job: on a phantom cohort, or on DATA in PanTS's layout
# make test                        install, then the tests;  make test-long: those too long for every change
# make lint                        ruff and mypy;            make clean: remove the environment and what tools left
# make wheelhouse [WHEELHOUSE=DIR] [CPU=1]   what to carry to a machine without network (docs/slurm.md);   make lock: newest versions
# PYTHON (3.11 or newer) makes the environment VENV.

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
WHEELHOUSE ?= wheelhouse
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
COMPILE = { $(BIN)/python -m compileall -q -j 0 "$(VENV)/lib" >/dev/null 2>&1 || true; }  # on all cores, which pip does not
WHEELS = $(BIN)/python -m pip --disable-pip-version-check --quiet download --no-deps --dest "$(WHEELHOUSE)"

.PHONY: demo test test-long lint lock wheelhouse clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/pants-dist demo $(if $(DATA),--data "$(DATA)") --out "$(OUT)"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 40

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
	@$(PIP) -e . && $(COMPILE) && touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV), once: torch, test tools and others are downloaded (up to 5 GB), which may take some minutes"
	@$(PIP) -e '.[dev]' && $(COMPILE) && touch $@ $(VENV)/installed

# CPU=1: torch without CUDA, from its own index or PIP_FIND_LINKS; all else as locked
wheelhouse: $(VENV)/bin/python
	@mkdir -p "$(WHEELHOUSE)"
	@awk '/^[^ #]/ { keep = !("$(CPU)" && /^(torch|triton|nvidia|cuda)[-=]/) } keep' requirements.lock >"$(WHEELHOUSE)/requirements.lock"
	@$(WHEELS) --require-hashes --requirement "$(WHEELHOUSE)/requirements.lock"
	@$(if $(CPU),$(WHEELS) --extra-index-url https://download.pytorch.org/whl/cpu "$$(awk '/^torch==/ { print $$1 "+cpu" }' requirements.lock)")
	@$(BIN)/python -m pip --disable-pip-version-check --quiet wheel --no-deps --wheel-dir "$(WHEELHOUSE)" .
	@echo "$$(ls "$(WHEELHOUSE)" | wc -l) files, $$(du -sh "$(WHEELHOUSE)" | cut -f1). On a machine without network:"
	@echo "  python3 -m venv ENV && ENV/bin/pip install --no-index --find-links $(WHEELHOUSE) pants-dist"

lock: $(VENV)/bin/python
	@$(PIP) uv
	@$(BIN)/uv pip compile pyproject.toml --constraint .ci/constraints.txt --generate-hashes --universal --python-version 3.11 \
	  --quiet --no-header --no-annotate --output-file requirements.lock $(UPGRADE)

clean:
	rm -rf "$(VENV)" build dist .mypy_cache .pytest_cache .ruff_cache
