# Everything is installed into .venv; nothing outside this directory is changed.
#
#   make quickstart            install, train a small vision-language model, export it, verify that the export loads
#   make quickstart VERIFY=0   the same without PyTorch and the comparison with transformers
#   make example-dpo           preference training: flip the style of answers (runs quickstart first if needed)
#   make example-calls         function calls: report the digit in an image (runs quickstart first if needed)
#   make install               install into .venv
#   make test                  style, imports, types and all tests: everything that must pass before a commit
#   make test-fast             unit tests that are not slow, for the edit loop
#   make docs                  the documentation as a site in build/site
#   make fuzz                  100,000 mutated inputs for each reader (INPUTS=...)
#   make soak                  runs that are killed at random moments and resumed, 50 times each (KILLS=...)
#   make engines               vLLM and llama.cpp for `erniekit verify --engine`, llm-compressor for `erniekit export
#                              --quantize-method`, in .venv-vllm, .venv-llama and .venv-llmcompressor (ENGINES=...)
#   make test-engines          exports of fine-tuned models in these engines
#   make test-latest           all tests with the newest versions that setup.cfg allows, in .venv-latest
#   make lock                  requirements/*.txt, the versions and hashes that are installed, from setup.cfg
#   make peers                 transformers, PEFT and TRL into .venv-peers, for tools/bench/peers
#
# PYTHON=...      the Python for .venv (3.11 is tested)
# TORCH_ARGS=...  arguments for installing PyTorch; its default Linux wheel includes several GB of CUDA libraries,
#                 which `--index-url` with PyTorch's index of CPU wheels avoids
# WORKERS=2       processes that run tests in parallel, one for each core

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VERIFY ?= 1
TORCH ?= torch==2.13.0
TORCH_ARGS ?=
UV ?= uv>=0.13,<0.14
WORKERS ?= 2
INPUTS ?= 100000
KILLS ?= 50
ENGINES ?= vllm llama llmcompressor

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
VENV_STAMP := .venv/.stamp-venv
CORE_STAMP := .venv/.stamp-core
TORCH_STAMP := .venv/.stamp-torch
DEV_STAMP := .venv/.stamp-dev
QUICKSTART := runs/quickstart/export/config.json

# The files list all that is needed, but PyTorch.
LOCKED := --require-hashes --no-deps -r

# On a terminal one line shows what pip is at; elsewhere only errors are shown.
define install
@if [ -t 1 ]; then \
	$(PIP) install $(1) | while IFS= read -r line; do printf '\r\033[K  %.76s' "$$line"; done; printf '\r\033[K'; \
else \
	$(PIP) install --quiet $(1); \
fi
endef

.PHONY: help install quickstart example-dpo example-calls test test-fast test-latest docs fuzz soak lint lock peers engines \
	test-engines clean

help:
	@sed -n 's|^#   make|  make|p' Makefile

install: $(CORE_STAMP)

quickstart: $(CORE_STAMP) $(if $(filter-out 0,$(VERIFY)),$(TORCH_STAMP))
	@examples/quickstart.sh $(VERIFY)

example-dpo example-calls: $(CORE_STAMP) $(QUICKSTART)
	@examples/digits/$(@:example-%=%).sh

# A file stays in one process, as its tests share trained models; the folders with the longest files come first.
# Bytecode is kept, whatever the environment says: to compile all tests anew takes longer than to import Paddle.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint
	@echo "Running all tests ..."
	@$(PYTEST) --durations 10

test-fast: $(DEV_STAMP)
	@echo "Running the unit tests ..."
	@$(PYTEST) -m "not slow" tests/unit

docs: $(DEV_STAMP)
	@$(BIN)/mkdocs build --quiet
	@echo "The site is build/site/index.html. $(BIN)/mkdocs serve serves it, with its search."

fuzz: $(DEV_STAMP)
	@$(BIN)/python -m tests.fuzz $(INPUTS)

soak: $(DEV_STAMP)
	@$(BIN)/python -m tests.soak $(KILLS)

lint: $(DEV_STAMP)
	@echo "Checking style, imports and types ..."
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports
	@$(BIN)/mypy

# Ranges instead of requirements/*.txt; TORCH=torch for the newest PyTorch, too.
test-latest:
	@echo "Installing the newest versions into .venv-latest ..."
	@rm -rf .venv-latest
	@$(PYTHON) -m venv .venv-latest
	@.venv-latest/bin/python -m pip --disable-pip-version-check install --quiet '$(TORCH)' $(TORCH_ARGS)
	@.venv-latest/bin/python -m pip --disable-pip-version-check install --quiet -e '.[dev]' $(TORCH_ARGS)
	@echo "Running all tests ..."
	@PYTHONDONTWRITEBYTECODE= .venv-latest/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lock:
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip --disable-pip-version-check install --quiet '$(UV)'
	@.venv-lock/bin/python tools/lock.py

# An environment of its own: the peers get the versions that they are measured with, whatever .venv has.
PEERS_STAMP := .venv-peers/.stamp

peers: $(CORE_STAMP) $(PEERS_STAMP)

$(PEERS_STAMP): tools/bench/peers/requirements.txt
	@echo "Installing transformers, PEFT and TRL into .venv-peers ..."
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip --disable-pip-version-check install --quiet -r $< $(TORCH_ARGS)
	@touch $@

# Engines pin other versions of torch and transformers than .venv has. The wheels of torchvision, torchaudio and
# torchcodec that come with vLLM are CUDA builds, which do not load without CUDA.
engines: $(ENGINES:%=.venv-%/.stamp)

.venv-vllm/.stamp: requirements/engines-vllm.txt
	@echo "Installing vLLM into .venv-vllm (1 GB to download, 3.5 GB on disk) ..."
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip --disable-pip-version-check install --quiet -r $< $(TORCH_ARGS)
	@.venv-vllm/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.venv-llama/.stamp: requirements/engines-llama.txt
	@echo "Compiling llama.cpp into .venv-llama (7 minutes on 2 cores) ..."
	@$(PYTHON) -m venv .venv-llama
	@.venv-llama/bin/python -m pip --disable-pip-version-check install --quiet -r $<
	@touch $@

.venv-llmcompressor/.stamp: requirements/engines-llmcompressor.txt
	@echo "Installing llm-compressor into .venv-llmcompressor (0.4 GB to download, 1.5 GB on disk) ..."
	@$(PYTHON) -m venv .venv-llmcompressor
	@.venv-llmcompressor/bin/python -m pip --disable-pip-version-check install --quiet -r $< $(TORCH_ARGS)
	@touch $@

test-engines: $(DEV_STAMP) engines
	@$(BIN)/python -m pytest -m engines tests/engines

clean:
	rm -rf .venv .venv-vllm .venv-llama .venv-llmcompressor .venv-peers .venv-latest .venv-lock runs build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Only where it is missing: the model stays when the installation changes.
$(QUICKSTART): | $(CORE_STAMP)
	@examples/quickstart.sh 0

$(VENV_STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v < (3, 13) and \
		f"erniekit needs Python 3.11 or 3.12; {sys.executable} is {v.major}.{v.minor}. Say which: make PYTHON=...")'
	@echo "Making .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv
	@touch $@

$(CORE_STAMP): $(VENV_STAMP) setup.cfg pyproject.toml requirements/run.txt
	@echo "Installing erniekit and PaddlePaddle into .venv (0.2 GB to download) ..."
	$(call install,$(LOCKED) requirements/run.txt)
	$(call install,--no-deps --no-build-isolation -e .)
	@touch $@

# PyTorch has no hash: everybody chooses the build (TORCH, TORCH_ARGS). What it needs on a CPU has.
$(TORCH_STAMP): $(CORE_STAMP) requirements/verify.txt
	@echo "Installing PyTorch into .venv, to compare exports with transformers (VERIFY=0 leaves it out) ..."
	$(call install,$(LOCKED) requirements/verify.txt)
	$(call install,$(TORCH) $(TORCH_ARGS))
	@touch $@

$(DEV_STAMP): $(TORCH_STAMP) requirements/dev.txt
	@echo "Installing the developers' tools into .venv ..."
	$(call install,$(LOCKED) requirements/dev.txt)
	@touch $@
