# Every target sets up .venv by itself, and skips that while it is newer than the files that decide what is in it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
NAME ?= smoke

.PHONY: tune test check bench clean

tune: $(STAMP)  ## the main job on the embedded synthetic dataset: raw films to a checked submission.csv
	$(BIN)/python jobs/tune.py smoke --name $(NAME)

test: $(STAMP)  ## every test, the slow ones too
	$(BIN)/python -m pytest

check: $(STAMP)  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## speed, as ratios within one run; benchmarks/README.md holds the tables
	$(BIN)/python benchmarks/fusion.py
	$(BIN)/python benchmarks/metric.py
	$(BIN)/python benchmarks/training_step.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 13), "vbd needs Python 3.11 or 3.12; make PYTHON=python3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Two packages bring the same module cv2: keep the build that needs no graphics libraries of the system.
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps --constraint constraints.txt opencv-python-headless
	touch $(STAMP)

clean:  ## what the other targets made, the runs and the sample data included
	rm -rf .venv data/phantom data/phantom-128 runs/smoke .pytest_cache .mypy_cache .ruff_cache
