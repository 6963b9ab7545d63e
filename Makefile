# Everything happens inside this folder: the environment in .venv, caches in .cache, results in outputs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HERE := $(CURDIR)
export PIP_CACHE_DIR := $(HERE)/.cache/pip
export XDG_CACHE_HOME := $(HERE)/.cache
export XDG_CONFIG_HOME := $(HERE)/.cache/config
export ZOLAB_CACHE_DIR := $(HERE)/.cache/zolab
export HF_HOME := $(HERE)/.cache/huggingface
export WANDB_CACHE_DIR := $(HERE)/.cache/wandb
export WANDB_CONFIG_DIR := $(HERE)/.cache/wandb
export WANDB_DATA_DIR := $(HERE)/.cache/wandb
export MPLCONFIGDIR := $(HERE)/.cache/matplotlib
export OMP_WAIT_POLICY := passive

.PHONY: demo test test-slow lint format bench chaos clean

demo: $(VENV)/.ready
	$(BIN)/zolab experiment=demo sweep.retry=failed
	$(BIN)/zolab report outputs/demo/runs --out outputs/demo/report

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n 2 -m "not slurm and not slow" $(ARGS)
	# One process for the tests of the cluster: two clusters do not come up at the same time.
	$(BIN)/python -m pytest -q -m "slurm and not slow" $(ARGS)

test-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n 2 -m slow $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Everything that happens to jobs, to one sweep at once, on a private SLURM (see docs/slurm.md).
chaos: $(VENV)/.ready
	$(BIN)/python -m tests.slurm.chaos

bench: $(VENV)/.ready
	for part in step kernels forward memory drift startup logging; do \
	  $(BIN)/zolab bench $$part --json benchmarks/results/$$part.json || exit 1; done

clean:
	rm -rf $(VENV) .cache outputs runs dist build .pytest_cache .ruff_cache

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,figures]"
	touch $@
