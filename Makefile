# Every target makes the environment first, so nothing else has to be run before it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-by-make

.PHONY: setup torch test test-fast test-soak arm test-arm fuzz lint demo bench docs dist constraints clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with everything in it

$(STAMP): pyproject.toml constraints/all.txt constraints/installer.txt
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else f"edgekit needs Python 3.10 to 3.13, and $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r constraints/installer.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r constraints/all.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

torch: $(STAMP)  ## add PyTorch to .venv, which .pt2 models need
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary=:all: torch==2.13.0 onnxscript==0.7.2

test: $(STAMP)  ## run the tests (no root, loopback only)
	$(BIN)/python -m pytest -m "not soak" -n auto --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=5

test-fast: $(STAMP)  ## the tests that need no TensorFlow
	$(BIN)/python -m pytest -m "not heavy and not soak"

test-soak: $(STAMP)  ## the tests that run long or need an environment of their own
	$(BIN)/python -m pytest -m "soak and not arm"

arm: $(STAMP)  ## fetch qemu and the agent's aarch64 wheels into .arm (Debian or Ubuntu on x86-64; no root)
	$(BIN)/python -m tests.arm.prepare

test-arm: arm  ## the agent as a Pi 4 and a Pi 5, emulated
	$(BIN)/python -m pytest -m arm

fuzz: $(STAMP)  ## parsers of what strangers send, under libFuzzer: make fuzz [ARGS="--seconds 600 manifest"]
	$(BIN)/python -m tests.fuzz.run $(ARGS)

lint: $(STAMP)  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(STAMP)  ## the whole journey on real data: make demo [ARGS=--keep]
	$(BIN)/edgekit demo $(ARGS)

bench: $(STAMP)  ## every benchmark there is; one: make bench-serve
	$(BIN)/python -m benchmarks

bench-%: $(STAMP)
	$(BIN)/python -m benchmarks $*

docs: $(STAMP)  ## build the documentation site in build/docs, without network
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

dist: $(STAMP)  ## build the wheel and the sdist in dist/, and try the wheel in an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m tests.release.check dist

constraints: $(STAMP)  ## pin every dependency anew, with hashes; UPGRADE= keeps the pins that there are
	$(BIN)/uv pip compile pyproject.toml --extra all --group dev $(COMPILE) $(UPGRADE) -c constraints/limits.in -o constraints/all.txt
	$(BIN)/uv pip compile pyproject.toml --extra agent --extra litert --extra onnx -c constraints/all.txt $(COMPILE) -o constraints/agent.txt

UPGRADE := --upgrade
COMPILE := --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header --quiet

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
