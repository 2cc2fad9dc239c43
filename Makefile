# Everything from a fresh clone with only Python: `make demo`, `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# --no-compile: modules are compiled when they are first imported, a small part of all, and kept; where containers set
# this variable nothing would be kept, and each process would spend about 12 s on compiling torch and transformers again
export PYTHONDONTWRITEBYTECODE :=
FLAGS := --quiet --no-compile --disable-pip-version-check
PIP := $(BIN)/python -m pip install $(FLAGS) -c constraints.txt
# one pip for all environments: it is not installed anew into each
into = $(BIN)/python -m pip --python $(VENV)/$(1)/bin/python install $(FLAGS)

# tests of one file run in one process, files side by side; a process that dies ends the run, as xdist may wait for ever
# for what it would have done
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart=0

.PHONY: help install demo test slow integration rotated lint site format clean

help:
	@echo "make demo    simulated brains, the whole pipeline, a report below demo/"
	@echo "make test    the test suite (about 8 minutes on two cores; WORKERS=8 if there are more)"
	@echo "make slow    the slow tests: kills, every executor, floods, science"
	@echo "make integration   a real SLURM, a real S3 server, every fault in every stage (as root; apt: slurm-wlm munge)"
	@echo "make rotated ROTATE=WORD   of both, one test of each kind, drawn by the word, as CI does by the commit"
	@echo "make lint    ruff and mypy"
	@echo "make site    the documentation as pages that open from a file: site/index.html"
	@echo "make format  rewrite the code in the project's format"

# three environments side by side
install:
	@$(MAKE) --no-print-directory -j 3 $(VENV)/installed $(VENV)/plain/installed $(VENV)/s3/installed

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# dask-kubernetes: for the schema of its manifests alone, without what its operator needs
# torchvision lies apart: tests use its architectures, and transformers breaks where its compiled part does not load
# setuptools first: bdflow is built with it, and not with another that pip would fetch for that alone
$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt) setuptools
	$(PIP) --no-build-isolation -e '.[test,docs]'
	$(PIP) --no-deps --upgrade --target $(VENV)/torchvision torchvision
	$(PIP) --no-deps dask-kubernetes
	touch $@

# what a user has who only wants to look at a study
$(VENV)/plain/installed: constraints.txt | $(BIN)/pip
	$(PYTHON) -m venv --without-pip $(VENV)/plain
	$(call into,plain) -c constraints.txt xarray zarr dask
	touch $@

# what tests of object stores need and what does not go together with the newest of the rest (python-dateutil)
S3 := 'moto[s3]==5.2.5' boto3==1.43.117 botocore==1.43.117 flask==3.1.3 flask-cors==6.0.5 joserfc==1.8.0 s3fs==2026.9.0 \
	xarray==2026.9.0 zarr==3.1.6 dask==2026.8.0 obstore==0.12.1

$(VENV)/s3/installed: Makefile | $(BIN)/pip
	$(PYTHON) -m venv --without-pip $(VENV)/s3
	$(call into,s3) $(S3)
	touch $@

# the lowest versions that pyproject.toml promises; slow tests run a study with them
$(VENV)/lowest/installed: pyproject.toml tests/support/lowest.py | $(BIN)/pip
	$(PYTHON) -m venv --without-pip $(VENV)/lowest
	$(call into,lowest) torch==$$(sed -n 's/^torch==//p' constraints.txt) $$($(PYTHON) tests/support/lowest.py)
	$(call into,lowest) --no-deps -e .
	touch $@

demo: install
	$(BIN)/bdflow demo

test: install
	$(PYTEST)

slow: install $(VENV)/lowest/installed
	$(PYTEST) -m slow

# as root, with slurm-wlm and munge installed
integration: install
	$(PYTEST) -m integration

# these wait for processes that start, die and answer late more than they compute: one worker more; the files that
# take longest begin first (tests/support/rotation.py), which xdist's own order would undo
rotated: WORKERS := $(shell expr $(WORKERS) + 1)
rotated: install $(VENV)/lowest/installed
	$(PYTEST) --no-loadscope-reorder -m 'slow or integration' --rotate '$(ROTATE)'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# warnings are errors; the variable silences what Material says of MkDocs 2, which constraints.txt keeps out
site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
