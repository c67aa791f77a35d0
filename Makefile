# Every target makes the environment if needed; no other target has to be run first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-by-make

.PHONY: setup torch test test-fast test-soak soak arm test-arm fuzz lint demo bench docs images dist constraints clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with all dependencies

$(STAMP): pyproject.toml constraints/all.txt constraints/installer.txt
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); sys.exit(None if ok else f"edgekit needs Python 3.10 to 3.13, and $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r constraints/installer.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r constraints/all.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

torch: $(STAMP)  ## add PyTorch to .venv, for .pt2 models
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary=:all: torch==2.13.0 onnxscript==0.7.2

test: $(STAMP)  ## run the tests; needs no root, and no network but loopback
	$(BIN)/python -m pytest -m "not soak" -n auto --dist loadfile --no-loadscope-reorder --durations=25 --durations-min=5

test-fast: $(STAMP)  ## run the tests that need no TensorFlow
	$(BIN)/python -m pytest -m "not heavy and not soak"

test-soak: $(STAMP)  ## run long tests, and tests that need an extra environment
	$(BIN)/python -m pytest -m "soak and not arm"

arm: $(STAMP)  ## download qemu and aarch64 wheels into .arm, for edgekit profile (Debian or Ubuntu on x86-64; no root)
	$(BIN)/python -m tests.arm.prepare

test-arm: arm  ## test the agent on an emulated Pi 4 and Pi 5, and instruction counts
	$(BIN)/python -m pytest -m arm

fuzz: $(STAMP)  ## fuzz the parsers of untrusted input with libFuzzer: make fuzz [ARGS="--seconds 600 manifest"]
	$(BIN)/python -m tests.fuzz.run $(ARGS)

lint: $(STAMP)  ## check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(STAMP)  ## run the demo, from training to rollout: make demo [ARGS=--keep]
	$(BIN)/edgekit demo $(ARGS)

bench: $(STAMP)  ## run all benchmarks; one: make bench-serve; models of others: make bench-wild [ARGS="nudenet --again"]
	$(BIN)/python -m benchmarks

bench-%: $(STAMP)
	$(BIN)/python -m benchmarks $* $(if $(ARGS),-- $(ARGS))

soak: $(STAMP)  ## roll out to 10,000 simulated devices; takes hours and about 20 GB of memory
	ulimit -n 24000 && $(BIN)/python -m benchmarks fleet -- 10000

docs: $(STAMP)  ## build the documentation site in build/docs (no network)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

images: $(STAMP)  ## build the container images in build/images (Debian, as root; needs mmdebstrap and umoci)
	UV=$(BIN)/uv deploy/containers/build.sh build/images agent controller cloud

dist: $(STAMP)  ## build wheel and sdist in dist/, and check the wheel in an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m tests.release.check dist

constraints: $(STAMP)  ## pin the newest dependencies, with hashes; UPGRADE= keeps current pins where possible
	$(BIN)/uv pip compile pyproject.toml --extra all --group dev $(COMPILE) $(UPGRADE) -c constraints/limits.in -o constraints/all.txt
	$(BIN)/uv pip compile pyproject.toml --extra agent --extra litert --extra onnx -c constraints/all.txt $(COMPILE) -o constraints/agent.txt
	$(BIN)/uv pip compile pyproject.toml --extra controller --extra postgres -c constraints/all.txt $(COMPILE) -o constraints/controller.txt
	$(BIN)/uv pip compile pyproject.toml --extra cloud --extra grpc --extra images -c constraints/all.txt $(COMPILE) -o constraints/cloud.txt

UPGRADE := --upgrade
COMPILE := --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-header --quiet

clean:  ## remove the environment and the caches of tools
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
