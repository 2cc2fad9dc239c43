# Everything from a fresh clone with only Python: `make demo`, `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test storm lint format clean

help:
	@echo "make demo    simulated brains, the whole pipeline, a report below demo/"
	@echo "make test    the test suite (under 10 minutes on two cores)"
	@echo "make storm   the slow tests: kills at random instants, every executor, floods"
	@echo "make lint    ruff and mypy"
	@echo "make format  rewrite the code in the project's format"

install: $(VENV)/installed

# plain: what a user has who only wants to look at a study
# dask-kubernetes: for the schema of its manifests alone, without what its operator needs
# torchvision lies apart: tests use its architectures, and transformers breaks where its compiled part does not load
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps --upgrade --target $(VENV)/torchvision torchvision
	$(PIP) --no-deps dask-kubernetes
	$(PYTHON) -m venv $(VENV)/plain
	$(VENV)/plain/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt xarray zarr dask
	touch $@

demo: install
	$(BIN)/bdflow demo

test: install
	$(BIN)/python -m pytest

storm: install
	$(BIN)/python -m pytest -m storm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
