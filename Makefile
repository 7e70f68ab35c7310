# Every target sets up .venv by itself, and skips that while it is newer than the files that decide what is in it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
NAME ?= smoke

# Why PYTHON is not usable; empty if it is.
COMPLAINT = $(shell command -v $(firstword $(PYTHON)) >/dev/null || { \
	echo "$(PYTHON) is not installed (Debian, Ubuntu: apt-get install python3 python3-venv)"; exit; }; \
	$(PYTHON) deploy/check_python.py "$(PYTHON)" venv ensurepip 2>/dev/null || echo "$(PYTHON) does not run, or is not Python 3")
# Ends make with that one line.
check_python = $(if $(COMPLAINT),$(error $(COMPLAINT); to use another Python: make PYTHON=python3.12))

.PHONY: tune test check audit bench parity browser prometheus clean

tune: $(STAMP)  ## the main job on the embedded synthetic dataset: raw films to a checked submission.csv
	$(BIN)/python jobs/tune.py smoke --name $(NAME)

test: $(STAMP) browser prometheus  ## every test, the slow ones too; in two processes, since many of them wait for others
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

browser:  ## the reports are opened in a headless browser by a test, which is skipped where there is none and no root to add it
	@if ! { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
		&& [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; fi

prometheus:  ## a test asks it for the metrics of a search; the same holds: skipped where there is none and no root to add it
	@if ! command -v prometheus >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus >/dev/null; fi

check: $(STAMP)  ## style, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy deploy/spot_watch.py

# In an environment of its own: its dependencies are none of ours. --strict, or a package that it cannot look up would pass.
audit:  ## are weaknesses known of the pinned versions? Asks a public database, so it is no part of `check`
	$(check_python)
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	@.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt || \
		{ echo 'audit: FAILED. Unless weaknesses are listed above, the database was out of reach and nothing is known: run it where it is.' >&2; exit 1; }

bench: $(STAMP)  ## speed, as ratios within one run; benchmarks/README.md holds the tables
	$(BIN)/python benchmarks/fusion.py
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/metric.py
	$(BIN)/python benchmarks/submission.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/training_images.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/search_start.py
	$(BIN)/python benchmarks/search_concurrent.py
	$(BIN)/python benchmarks/search_halving.py
	$(BIN)/python benchmarks/search_cluster.py

parity: $(STAMP)  ## final scores of our training loop and of each library's own, on synthetic films: an hour or two of one core
	$(BIN)/python benchmarks/parity.py --results parity.jsonl

$(STAMP): pyproject.toml constraints.txt
	$(check_python)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Two packages bring the same module cv2: keep the build that needs no graphics libraries of the system.
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps --constraint constraints.txt opencv-python-headless
	# The competition's annotations, which the tests read, come in a package whose own dependencies nothing here needs.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt torchxrayvision
	touch $(STAMP)

clean:  ## what the other targets made, the runs and the sample data included
	rm -rf .venv data/phantom data/phantom-128 runs/smoke .pytest_cache .mypy_cache .ruff_cache
