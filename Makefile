VENV ?= .venv
PYTHON ?= python3
OUT ?= demo-out
HER2CACHE_DATA ?= ../shared/data
export HER2CACHE_DATA
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# used by the demo when it lies there; otherwise torchvision's own download is tried
IMAGENET ?= $(wildcard $(HER2CACHE_DATA)/weights/alexnet_features_imagenet.pth)

.PHONY: install demo test test-all soak check format bench clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else f"her2cache needs Python 3.11 or newer, this is {v}: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	touch $(STAMP)

demo: install
	$(BIN)/her2cache demo --out $(OUT) $(if $(IMAGENET),--imagenet $(IMAGENET))

test: install
	$(BIN)/python -m pytest -m "not slow and not soak"

test-all: install
	$(BIN)/python -m pytest -m "not soak"

soak: install
	$(BIN)/python -m pytest -m soak

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --warnings
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	@for b in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$b .py) || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
