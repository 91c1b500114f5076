# Each target does all set-up itself, in a .venv of the project's own; a second call starts at once.
#   make demo        the main job end to end, nothing downloaded but packages
#   make test        ruff, types, tests
#   make bench-tune     cost of tuning: paring and its peers, interleaved (about an hour on 2 cores)
#   make bench-quality  whether slices learn as well as LoRA, SHiRA, MiSS and full fine-tuning (about two hours)
#   make bench-delta    time, memory and size of deltas (about 10 minutes on 2 cores)
#   make bench-fuse     time and memory of merges (about 15 minutes on 2 cores); MERGEKIT=/path/to/its/python beside mergekit's (40)
#   make bench-slim     how small a fine-tune gets before its task is lost (about two and a half hours), and what a candidate costs
#   make bench-merges   how much of several fine-tunes is left in one model (about two hours)
#   make bench-transfer what a fine-tune gains against what the base loses (about two hours)
#   make bench-probe    what a probe holds in memory on a checkpoint of 7 B parameters (about 15 minutes, 14 GB of disk)
#   make evidence       the paper's claims on a ViT and on MiniLM, and docs/evidence.md of them (about two and a half hours on 2 cores)
# Another build of PyTorch than a CPU one: make test TORCH="torch==2.13.0"

PYTHON ?= python3
MERGEKIT ?=
TORCH ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.ready

.PHONY: demo test bench-tune bench-quality bench-delta bench-fuse bench-slim bench-merges bench-transfer bench-probe evidence lint clean
.DEFAULT_GOAL := test

# PyTorch first and by itself, so that nothing later pulls in another build: a local CPU wheel where pip is set up to find one,
# else PyTorch's own CPU index, else whatever there is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH),)
	$(PIP) $(TORCH)
else
	$(PIP) torch==2.13.0+cpu 2>/dev/null || $(PIP) torch==2.13.0 --index-url $(CPU_INDEX) || $(PIP) torch==2.13.0
endif
	$(PIP) --constraint constraints.txt --editable '.[train,plot,text,peers,trl,ray,dev]'
	touch $@

demo: $(READY)
	$(BIN)/paring demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

bench-tune: $(READY)
	$(BIN)/python benchmarks/tune_cost.py

bench-quality: $(READY)
	$(BIN)/python benchmarks/tune_quality.py

bench-delta: $(READY)
	$(BIN)/python benchmarks/delta.py

bench-fuse: $(READY)
	$(BIN)/python benchmarks/fuse_speed.py --mergekit "$(MERGEKIT)"

bench-slim: $(READY)
	$(BIN)/python benchmarks/slim.py
	$(BIN)/python benchmarks/slim_cost.py

bench-merges: $(READY)
	$(BIN)/python benchmarks/fuse_quality.py

bench-transfer: $(READY)
	$(BIN)/python benchmarks/transfer.py

bench-probe: $(READY)
	$(BIN)/python benchmarks/probe_memory.py

evidence: $(READY)
	$(BIN)/python benchmarks/evidence.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
