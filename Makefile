PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: demo test test-again test-all test-newest test-flower-next coverage hunt install check bench bench-gpu format clean

demo: install  ## install, then train on the built-in synthetic images and write a report
	$(BIN)/fedveil demo

test: install  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

MOST := 3

test-again: install  ## the tests that failed last, alone and by name; refused where more than MOST did
	test "$$(grep -c '": true' .pytest_cache/v/cache/lastfailed)" -le $(MOST)
	@echo "these failed, and run once more:"; grep '": true' .pytest_cache/v/cache/lastfailed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --last-failed --last-failed-no-failures none -v

PYTHONS := python3.11 python3.12 python3.13 python3.14

test-all:  ## every test under every Python version of this machine, each in an environment of its own
	for python in $(PYTHONS); do \
	  if command -v $$python > /dev/null; then \
	    $(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; \
	  else echo "$$python is not installed: not tested"; fi; \
	done

test-newest:  ## every test with the newest versions that pyproject.toml allows, in an environment of its own
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev,desk,dicom,flower,lite,nvflare,onnx,tables,volumes]"
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n $(WORKERS) --dist loadfile

test-flower-next:  ## the tests of deployments with the newest Flower that pyproject.toml allows, in an environment of its own
	test -d .venv-flower-next || $(PYTHON) -m venv .venv-flower-next
	.venv-flower-next/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,desk,dicom,flower,tables]"
	.venv-flower-next/bin/python -m pip install --quiet --upgrade "$$(sed -n 's/^flower = \["\(.*\)"\]$$/\1/p' pyproject.toml)"
	OMP_NUM_THREADS=1 .venv-flower-next/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/deploy

COVERED := 90

coverage: install  ## every test again, about three times slower; fails where too few lines are run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
	  --cov=fedveil --cov-report=term:skip-covered --cov-fail-under=$(COVERED)

SECONDS := 1800
SEED := 1

hunt: install  ## search for whoever moves a sum further than noise allows; one JSON line per release
	$(BIN)/python -m tests.neighbours.hunt --seconds $(SECONDS) --seed $(SEED)

install: $(STAMP)  ## a virtual environment with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0+cpu" || $(PIP) "torch==2.13.0"  # the CPU build, where the index has it
	$(PIP) --constraint constraints.txt --editable ".[dev,desk,dicom,flower,lite,nvflare,onnx,tables,volumes]"
	$(PIP) --constraint constraints.txt --no-deps timm  # torchvision, which it names, has no CPU build on some indexes
	touch $(STAMP)

check: install  ## format, lint, types, layers, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

BENCHMARKS := start main_job secure_aggregation trade_off cross_validation own_thresholds deployment private_gradients deep_federation

bench: install  ## every benchmark, about an hour on two cores; one JSON line per figure
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-gpu: install  ## encoders and private steps on a GPU, at most 8 minutes; one JSON line per figure
	timeout 480 $(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV)
