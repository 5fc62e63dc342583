# nas-retrain: `make help` lists what there is to do.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

BENCH ?= 201
DATASET ?= cifar10
PROFILE ?= full
LAUNCHER ?= auto
SITE ?=
PLAN ?=
ARGS ?=
FUZZ_SECONDS ?= 3600
# Handed over in the environment and split by the scripts, so that nothing in it reaches a shell.
retrain plan status cancel verify analyze algorithms export cells bench: export NAS_RETRAIN_ARGS = \
  bench='$(value BENCH)' dataset='$(value DATASET)' profile='$(value PROFILE)' launcher='$(value LAUNCHER)' \
  $(if $(value SITE),site='$(value SITE)') $(if $(value ORIGINAL),"original='$(value ORIGINAL)'") \
  $(if $(value RETRAINED),"retrained='$(value RETRAINED)'") $(value ARGS)

.PHONY: help
help: ## Say what each target does
	@echo "nas-retrain: retrain NAS benchmarks with architecture-aware hyperparameters"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  BENCH, DATASET, PROFILE and LAUNCHER choose files of configs/, SITE one of slurm/site; ARGS sets any key:"
	@echo "  make retrain BENCH=201 DATASET=cifar100 ARGS=\"cells=sample:100 seeds=[777]\""
	@echo "  Every key with its meaning is in configs/; $(BIN)/python scripts/retrain.py --help lists them."

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: install
install: $(READY) ## Install the locked packages into .venv

.PHONY: dry-run
dry-run: PROFILE = dry
dry-run: DATASET = digits
dry-run: LAUNCHER = local
dry-run: retrain ## Retrain a sample of cells on scikit-learn's digits, here, in minutes; writes results/201/digits

.PHONY: reference
reference: PROFILE = reference
reference: DATASET = fashion_mnist
reference: LAUNCHER = local
reference: retrain ## Whose ranking is right? 300 classes on Fashion-MNIST, here, in hours; writes results/201/fashion_mnist

.PHONY: retrain
retrain: $(READY) ## Plan, base rate, trainings and analysis, here or on SLURM; run again to continue. PLAN=1 as make plan
	$(BIN)/python scripts/$(if $(filter-out 0,$(PLAN)),plan,retrain).py

.PHONY: plan
plan: $(READY) ## Print what retrain would do and what it would cost; starts nothing
	$(BIN)/python scripts/plan.py

.PHONY: status
status: $(READY) ## Tell where a retraining stands
	$(BIN)/python scripts/status.py

.PHONY: cancel
cancel: $(READY) ## Cancel the retraining's jobs on SLURM, and no others
	$(BIN)/python scripts/cancel.py

.PHONY: verify
verify: $(READY) ## Compare predicted with searched learning rates: BENCH=mlp, cnn or 201. PLAN=1: only say what it would do
	$(BIN)/python scripts/$(if $(filter-out 0,$(PLAN)),plan.py --config-name verify,verify.py)

.PHONY: analyze
analyze: $(READY) ## Compare rankings: ORIGINAL=path [RETRAINED=path]; without them the recipes of the results folder
	$(BIN)/python scripts/analyze.py

.PHONY: algorithms
algorithms: $(READY) ## Replay search algorithms on ORIGINAL=path and [RETRAINED=path]: ranking, cost of the wrong table
	$(BIN)/python scripts/algorithms.py

.PHONY: export
export: $(READY) ## Write the retrained accuracies for nas-bench-201, nats_bench and as tables, below the results folder
	$(BIN)/python scripts/export.py

.PHONY: cells
cells: $(READY) ## Write the table of all cells, results/201/cells.csv
	$(BIN)/python scripts/cells.py

.PHONY: bench
bench: PROFILE = dry
bench: DATASET = digits
bench: $(READY) ## Measure speed here against the straightforward way; writes results/201/speed
	$(BIN)/python scripts/bench.py

.PHONY: test
test: $(READY) ## Run the everyday tests, in minutes
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

.PHONY: test-all
test-all: $(READY) ## Run all tests, with the soak and the long ones
	$(BIN)/python -m pytest $(ARGS)

.PHONY: fuzz
fuzz: export FUZZ_SECONDS := $(value FUZZ_SECONDS)
fuzz: $(READY) ## Feed damaged and hostile files to every reader, for FUZZ_SECONDS (an hour)
	$(BIN)/python -m tests.fuzz --seconds "$$FUZZ_SECONDS"

.PHONY: release-check
release-check: $(READY) ## Build the packages, install the wheel in a venv of its own and run a smallest dry run with it
	rm -rf dist build/release
	$(BIN)/python -m hatchling build
	$(PYTHON) -m venv build/release
	build/release/bin/pip install --quiet --constraint requirements.txt dist/*.whl
	cd build/release && bin/nas-retrain retrain bench=201 dataset=digits profile=dry launcher=local cells=sample:4 \
	  training.epochs=1 base_rate.points=3 'base_rate.seeds=[777]' results_dir=results
	test -s build/release/results/report.md -a -s build/release/results/explore.html

.PHONY: lint
lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
