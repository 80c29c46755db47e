# Everything happens in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
DEMO   ?= demo
SUITE  ?= suite.json
# Processes that share the test files. Files stay whole: their fixtures are made once.
JOBS   ?= 2
PYTEST  = $(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test warm coverage lint wheel bench bench-plot docs clean

help:
	@echo "make demo   install, run the main job on the shipped genomes, print what was found"
	@echo "make test   install, lint, check types, run all tests"
	@echo "make coverage   the tests again, with what of the Python code they run; coverage.xml"
	@echo "make bench  run the benchmarks; uses a GPU when there is one"
	@echo "make bench-plot   time every kernel (SUITE=suite.json), draw the times over the window length"
	@echo "make docs   build the documentation into docs/_build/html; warnings are errors"
	@echo "make wheel  build the wheel into dist/"
	@echo "make clean  remove what these targets made"

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bertgeom needs Python 3.11 or newer, found %d.%d; set PYTHON=" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[report]"
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[test,lint,report,casestudy,bench]"
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e ".[docs,report,casestudy]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/bertgeom warm
	$(BIN)/bertgeom demo --out $(DEMO)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/types_of_wheel.py

# Once, ahead of the tests: two of their processes would compile the same functions side by side.
warm: $(VENV)/.test
	@$(BIN)/bertgeom warm

test: lint warm
	$(PYTEST)

$(VENV)/.coverage: $(VENV)/.test
	$(PIP) -e ".[coverage]"
	@touch $@

coverage: $(VENV)/.coverage warm
	$(PYTEST) --cov --cov-report=term --cov-report=xml

bench: $(VENV)/.test
	$(BIN)/python -m bench.run

# A JSON that is there already is drawn as it is.
$(SUITE): | $(VENV)/.test
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-json=$(SUITE)

bench-plot: $(SUITE)
	$(BIN)/python -m bench.suite.plot $(SUITE)

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

wheel: $(VENV)/.test
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps -w dist .

clean:
	rm -rf .coverage* coverage.xml
	rm -rf $(VENV) build dist docs/_build bertgeom.egg-info $(DEMO) .pytest_cache .mypy_cache .ruff_cache
