# Everything a newcomer needs: `make demo` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test lint unit chaos chaos-cluster chaos-servers screenshots clean
.PHONY: bench-dedup bench-demo bench-fewshot bench-fewshot-beside bench-gpu bench-ingest bench-loader bench-memory bench-model bench-order bench-scale bench-shuffle bench-soak bench-train bench-workflow

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt tools/install.sh
	PYTHON=$(PYTHON) tools/install.sh

demo: install
	$(BIN)/patchline demo

# Side by side, each with a cluster of its own. More than two have not been tried.
PROCESSES ?= 2

# The long files first, so that the short ones fill the gaps between them.
test: lint
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder tests/integration tests/chaos tests/browser tests/unit tests/contract

# The same examples of each property every time; EXAMPLES=exploring draws others.
EXAMPLES ?= repeatable
unit: install
	$(BIN)/python -m pytest --hypothesis-profile $(EXAMPLES) tests/unit

# The one gate of style, types and imports: the same here, in pre-commit and in continuous integration.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Benchmarks: each prints JSON on its last line, and fails where it misses what docs/benchmarks.md promises.
bench-dedup bench-demo bench-fewshot bench-fewshot-beside bench-gpu bench-ingest bench-memory bench-model bench-order bench-scale bench-shuffle bench-train bench-workflow: bench-%: install
	$(BIN)/python -m tests.bench.$(subst -,_,$*)

# PHOTOS is a folder of JPEGs with a folder for each class.
bench-loader: install
	$(BIN)/python -m tests.bench.loader $(or $(PHOTOS),$(error give PHOTOS=DIR, a folder of JPEGs with a folder for each class))

# It needs 25 GB of disk for 10,000,000 samples, in proportion for fewer.
SAMPLES ?= 10000000
bench-soak: install
	$(BIN)/python -m tests.bench.soak --samples $(SAMPLES)

# SIGKILL at named points of a training run, drawn from a seed, beside the same run undisturbed.
KILLS ?= 20
SEED ?= 0
chaos: install
	$(BIN)/python -m tests.chaos.harness --kills $(KILLS) --seed $(SEED)

# SIGKILL of the driver, a worker, the raylet, the head, the S3 and the MLflow server at any moment of whole workflows.
chaos-servers: install
	$(BIN)/python -m tests.chaos.servers --kills $(KILLS) --seed $(SEED)

# Several machines in network namespaces, of which one is lost, cut off or slow: needs root, `ip`, `tc` and `unshare`.
chaos-cluster: install
	$(BIN)/python -m tests.chaos.cluster $(SCENARIOS)

# The pictures of the README: what the browser tests see of a whole `digits`.
screenshots: install
	SCREENSHOTS=build/screenshots $(BIN)/python -m pytest tests/browser
	cp $(addprefix build/screenshots/,mlflow-curves.png report-light.png report-dark-phone.png) docs/images

clean:
	rm -rf .venv build dist *.egg-info
