# Each target does all set-up itself, in a .venv of the project's own; a second call starts at once.
#   make demo        the main job end to end, nothing downloaded but packages
#   make test        ruff, types, tests
#   make bench-tune  cost of tuning: paring and its peers, interleaved (about an hour on 2 cores)
# A faster or different build of PyTorch: make test TORCH_INSTALL="torch==2.13.0 --index-url https://..."

PYTHON ?= python3
TORCH_INSTALL ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.ready

.PHONY: demo test bench-tune lint clean
.DEFAULT_GOAL := test

# PyTorch first and by itself: with a CPU build found for it, nothing later pulls in another.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_INSTALL)
	$(PIP) --constraint constraints.txt --editable '.[train,plot,text,peers,dev]'
	touch $@

demo: $(READY)
	$(BIN)/paring demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

bench-tune: $(READY)
	$(BIN)/python benchmarks/tune_cost.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
