# The front door. `make help` lists the targets; README.md explains them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-pairwise demo-maths demo-synthetic test test-long test-gpu bench lint format clean

PYTHON ?= python3
VENV ?= .venv
# A wheel index with CPU builds of PyTorch, for machines without a GPU, e.g. TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# DATA=<folder in the Eedi layout> runs the demo on it; OUT=<folder> says where to; FRESH=1 starts over
DATA ?=
OUT ?= outputs/demo$(if $(DATA),-$(notdir $(patsubst %/,%,$(DATA))))
FRESH ?=

RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OFFLINE := HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup: $(STAMP) ## make .venv and install the pinned requirements (done by the other targets when needed)

# The stamp carries the hash of what was installed, so a changed lock reinstalls and an unchanged one costs nothing.
LOCK_HASH := $(shell cat requirements.txt requirements-dev.txt constraints.txt pyproject.toml tools/bootstrap.sh 2>/dev/null | sha256sum | cut -c1-16)
$(STAMP): $(if $(filter $(LOCK_HASH),$(shell cat $(STAMP) 2>/dev/null)),,force-install)
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" bash tools/bootstrap.sh
	@echo $(LOCK_HASH) > $(STAMP)
.PHONY: force-install
force-install:

demo: $(STAMP) ## the whole chain with tiny models on the CPU, about 8 minutes (DATA=, OUT=, FRESH=1)
	@$(OFFLINE) $(RUN) code/demo.py output_dir=$(OUT) $(if $(DATA),data_dir=$(DATA)) $(if $(filter 1,$(FRESH)),fresh=true)

demo-pairwise: $(STAMP) ## both forms of the pairwise judge with tiny models on the CPU
	@$(OFFLINE) $(RUN) code/demo_pairwise.py $(if $(filter 1,$(FRESH)),fresh=true)

demo-maths: $(STAMP) ## difficulty-adaptive fine-tuning on built-in word problems, tiny models on the CPU (FRESH=1)
	@$(OFFLINE) $(RUN) code/demo_maths.py $(if $(filter 1,$(FRESH)),fresh=true)

demo-synthetic: $(STAMP) ## synthetic data against a local fake server (no key, no network)
	@$(OFFLINE) $(RUN) synthetic/demo.py outputs/demo_synthetic

test: $(STAMP) ## the tests, in parallel over the cores
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not long and not gpu"

test-long: $(STAMP) ## the long suites as well (an hour); interrupted, it goes on where it stopped
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "not gpu" --ledger=outputs/long_tests_passed.txt

test-gpu: $(STAMP) ## the tests that need GPUs
	@$(OFFLINE) GPU_TESTS=1 $(RUN) -m pytest -m gpu

lint: $(STAMP) ## ruff and mypy
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: $(STAMP) ## let ruff rewrite what it can
	@$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

bench: $(STAMP) ## all benchmarks beside their peers: writes docs/benchmarks.md (QUICK=1 for small shapes)
	@$(VENV)/bin/python -m pip install --quiet -r requirements-bench.txt
	@$(OFFLINE) $(RUN) benchmarks/run_all.py $(if $(filter 1,$(QUICK)),--quick)

clean: ## delete outputs/ (asks first)
	@read -p "delete outputs/? [y/N] " answer && [ "$$answer" = y ] && rm -rf outputs
