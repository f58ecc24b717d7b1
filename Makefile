# Two commands: `make serve` and `make test`. Both make the environment first; a second run reinstalls nothing.
PYTHON  ?= python3
VENV    ?= .venv
HOST    ?= 127.0.0.1
PORT    ?= 8000
MODEL   ?= shapes-tiny
EXTRAS  ?= fast
MINUTES ?= 10

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: serve test lint openapi bench soak clean

serve: $(VENV)/.serve
	$(BIN)/vit-attention serve --host $(HOST) --port $(PORT) --model $(MODEL)

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

openapi: $(VENV)/.serve
	$(BIN)/vit-attention openapi > openapi.md

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(BENCH)

soak: $(VENV)/.test
	$(BIN)/python -m tests.load.soak --minutes $(MINUTES)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.serve

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
