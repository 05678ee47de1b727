# Everything happens in .venv inside this checkout; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench bench-prepare bench-regression sweep

help:  ## what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## .venv with everything for compiling and testing

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "graphwright needs Python 3.11 or newer; $$($(PYTHON) --version) is too old. Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@# torch first and alone: the pinned build decides which files pip takes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compile,triton,cuda,linker,serve,dev]'
	@touch $(STAMP)

demo: install  ## compile the demo model in float32 and int8, and let it write
	@$(BIN)/python examples/demo.py

test: install  ## all tests that need no GPU
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-gpu: install  ## what needs an NVIDIA GPU, against eager
	$(BIN)/python -m pytest -m gpu

bench-gpu: install  ## on a GPU: docs/performance-gpu.md
	$(BIN)/python benchmarks/gpu/run.py

lint: install  ## ruff and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p graphwright
	MYPYPATH=tests:tests/passes:tests/backends:tests/broken:tests/sweep:tests/torch_backend $(BIN)/mypy tests

bench-prepare: install  ## environments of other runtimes and model files for make bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run.py --prepare

bench: bench-prepare  ## compare with other runtimes, write docs/performance.md; see benchmarks/README.md
	$(BIN)/python benchmarks/run.py --record

bench-regression: bench-prepare  ## a short run, against the ratios of the last recorded one
	$(BIN)/python benchmarks/run.py --quick
	$(BIN)/python benchmarks/compare.py

sweep: install  ## every decoder of transformers, tiny: docs/architectures.md
	$(BIN)/python tests/sweep/run.py --jobs 2; status=$$?; \
	  $(BIN)/python tests/sweep/report.py && exit $$status
