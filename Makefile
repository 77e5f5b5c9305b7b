# `make demo` and `make test` set up what they need; both work from a fresh clone.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
WORK ?= out/demo
export OPENBLAS_NUM_THREADS = 1
export NPROC = 16

.PHONY: demo test lint types bench clean

$(VENV)/.product: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: vlm_jax needs Python 3.11 or 3.12 (set PYTHON=...)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.test: $(VENV)/.product
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

demo: $(VENV)/.product
	$(BIN)/python -m vlm_jax.testbed.demo --workdir=$(WORK)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright

clean:
	rm -rf out build
