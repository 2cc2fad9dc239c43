# Everything from a fresh clone with only Python: `make demo`, `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test storm siege lint format clean

help:
	@echo "make demo    simulated brains, the whole pipeline, a report below demo/"
	@echo "make test    the test suite (under 10 minutes on two cores)"
	@echo "make storm   the slow tests: kills at random instants, every executor, floods"
	@echo "make siege   a real SLURM, a real S3 server, every fault (as root; apt: slurm-wlm munge)"
	@echo "make lint    ruff and mypy"
	@echo "make format  rewrite the code in the project's format"

install: $(VENV)/installed

# what tests of object stores need and what does not go together with the newest of the rest (python-dateutil)
S3 := 'moto[s3]==5.2.5' boto3==1.43.117 botocore==1.43.117 flask==3.1.3 flask-cors==6.0.5 joserfc==1.8.0 s3fs==2026.9.0 \
	xarray==2026.9.0 zarr==3.1.6 dask==2026.8.0 obstore==0.12.1

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
	$(PYTHON) -m venv $(VENV)/s3
	$(VENV)/s3/bin/python -m pip install --quiet --disable-pip-version-check $(S3)
	touch $@

demo: install
	$(BIN)/bdflow demo

test: install
	$(BIN)/python -m pytest

storm: install
	$(BIN)/python -m pytest -m storm

# as root, with slurm-wlm and munge installed
siege: install
	$(BIN)/python -m pytest -m siege

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
