# demo | test | notebooks | bench | style, nothing else. Each sets itself up: .venv holds all it needs.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test notebooks bench style
.DEFAULT_GOAL := demo

demo: .venv/ready
	$(BIN)/python scripts/demo.py

# Two processes of one thread: small models and starts of Python gain little from a second thread.
test: .venv/ready
	$(BIN)/python scripts/get_model.py smollm2-135m
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

notebooks: .venv/ready
	$(BIN)/python scripts/get_model.py smollm2-135m
	$(BIN)/python scripts/run_notebooks.py

bench: .venv/ready
	$(BIN)/python scripts/get_model.py smollm2-135m
	$(BIN)/python -m benchmarks.build
	$(BIN)/python -m benchmarks.metrics --impressions 10000
	$(BIN)/python -m benchmarks.growth --rounds 1
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.vllm_scoring
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.document

style: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# A file, made last, so that an interrupted install is done again.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
