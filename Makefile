# `make demo` and `make test` need Python 3.11 or later and nothing else; everything lands in .venv.
# ARGS goes to the command, as in `make demo ARGS="--set stages.teacher.steps=30"`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow lint format types clean distclean

demo: $(READY)
	$(BIN)/chorus run mini $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -q $(ARGS)

slow: $(READY)
	$(BIN)/python -m pytest -q -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/pyright

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis

distclean: clean
	rm -rf $(VENV) runs

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	touch $@
