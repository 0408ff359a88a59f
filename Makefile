# `make demo` and `make test` do all their set-up: a virtual environment in .venv, the packages, the weights.
PYTHON ?= python3
BIN := .venv/bin
# One process per core, each with its share of the files, the long ones first; what measures time runs alone afterwards.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test fast lint clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: .venv/.installed
	$(BIN)/duet train --series demo --out runs/demo

# Everything, the end-to-end runs included. The weights are fetched first: tests themselves use no network.
test: lint
	-$(BIN)/duet weights yolo11n
	$(BIN)/python -m pytest $(PARALLEL) -m "not alone" --durations 25
	$(BIN)/python -m pytest -m alone

# Without the end-to-end runs.
fast: .venv/.installed
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not alone"

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist
