# Every target works as the only command in a fresh clone: each sets up what it needs and says so.
SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
WORKERS ?= $(shell nproc)

.DEFAULT_GOAL := help
.PHONY: help setup lab test test-all fuzz check format bench clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml uv.lock scripts/setup
	@scripts/setup venv

setup: ## system packages, .venv with `wicket` in it, everything
	@scripts/setup all

lab: $(STAMP) ## the whole story on one machine: the seed's pod red, then green, in both CNI shapes
	@scripts/setup system
	@$(VENV)/bin/wicket lab run seed

test: $(STAMP) ## the fast suites: pure code and network namespaces
	@scripts/setup system
	$(VENV)/bin/pytest -q -n $(WORKERS) -m "not slow and not vm and not image and not browser" tests

test-all: $(STAMP) ## every lane: slow tests, fuzzers, a browser, a kernel with wireguard.ko, the container image
	@scripts/setup all
	$(VENV)/bin/pytest -q -n $(WORKERS) -m "not vm and not image" tests
	$(VENV)/bin/pytest -q -m "vm" tests
	$(VENV)/bin/pytest -q -m "image" tests

fuzz: $(STAMP) ## the fuzzers for longer, with new dice: WICKET_FUZZ_SECONDS each (120), WICKET_FUZZ_SEED repeats a run
	WICKET_FUZZ_SECONDS=$${WICKET_FUZZ_SECONDS:-120} $(VENV)/bin/pytest -q -n $(WORKERS) -o timeout=0 tests/fuzz

check: $(STAMP) ## ruff, mypy --strict, layers, spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs src deploy bench

format: $(STAMP) ## let ruff format and mend
	$(VENV)/bin/ruff check --fix-only -q .
	$(VENV)/bin/ruff format .

bench: $(STAMP) ## every claim of the README, measured here
	@scripts/setup system
	@for script in bench/[a-z]*.py; do echo; echo "== $$script"; $(PY) $$script || exit 1; done

clean: ## caches and the virtual environment
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
