# Two commands do everything on a machine with Python 3.11+ and pip: `make search` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
CONFIG ?= recipes/configs/quickstart.yaml
ARGS ?=
# A file stays with one worker, since its tests share what is slow to make. ARGS='-n 0' runs all in one process.
PARALLEL := -n 2 --dist loadfile
PYTEST_ENV := OMP_NUM_THREADS=1
# What `make search` scores its student on: of the quickstart as it stands, and of no other search.
EVALUATION ?= $(if $(ARGS),,$(if $(filter recipes/configs/quickstart.yaml,$(CONFIG)),recipes/configs/embeddings.yaml))

.DEFAULT_GOAL := help
.PHONY: help search test test-oldest lint format types setup clean

help:
	@echo "make search   set up, search on the embedded teacher and text, score it; leaves runs/quickstart/student"
	@echo "make test     set up and run the tests"
	@echo "make test-oldest   the same on the oldest supported transformers, in $(OLDEST)"
	@echo "make lint | format | types"

# Made anew when what it is made from changes; the stamp is written last, so a broken install is done again.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdnas_hf needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $@

$(OLDEST)/.installed: setup.cfg pyproject.toml constraints-oldest.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdnas_hf needs Python 3.11 or later")'
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[demo,dev,optimum]'
	touch $@

setup: $(VENV)/.installed

search: setup
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/search.py $(CONFIG) $(ARGS)
	$(if $(EVALUATION),$(BIN)/python recipes/evaluate.py $(EVALUATION))

test: setup
	$(PYTEST_ENV) $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-oldest: $(OLDEST)/.installed
	$(PYTEST_ENV) $(OLDEST)/bin/python -m pytest $(PARALLEL) -m 'not long' $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OLDEST) build dist .pytest_cache .ruff_cache .mypy_cache
