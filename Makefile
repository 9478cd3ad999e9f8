# within: `make` alone lists what there is.
SHELL      := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS  += --no-print-directory
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
digest  = $(shell cat $(1) | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-16)
PACKAGES := $(VENV)/.stamp-$(call digest,requirements.lock)
PROJECT  := $(VENV)/.project-$(call digest,pyproject.toml)

# nothing here phones home, and no library decides on its own how many threads a shared machine can spare
export PLOOMBER_STATS_ENABLED := false
export PLOOMBER_VERSION_CHECK_DISABLED := true
export MLFLOW_DISABLE_TELEMETRY := true
export EVIDENTLY_DISABLE_TELEMETRY := 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := true
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help setup run test slow lab bench soak reports check export clean

help: ## this list
	@echo "within: every verdict about a model is a notebook that ran"; echo
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo; echo "  A first look: make run     Your own changes: edit nbs/lib/, make export, make check, make test"

setup: $(PACKAGES) $(PROJECT) ## the environment in .venv, exactly requirements.lock (no network when current)
	@if git rev-parse --git-dir >/dev/null 2>&1 && ! git config --local --get-all include.path | grep -qx '../.gitconfig'; then \
	   git config --local --add include.path ../.gitconfig; fi

$(PACKAGES): requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "within needs Python 3.11: no '$(PYTHON)' here. make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "within needs Python 3.11; $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "set-up: $$(grep -c == requirements.lock) packages into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.lock
	@rm -f $(VENV)/.stamp-*; touch $@

$(PROJECT): pyproject.toml | $(PACKAGES)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@rm -f $(VENV)/.project-*; touch $@

run: setup ## one retraining of ad_score_predictor, start to finish, weeks replayed in minutes; ends with the report's path
	@WITHIN_CLOCK=replay $(BIN)/within demo

PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup ## the chapters' lesson cells, then every test that is not marked slow
	@echo "lesson cells of $$(ls nbs/lib/*.ipynb | wc -l) chapters"; OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	@$(PYTEST) -m "not slow"

slow: setup ## the tests marked slow, after make test: lives, kills, error rates by simulation, the guides; half an hour
	@$(PYTEST) -m slow

lab: setup ## JupyterLab on nbs/ (LAB_ARGS=... for more options)
	@$(BIN)/jupyter lab --config=.jupyter/jupyter_lab_config.py $(LAB_ARGS)

bench: setup ## the budgets, measured: a table and benchmarks/results.json (ROWS="help train" for some)
	@$(BIN)/python -m benchmarks $(ROWS)

soak: setup ## ninety simulated days of all three models with planted accidents, lived twice and compared; hours (SOAK_ARGS="--scale 0.05" for fewer)
	@OMP_NUM_THREADS=1 $(BIN)/python -m within.soak $(SOAK_ARGS)

reports: setup ## docs/reports again: one run that passes, one declined, one rolled back (half an hour)
	@docs/reports/make.sh

check: setup ## before a commit: lint, floors, notebook and stage shape, export and clean
	@$(BIN)/ruff check within tests benchmarks
	@$(BIN)/pytest -q tests/test_house.py tests/test_floors.py tests/test_notebook_shape.py tests/test_stages.py

export: setup ## nbs/lib -> within/, then tidy the notebooks
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

clean: ## remove what can be made again (not .venv, not .within)
	@rm -rf products build dist _docs _proc .pytest_cache .ruff_cache .hypothesis .coverage *.egg-info benchmarks/results.json
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
