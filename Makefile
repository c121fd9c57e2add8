# Every target does its own set-up; a machine needs git, make and Python 3.11 or newer (`make help`).
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help env finish-env test reproduce retrain lab lint lock check-engines clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY ?= $(VENV)/bin/python
SCALE ?= nano
JOBS ?= 2
DVC_FLAGS ?= --force
STAMP := $(VENV)/.omnilib-ready
# The torch wheel on PyPI carries 3 GB of CUDA libraries; a machine without a GPU can name PyTorch's own index of CPU wheels here.
TORCH_INDEX ?=
export PYTHONNOUSERSITE := 1
export DS_BUILD_OPS := 0
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

help:  ## this list
	@echo "usage: make <target> [PYTHON=python3.12] [SCALE=smoke|nano]"
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

env: $(STAMP)  ## create .venv and install requirements.lock (once; a second call is instant)

$(STAMP): requirements.lock requirements-nodeps.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python {sys.version.split()[0]} is too old"' \
	  || { echo "Python 3.11 or newer is needed: make env PYTHON=/path/to/python3.11"; exit 2; }
	@echo "[1/4] virtual environment in $(VENV)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "[2/4] torch (200 MB on a CPU machine)"
	@spec=$$(grep -oE '^torch==[0-9.]+' requirements.lock); \
	$(PY) -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != sys.argv[1].split("==")[1])' $$spec 2>/dev/null \
	  || { [ -n "$(TORCH_INDEX)" ] && $(PY) -m pip install --quiet --no-deps --retries 0 --timeout 15 --index-url $(TORCH_INDEX) $$spec 2>/dev/null; } \
	  || $(PY) -m pip install $$spec
	@echo "[3/4] $$(grep -c == requirements.lock) packages of requirements.lock (some minutes)"
	@$(PY) -m pip install --requirement requirements.lock
	@$(MAKE) --no-print-directory finish-env
	@touch $@

finish-env:  ## what a requirements file cannot say (conda users: make finish-env PY=python)
	@echo "[4/4] omnilib itself, Resemblyzer, the torch/torchaudio pair"
	@$(PY) -m pip install --quiet --no-deps --requirement requirements-nodeps.lock
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(PY) -m omnilib.environment torchaudio

test: env  ## every test (at most 30 minutes on 2 cores); TESTS="tests/test_cli.py -k help" for a part
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile $(TESTS)

reproduce: env  ## re-evaluate the committed checkpoints, run every notebook, rebuild reports/ (about half an hour)
	$(PY) -m omnilib.cli reproduce --scale $(SCALE)

retrain: env check-engines  ## rebuild the corpus, train every checkpoint, reproduce (hours; after a stop: DVC_FLAGS=)
	PATH=$(abspath $(VENV))/bin:$$PATH $(PY) -m omnilib.retrain $(DVC_FLAGS)

check-engines: env
	@$(PY) -m omnilib.environment apt

lab: env  ## open the notebooks in JupyterLab
	$(PY) -m jupyter lab notebooks/00_start_here.ipynb

lint: env  ## ruff check and format, notebooks without outputs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lock: env  ## write requirements.lock from the packages now in .venv
	$(PY) -m omnilib.environment lock

clean:  ## remove the environment, caches and run folders (data/ and checkpoints/ stay)
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
