# Start with `make demo`. OUT=DIR says where its output goes, DATA=DIR takes a PTB-XL folder, PYTHON=python3.12 chooses the
# interpreter, VENV=DIR the virtual environment.
# The first Python 3.11 to 3.13 that can make a virtual environment.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c '$(USABLE)' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= $(if $(DATA),demo-data,demo)
SEED ?= 0
PATIENTS ?= 1000
EPOCHS ?= 80

export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.torch_extensions
ifneq ($(wildcard ../shared/data),)
export UMBRA_REAL_DATA ?= $(abspath ../shared/data)
endif

# Test files run side by side, each with processes of its own: more threads than that would only wait for a core.
JOBS ?= 2
test test-full: export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-full gpu lint keys clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@python='$(PYTHON)'; $${python:-false} -c '$(USABLE)' 2>/dev/null || { \
	  echo "error: $${python:-python3} is not a Python 3.11, 3.12 or 3.13 with venv; install one (Debian: apt install python3-venv), or name it: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[dev]'
	@touch $@

demo: setup
	@PATH="$(abspath $(BIN)):$$PATH" DATA="$(DATA)" OUT="$(OUT)" SEED=$(SEED) PATIENTS=$(PATIENTS) EPOCHS=$(EPOCHS) bash demo.sh

test: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not full and not slurm and not gpu"

test-full: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "full or slurm or gpu"

gpu: setup  # what this machine's GPU makes of it, in 8 minutes
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m benchmarks.gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

keys: setup  # the reference pages of the config keys
	@mkdir -p docs/keys
	@for name in pretrain shard transfer study; do $(BIN)/python -m umbra.config $$name > docs/keys/$$name.md || exit 1; done

clean:  # caches only: what a run or the demo wrote is yours to delete
	rm -rf .torch_extensions .pytest_cache .ruff_cache .mypy_cache .hypothesis
