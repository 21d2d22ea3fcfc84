# `make predict` and `make test` do all of their own set-up in .venv; nothing else needs to be installed.
PYTHON ?= python3
# The torch that the tests run on. Any build does; a CPU build is enough.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: predict test lint types clean
.DELETE_ON_ERROR:

.venv/base: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

predict: .venv/base  ## one real prediction from the shipped H200 profile
	$(BIN)/energymodel predict --model meta-llama/Llama-3.1-8B-Instruct --gpu h200 --workload docs/bins.json

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

clean:
	rm -rf .venv
