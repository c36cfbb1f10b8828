# Everything runs inside .venv, which each target makes itself, reuses, and mends when it is broken.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

# make tune DATASET=german EXPERT=expert1 N_TRIALS=10 ARGS="-p seed 1"
DATASET ?= bail
OUT ?= out.ipynb
EXPERT ?=
N_TRIALS ?=
SEED ?=
CACHE_DIR ?=
ARGS ?=
params = -p dataset "$(DATASET)" $(if $(EXPERT),-p expert "$(EXPERT)") $(if $(N_TRIALS),-p n_trials "$(N_TRIALS)") \
	$(if $(SEED),-p seed "$(SEED)") $(if $(CACHE_DIR),-p cache_dir "$(CACHE_DIR)") $(ARGS)

export JUPYTER_PREFER_ENV_PATH = 1

.PHONY: help tune moe test bench lint format env env-dev export chapters docs site hooks
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /make \1	/'

tune: env  ## tune the three experts on DATASET (bail) and leave the report in OUT (out.ipynb)
	$(PY) -m papermill nbs/tune.ipynb "$(OUT)" $(params)

moe: env  ## all stages on DATASET (bail): experts that are not there, gate, fine-tuning, test; the report is OUT (out_moe.ipynb)
	$(PY) -m papermill nbs/moe.ipynb "$(if $(filter file,$(origin OUT)),out_moe.ipynb,$(OUT))" $(params)

test: lint  ## all tests: lint, notebooks clean and in sync, notebooks run, pytest, coverage
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 MPLBACKEND=agg $(PY) -m pytest -n 2 --dist worksteal \
		--cov=moe_expert --cov-report=term --durations=15 tests $(ARGS)

bench: env-dev  ## measure what is missing and write benchmarks/RESULTS.md (hours; ARGS="--quick": minutes, elsewhere)
	MPLBACKEND=agg $(PY) benchmarks/run.py $(ARGS)

lint: env-dev  ## check notebooks and files: ruff check, ruff format (100 columns)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: env-dev  ## mend what `make lint` finds, as far as a program can
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

env:  ## make or mend .venv for running
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) .ci/environment.py run

env-dev:  ## make or mend .venv for developing
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) .ci/environment.py dev

export: env-dev  ## write moe_expert/ from the notebooks, and clean the notebooks
	$(VENV)/bin/nbdev_export
	$(VENV)/bin/nbdev_clean
	$(PY) .ci/parameters.py

chapters: env-dev  ## run the chapters and keep their outputs in the notebooks (ARGS=00_errors.ipynb, ARGS=--stale)
	$(PY) .ci/chapters.py $(ARGS)

docs: env-dev  ## write the list of chapters, and the tables of docs/study.md from the study's rows
	$(PY) docs/rooms.py
	$(PY) docs/study_tables.py

site: env-dev  ## make chapters and documents a site that opens without a network: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) .ci/build_site.py

hooks:  ## git hooks: notebooks are clean and exported, subjects of commits are short
	git config core.hooksPath .ci/hooks
	git config diff.ipynb.textconv 'python3 .ci/text_of_notebook.py'
