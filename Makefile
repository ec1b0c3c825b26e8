# Start with `make demo`. PYTHON=python3.12 chooses the interpreter, VENV=DIR the virtual environment.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= demo
SEED ?= 0
PATIENTS ?= 1000
EPOCHS ?= 80

export TORCH_EXTENSIONS_DIR ?= $(CURDIR)/.torch_extensions
ifneq ($(wildcard ../shared/data),)
export UMBRA_REAL_DATA ?= $(abspath ../shared/data)
endif

.PHONY: setup demo test test-full lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; name a Python 3.11 or 3.12: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -e '.[test,lint]'
	@touch $@

demo: setup
	@PATH="$(abspath $(BIN)):$$PATH" DATA="$(DATA)" OUT="$(OUT)" SEED=$(SEED) PATIENTS=$(PATIENTS) EPOCHS=$(EPOCHS) bash demo.sh

test: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q -m "not full and not slurm and not gpu"

test-full: setup
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q -m "full or slurm or gpu"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(OUT) .torch_extensions
