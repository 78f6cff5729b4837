# AgenticMail Enterprise. Needs Python 3.11 or newer and nothing else; works with GNU make 3.81 and later.
#
#   make run          a demo gateway at http://127.0.0.1:3000 with a real agent
#   make test         all tests            make lint         style, types, import floors
#   make bench        how fast it is       make conformance  the official MCP suite through the gateway (needs Node)
#   make wheel        build the wheel and try it in an empty environment
#   make setup        the environment of `make run` alone      make clean  remove what make made
#
# PYTHON=/path/to/python3.12 chooses the interpreter; PORT=3001 and DEMO="--folder x" go to the demo.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
FLOORS := adapters admin_ui catalog deploy gateway policies
PORT ?= 3000
DEMO ?=
PYTHON ?=
# The environment belongs to a place (scripts in it hold its path) and to a version of a lock: a stamp says which.
empty :=
PLACE := $(subst /,_,$(subst $(empty) $(empty),_,$(CURDIR)))
RUN_STAMP := $(VENV)/.run$(PLACE)
DEV_STAMP := $(VENV)/.dev$(PLACE)
# Errors only: what a machine's own index settings make pip grumble about is no news of ours.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: run setup dev test lint bench conformance wheel clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

run: $(RUN_STAMP)
	@exec $(BIN)/agenticmail-enterprise demo --port $(PORT) $(DEMO)

setup: $(RUN_STAMP)
	@:

dev: $(DEV_STAMP)
	@:

test: $(DEV_STAMP)
	@$(BIN)/python -m pytest $(or $(TESTS),-n 3 --dist loadfile)

# The repository root is the package: mypy needs to see it under its name, whatever this folder is called.
lint: $(DEV_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted: $(BIN)/ruff format ."; exit 1; }
	@mkdir -p .cache/mypy && ln -sfn ../.. .cache/mypy/agenticmail_enterprise
	@cd .cache/mypy && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy-cache \
	  -m agenticmail_enterprise $(foreach floor,$(FLOORS),-p agenticmail_enterprise.$(floor))
	@$(BIN)/lint-imports --no-logo

bench: $(DEV_STAMP)
	@$(BIN)/python -m tests.bench.run

conformance: $(DEV_STAMP)
	@$(BIN)/python -m tests.conformance.run

wheel: $(DEV_STAMP)
	@$(BIN)/python -m tests.wheel.check

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# -- the environment -------------------------------------------------------------------------------------------------

$(RUN_STAMP): requirements.lock pyproject.toml
	@$(MAKE) --no-print-directory .environment LOCK=requirements.lock STAMP=$@

$(DEV_STAMP): requirements-dev.lock pyproject.toml
	@$(MAKE) --no-print-directory .environment LOCK=requirements-dev.lock STAMP=$@
	@touch $(RUN_STAMP)

# The lock says every version and every hash; the project itself is installed where it stands. An environment that
# somebody else made is used as it is; one of ours that was moved is made anew.
.PHONY: .environment
.environment:
	@set -e; \
	if [ -e $(VENV)/.place ] && [ "$$(cat $(VENV)/.place)" != "$(CURDIR)" ]; then rm -rf $(VENV); fi; \
	if ! $(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  found=; \
	  for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Python 3.11 or newer is needed and was not found$(if $(PYTHON), as $(PYTHON))."; \
	    echo "Debian, Ubuntu: apt install python3 python3-venv   macOS: brew install python   then: make run"; \
	    echo "Or say where it is: make run PYTHON=/path/to/python3.12"; exit 1; \
	  fi; \
	  version=$$("$$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  if ! "$$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "$$found (Python $$version) cannot make environments: its modules venv and ensurepip are missing."; \
	    echo "Debian, Ubuntu: apt install python$$version-venv   then: make run"; exit 1; \
	  fi; \
	  echo "Setting up $(VENV) with Python $$version ..."; \
	  "$$found" -m venv --clear $(VENV); \
	  printf '%s' "$(CURDIR)" > $(VENV)/.place; \
	fi; \
	echo "Installing $(LOCK) ..."; \
	$(PIP) install --require-hashes -r $(LOCK); \
	$(PIP) install --no-deps -e .; \
	touch $(STAMP)
