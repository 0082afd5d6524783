# make demo   sets everything up and runs the main job on a phantom archive (8 to 17 minutes on two cores)
# make test   sets everything up and passes the tests
.DEFAULT_GOAL := help
.PHONY: help setup demo test quick parity beam bench carry lint clean

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
BIN := $(VENV)/bin
OUT ?= demo
MINUTES ?= 10
SEED ?= 0
WORKERS ?= 2

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "jaxseg needs Python 3.11 or newer: none found on the PATH (or say make PYTHON=/path/to/python3.12)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

setup: $(BIN)/.installed

demo: setup
	$(BIN)/jaxseg demo --out $(OUT) --minutes $(MINUTES) --seed $(SEED)

test: setup lint
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not parity'

quick: setup
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not parity'

# torch must come first, and exactly this version: any other request brings gigabytes of GPU libraries.
parity: setup
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable '.[dev,parity]'
	JAXSEG_REQUIRE_PARITY=1 $(BIN)/python -m pytest -n $(WORKERS) -m parity

# In an environment of its own: apache-beam wants older versions of what tensorflow-datasets and pyarrow share.
beam:
	@test -n "$(PYTHON)"
	@test -x $(VENV)-beam/bin/python || $(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --editable '.[dev,beam]'
	$(VENV)-beam/bin/python -m pytest tests/data/test_beam.py

# Beside PyTorch and MONAI, which `make parity` installs. ARGS="unetr --rounds 5" chooses.
bench: setup
	$(BIN)/python -m bench $(ARGS)

# For a machine with a GPU, JAX, flax and PyTorch but no network: what `python -m bench --gpu` needs besides, about 50 MB in .carried. There:
#   PYTHONPATH=.carried python3 -m bench --gpu --budget-minutes 9
CARRY_PYTHON ?= 3.12
CARRY := array-record grain immutabledict nibabel promise tensorflow-datasets tensorflow-metadata toml googleapis-common-protos \
	importlib-resources simple-parsing docstring-parser dm-tree termcolor tyro typeguard einops jaxtyping safetensors \
	monai dynamic-network-architectures zlib-ng portpicker
carry: setup
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --upgrade --target .carried --python-version $(CARRY_PYTHON) $(CARRY)
	@du -sm .carried

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
