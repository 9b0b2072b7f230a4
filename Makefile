# Every target sets up .venv when it is missing. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: demo test lint type docs bench clean

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[offline,dev]'
	touch $@

demo: .venv/.ready  ## the main job on the bundled sample, offline
	$(BIN)/slmx demo

test: .venv/.ready  ## all tests, the slow ones too, on all cores
	$(BIN)/python -m pytest -q -n auto --dist worksteal

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: .venv/.ready
	$(BIN)/mypy

docs: .venv/.ready  ## docs/commands.md from the commands themselves, and .env.example
	$(BIN)/python docs/make.py

bench: .venv/.ready  ## all benchmarks; results go to benchmarks/results and docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .cache outputs
