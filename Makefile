# `make help` lists the targets; each says itself what it does.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
export VENV
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
SOURCES := cluster actors serve_app protos benchmarks examples tests
PYTEST_FLAGS ?=

.PHONY: help setup check format test unit bench demo up protos lock docs clean

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the pinned dependencies; does nothing when it is up to date

$(STAMP): requirements.lock pyproject.toml .ci/setup
	@.ci/setup
	@touch $@

check: $(STAMP) ## Format, lint, types, import contracts, generated files, file sizes, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check
	PYTHONPATH=. $(BIN)/python docs/make_lifecycle.py --check
	$(BIN)/python -m pytest tests/unit $(PYTEST_FLAGS)

format: $(STAMP) ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: $(STAMP) ## The tests that need nothing running
	$(BIN)/python -m pytest tests/unit $(PYTEST_FLAGS)

test: $(STAMP) ## The whole test suite, on real Redis and real Ray that it starts itself
	$(BIN)/python -m pytest tests $(PYTEST_FLAGS)

bench: $(STAMP) ## The benchmarks beside plain Ray: a table, and JSON in out/
	$(BIN)/python -m benchmarks

demo: $(STAMP) ## Start everything, make a report of the sample data, show it, end everything
	$(BIN)/tutti demo

up: $(STAMP) ## Run the service in the foreground on http://127.0.0.1:8000
	$(BIN)/tutti up

protos: $(STAMP) ## Generate the gRPC modules from their .proto files
	$(BIN)/python -m protos.generate

lock: $(STAMP) ## Pin the newest dependencies that pyproject.toml allows in requirements.lock
	env -u PIP_FIND_LINKS $(BIN)/python -m uv pip compile --quiet --upgrade --no-config --universal \
		--python-version 3.11 --extra dev --generate-hashes --no-annotate --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" pyproject.toml -o requirements.lock

docs: $(STAMP) ## Write docs/lifecycle.md from the tables in the code
	PYTHONPATH=. $(BIN)/python docs/make_lifecycle.py

clean: ## Remove caches and outputs; .venv and .tutti stay
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
