# Needs Python 3.11 or newer and make. Everything is installed into .venv; everything written goes under .featurekit.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first interpreter that is new enough; give PYTHON=... to choose another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$python" && break; done)
# One more than two cores: tests wait for disks and servers now and then.
WORKERS ?= 3

export FEATUREKIT_HOME ?= $(CURDIR)/.featurekit
export DAGSTER_HOME ?= $(FEATUREKIT_HOME)/dagster
export DAGSTER_DISABLE_TELEMETRY := 1
# Every process that a test starts would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo dev check format test test-ui soak clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Make .venv and install everything (again only when pyproject.toml changes)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; install it, or give its path: make PYTHON=/path/to/python3" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $(STAMP)

demo: setup dagster-home ## From flights to features, a model and online vectors (a second run does only what is missing)
	$(BIN)/featurekit demo

dev: setup dagster-home ## Open the Dagster UI of the example on http://127.0.0.1:3000
	$(BIN)/dagster dev --workspace workspace.yaml

.PHONY: dagster-home
dagster-home:
	@mkdir -p "$(DAGSTER_HOME)"
	@test -e "$(DAGSTER_HOME)/dagster.yaml" || cp dagster.yaml "$(DAGSTER_HOME)/dagster.yaml"

check: setup ## Style, types, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

format: setup ## Apply the formatter and the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## All quick tests (six to eight minutes on two cores)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-ui: setup ## Tests that look at the Dagster UI in headless Chromium
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "Chromium was not found; on Debian or Ubuntu: apt-get update && apt-get install -y chromium" >&2; exit 1; }
	$(BIN)/python -m pytest -m ui tests/ui

soak: setup ## Every test with full counts, the slow ones included (two to three hours on two cores)
	FEATUREKIT_SOAK=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not ui"

clean: ## Remove what the example wrote (.featurekit), not the environment
	rm -rf .featurekit
