# Everything a newcomer needs: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint unit clean bench-dedup bench-demo bench-ingest bench-order bench-shuffle

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt tools/install.sh
	PYTHON=$(PYTHON) tools/install.sh

demo: install
	$(BIN)/patchline demo

# Integration tests have the machine to themselves: each of them starts as many processes as there are cores.
test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/unit tests/contract
	$(BIN)/python -m pytest tests/integration

unit: install
	$(BIN)/python -m pytest tests/unit

# The one gate of style, types and imports: the same here, in pre-commit and in continuous integration.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Benchmarks: each prints JSON on its last line, and fails where it misses what docs/benchmarks.md promises.
bench-dedup bench-demo bench-ingest bench-order bench-shuffle: bench-%: install
	$(BIN)/python -m tests.bench.$*

clean:
	rm -rf .venv build dist *.egg-info
