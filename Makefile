# Everything runs inside VENV, which each target makes itself, reuses, and mends when it is broken.
# An environment that it did not make is left alone: make VENV=another-folder …

# make tune DATASET=german EXPERT=expert1 N_TRIALS=10 ARGS="-p seed 1"
PYTHON ?= python3
DATASET ?= bail
OUT ?=
EXPERT ?=
N_TRIALS ?=
SEED ?=
CACHE_DIR ?=
ARGS ?=
VENV := .venv

# Values are text that somebody else may have written. make would expand a `$` in them, and a shell
# would run a backtick, so they are taken as they are and go through the environment alone.
settings := PYTHON DATASET OUT EXPERT N_TRIALS SEED CACHE_DIR ARGS VENV
literal = override $1 := $$(value $1)
$(foreach name,$(settings),$(eval $(call literal,$(name))))
ifeq ($(VENV),)
override VENV := .venv
endif
export $(settings)

PY := "$$VENV/bin/python"
WITH_ARGS := $(PY) .ci/with_args.py
params := -r dataset "$$DATASET" $${EXPERT:+-r expert "$$EXPERT"} $${N_TRIALS:+-p n_trials "$$N_TRIALS"} \
	$${SEED:+-p seed "$$SEED"} $${CACHE_DIR:+-r cache_dir "$$CACHE_DIR"}

export JUPYTER_PREFER_ENV_PATH = 1

.PHONY: help tune moe test bench lint format env env-dev export chapters docs site hooks
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /make \1	/'

tune: env  ## tune the three experts on DATASET (bail); the report is OUT (out.ipynb), with a page beside it
	@$(WITH_ARGS) -m moe_expert.run_notebook nbs/tune.ipynb "$${OUT:-out.ipynb}" $(params)

moe: env  ## all stages on DATASET (bail): experts that are not there, gate, fine-tuning, test; the report is OUT (out_moe.ipynb)
	@$(WITH_ARGS) -m moe_expert.run_notebook nbs/moe.ipynb "$${OUT:-out_moe.ipynb}" $(params)

test: lint  ## all tests: lint, notebooks clean and in sync, notebooks run, pytest, coverage
	OMP_NUM_THREADS=1 PYTHONHASHSEED=0 MPLBACKEND=agg $(WITH_ARGS) -m pytest -n 2 --dist worksteal \
		--cov=moe_expert --cov-report=term --durations=15 tests

bench: env-dev  ## measure what is missing and write benchmarks/RESULTS.md (hours; ARGS="--quick": minutes, elsewhere)
	MPLBACKEND=agg $(WITH_ARGS) benchmarks/run.py

lint: env-dev  ## check notebooks and files: ruff check, ruff format (100 columns)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: env-dev  ## mend what `make lint` finds, as far as a program can
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

here = @command -v "$$PYTHON" >/dev/null || \
	{ printf '%s is not here: install Python 3.10 or newer\n' "$$PYTHON" >&2; exit 1; }

env:  ## make or mend VENV (.venv) for running
	$(here)
	@"$$PYTHON" .ci/environment.py run

env-dev:  ## make or mend VENV (.venv) for developing
	$(here)
	@"$$PYTHON" .ci/environment.py dev

# by their functions: the first line of an installed script does not bear every name of a folder
export: env-dev  ## write moe_expert/ from the notebooks, and clean the notebooks
	$(PY) -c 'from nbdev.doclinks import nbdev_export; nbdev_export()'
	$(PY) -c 'from nbdev.clean import nbdev_clean; nbdev_clean()'
	$(PY) .ci/parameters.py

chapters: env-dev  ## run the chapters and keep their outputs in the notebooks (ARGS=00_errors.ipynb, ARGS=--stale)
	$(WITH_ARGS) .ci/chapters.py

docs: env-dev  ## write the list of chapters, and the tables of docs/study.md from the study's rows
	$(PY) docs/rooms.py
	$(PY) docs/study_tables.py

site: env-dev  ## make chapters and documents a site that opens without a network: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(PY) .ci/build_site.py

hooks:  ## git hooks: notebooks are clean and exported, subjects of commits are short
	git config core.hooksPath .ci/hooks
	git config diff.ipynb.textconv 'python3 .ci/text_of_notebook.py'
