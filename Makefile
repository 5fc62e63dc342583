# nas-retrain: `make help` lists what there is to do.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
FUZZ_SECONDS ?= 3600

# make expands a variable of the command line when it hands it to a program, so that a $(shell ...) in it would run. Each
# is made plain text here, and no recipe has its text: programs find it in their environment, and no shell reads it.
# What is this file's own alone is set with "override", so that nothing given takes its place.
# BENCH to RETRAINED set the keys of these names, and RESULTS results_dir; what is not given has its default in configs/.
override SETTINGS := BENCH DATASET PROFILE LAUNCHER SITE ORIGINAL RETRAINED RESULTS BATCH ARGS
override GIVEN := $(SETTINGS) PLAN PYTHON VENV TORCH FUZZ_SECONDS
$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(if $(filter-out $(GIVEN) SHELL,$(name)),\
  $(error There is no variable $(name): there are $(GIVEN). Keys are set in ARGS))))
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export PYTHON VENV TORCH FUZZ_SECONDS

override STAGES := retrain plan status cancel verify analyze algorithms own-rates proxies export cells bench gpu-check \
  roofline scoreboard
$(foreach name,$(SETTINGS),$(eval $(STAGES): export NAS_RETRAIN_$(name) := $$(value $(name))))
# Files of tests are shared out to the cores, in the order of tests/conftest.py; those of one file stay together.
override SHARED_OUT := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: export PYTEST_ADDOPTS := -m 'not slow' $(SHARED_OUT) $(value PYTEST_ADDOPTS) $(value ARGS)
test-all: export PYTEST_ADDOPTS := $(SHARED_OUT) $(value PYTEST_ADDOPTS) $(value ARGS)

override RUN := "$$VENV"/bin/python
override DEFAULTS :=
override PLANNED := $(filter-out 0,$(PLAN))

.PHONY: help
help: ## Say what each target does
	@echo "nas-retrain: retrain NAS benchmarks with architecture-aware hyperparameters"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  BENCH, DATASET, PROFILE and LAUNCHER choose files of configs/, SITE one of slurm/site; ARGS sets any key:"
	@echo "  make retrain BENCH=201 DATASET=cifar100 ARGS=\"cells=sample:100 seeds=[777]\""
	@echo "  Every key with its meaning is in configs/; make retrain ARGS=--help lists them."

# The shell looks whether all is ready, for VENV may be a path that make could not have as a target. $VENV/.ready remembers
# TORCH. The wheels without CUDA are PyTorch's own on Linux; those of other systems never have it.
.PHONY: install
install: ## Install the locked packages into .venv; TORCH=cpu takes PyTorch without CUDA, TORCH=cuda takes it with
	@set -e; made_with=$$(cat "$$VENV/.ready" 2>/dev/null || true); torch=$${TORCH:-$${made_with:-cuda}}; \
	case $$torch in cpu|cuda) ;; *) echo "TORCH is cpu or cuda, not $$torch." >&2; exit 1;; esac; \
	if [ "$$VENV/.ready" -nt requirements.txt -a "$$VENV/.ready" -nt pyproject.toml -a \
	  "$$torch" = "$${made_with:-cuda}" ]; then exit; fi; \
	"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "nas-retrain needs Python 3.11 or later, and $$PYTHON is none. Name one: make ... PYTHON=python3.12" >&2; \
	  exit 1; \
	}; \
	echo "Installing the packages of requirements.txt into $$VENV, with PyTorch for $$torch ..."; \
	"$$PYTHON" -m venv "$$VENV"; \
	locked=requirements.txt; index=(); \
	if [ $$torch = cpu -a "$$(uname -s)" = Linux ]; then \
	  locked=$$VENV/requirements-cpu.txt; index=(--extra-index-url https://download.pytorch.org/whl/cpu); \
	  sed -E -e '/^(cuda|nvidia|triton)[a-z0-9-]*==/d' -e 's/^(torch|torchvision)==[^ +]+/&+cpu/' requirements.txt >"$$locked"; \
	fi; \
	$(RUN) -m pip install "$${index[@]}" --requirement "$$locked"; \
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	echo "$$torch" >"$$VENV/.ready"

.PHONY: dry-run
dry-run: override DEFAULTS = profile=dry dataset=digits launcher=local
dry-run: retrain ## Retrain a sample of cells on scikit-learn's digits, here, in minutes; writes results/201/digits

.PHONY: reference
reference: override DEFAULTS = profile=rule_shape dataset=fashion_mnist launcher=local
reference: retrain ## Does the shape of the rule help? On Fashion-MNIST, here, in some ten hours; writes results/201/settled

.PHONY: retrain
retrain: install ## Plan, base rate, trainings and analysis, here or on SLURM; run again to continue. PLAN=1 as make plan
	$(RUN) scripts/$(if $(PLANNED),plan,retrain).py $(DEFAULTS)

.PHONY: plan
plan: install ## Print what retrain would do and what it would cost; starts nothing
	$(RUN) scripts/plan.py

.PHONY: status
status: install ## Tell where a retraining stands: RESULTS=folder is enough
	$(RUN) scripts/status.py

.PHONY: cancel
cancel: install ## Cancel the retraining's jobs on SLURM, and no others
	$(RUN) scripts/cancel.py

.PHONY: verify
verify: install ## Compare predicted with searched learning rates: BENCH=mlp, cnn or 201. PLAN=1: only say what it would do
	$(RUN) scripts/$(if $(PLANNED),plan.py --config-name verify,verify.py)

.PHONY: scoreboard
scoreboard: install ## Put every scaling rule through the same tests, on digits: one table and a figure
	$(RUN) scripts/scoreboard.py

.PHONY: analyze
analyze: install ## Compare rankings: ORIGINAL=path [RETRAINED=path]; without them the recipes of the results folder
	$(RUN) scripts/analyze.py

.PHONY: algorithms
algorithms: install ## Replay search algorithms on ORIGINAL=path and [RETRAINED=path]: ranking, cost of the wrong table
	$(RUN) scripts/algorithms.py

.PHONY: own-rates
own-rates: install ## Own best learning rates in a table of trainings: ORIGINAL=path [BATCH=256]
	$(RUN) scripts/own_rates.py

.PHONY: proxies
proxies: install ## Which recipe's cheap trainings (RETRAINED=path) rank networks as long ones (ORIGINAL=path) do?
	$(RUN) scripts/proxies.py

.PHONY: export
export: install ## Write the retrained accuracies for nas-bench-201, nats_bench and as tables, below the results folder
	$(RUN) scripts/export.py

.PHONY: cells
cells: install ## Write the table of all cells, results/201/cells.csv
	$(RUN) scripts/cells.py

.PHONY: bench
bench: install ## Measure speed here against the straightforward way; writes results/201/speed
	$(RUN) -m benchmarks profile=dry dataset=digits

.PHONY: roofline
roofline: install ## The least time of a training step by a GPU's figures: ARGS="gpu=a100 cells=sample:30"
	$(RUN) scripts/roofline.py launcher=local

.PHONY: gpu-check
gpu-check: override DEFAULTS = dataset=cifar10 profile=full launcher=local
gpu-check: install ## See whether trainings on this machine's GPU are right, and tune their launcher, in ten minutes
	$(RUN) scripts/gpu_check.py $(DEFAULTS)

.PHONY: browser
browser: install
	@$(RUN) -m tests.browser

.PHONY: test
test: browser ## Run the everyday tests, in minutes
	$(RUN) -m pytest

.PHONY: test-all
test-all: browser ## Run all tests, with the soak and the long ones
	$(RUN) -m pytest

.PHONY: fuzz
fuzz: install ## Feed damaged and hostile files to every reader, for FUZZ_SECONDS (an hour)
	$(RUN) -m tests.fuzz --seconds "$$FUZZ_SECONDS"

.PHONY: docs
docs: install ## Build the documentation, warnings as errors; writes build/docs/index.html
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

.PHONY: release-check
release-check: install ## Build the packages, install the wheel in a venv of its own and run a smallest dry run with it
	rm -rf dist build/release
	$(RUN) -m hatchling build
	"$$PYTHON" -m venv build/release
	build/release/bin/python -m pip install --quiet --constraint requirements.txt dist/*.whl
	cd build/release && bin/nas-retrain retrain bench=201 dataset=digits profile=dry launcher=local cells=sample:4 \
	  training.epochs=1 base_rate.points=3 base_rate.seeds=777 results_dir=results
	test -s build/release/results/report.md -a -s build/release/results/explore.html

.PHONY: lint
lint: install ## Check style, types and which room imports from which
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	"$$VENV"/bin/lint-imports
	$(RUN) -m mypy
