# Every target sets up what it needs by itself: `make demo` on a fresh clone is all there is to do.
# The environment lives in .venv and is brought up to date whenever pyproject.toml changes.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# Waiting OpenMP threads sleep instead of spinning: on a machine with other work, tests are many times faster.
export OMP_WAIT_POLICY ?= PASSIVE

VENV ?= .venv
STAMP := $(VENV)/.installed
VLMTUNE := $(VENV)/bin/vlmtune
# The first Python of 3.11 or newer that can make an environment. Name another with `make demo PYTHON=/path/to/python`.
PYTHON ?=
# Test processes: one a core, each with one thread of torch's. `make test WORKERS=0` runs everything in one process.
WORKERS ?= auto
# Further arguments: `make test PYTEST_ARGS='-k labels -x'`, `make fine-tune CONFIG_FILE=… ARGS='--set seed=1'`.
PYTEST_ARGS ?=
ARGS ?=

define FIND_PYTHON
python=""; \
for name in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python3.14 python); do \
  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
    python="$$name"; break; \
  fi; \
done; \
if [ -z "$$python" ]; then \
  echo "Error: found no Python of 3.11 or newer that has the venv module$(if $(PYTHON), at $(PYTHON))." \
       "Install one (Debian: apt-get install python3-venv) or name it: make PYTHON=/path/to/python" >&2; \
  exit 1; \
fi
endef

# CONFIG_FILE is a path, or the name of a file in configs/ with or without its ending.
define CONFIG
config="$(CONFIG_FILE)"; \
if [ -z "$$config" ]; then \
  echo "Error: say which experiment: make $@ CONFIG_FILE=configs/NAME.yaml" >&2; exit 2; \
fi; \
for candidate in "$$config" "configs/$$config" "configs/$$config.yaml" "configs/$$config.yml"; do \
  if [ -f "$$candidate" ]; then config="$$candidate"; break; fi; \
done; \
if [ ! -f "$$config" ]; then \
  echo "Error: CONFIG_FILE=$$config is neither a file nor the name of one of:" $$(ls configs) >&2; exit 1; \
fi
endef

.PHONY: help
help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: install
install: $(STAMP) ## Make the environment in .venv (every other target does it too)

$(STAMP): pyproject.toml
	@$(FIND_PYTHON); \
	if [ ! -x $(VENV)/bin/python ]; then echo "making $(VENV) with $$python" >&2; "$$python" -m venv $(VENV); fi
	@echo "installing vlmtune and its dependencies into $(VENV); minutes on the first run" >&2
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' >&2
	@# The image processor's parity peer needs torchvision's Python part, kept where only the peer sees it.
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)/peers torchvision==0.28.0 >&2
	@touch $@

.PHONY: demo
demo: $(STAMP) ## The whole story on the built-in model and images, in minutes
	@$(VLMTUNE) demo $(ARGS)

.PHONY: fine-tune
fine-tune: $(STAMP) ## Train: make fine-tune CONFIG_FILE=configs/NAME.yaml
	@$(CONFIG); $(VLMTUNE) train "$$config" $(ARGS)

.PHONY: evaluate
evaluate: $(STAMP) ## Evaluate: make evaluate CONFIG_FILE=configs/NAME.yaml
	@$(CONFIG); $(VLMTUNE) evaluate "$$config" $(ARGS)

.PHONY: test
test: $(STAMP) ## Every test tier: unit, cli, parity, e2e
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)/bin/python -m pytest -m "not gpu and not gguf" \
	  --numprocesses $(WORKERS) --dist loadfile --durations=10 $(PYTEST_ARGS)

.PHONY: lint
lint: $(STAMP) ## Style and types
	@failed=0; for check in "ruff check ." "ruff format --check ." "mypy"; do \
	  echo "$$check"; $(VENV)/bin/$$check || failed=1; \
	done; exit $$failed

.PHONY: test-gguf
test-gguf: $(STAMP) ## GGUF exports in llama.cpp, which is compiled first: five minutes on two cores
	@$(VENV)/bin/python -c 'import llama_cpp' 2>/dev/null || { \
	  echo "compiling llama-cpp-python into $(VENV)" >&2; \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[llama]' >&2; }
	$(VENV)/bin/python -m pytest -m gguf --durations=10 $(PYTEST_ARGS)

.PHONY: check
check: lint test ## Style, types and tests: exactly what CI runs

.PHONY: clean
clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
