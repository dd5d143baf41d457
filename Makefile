# Everything a person does here:  make help.   Works with GNU make 3.81 (macOS) and later.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RECIPE := embedded
METHODS := full lora unfrozen
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$python; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-backends test-browser test-faults test-docs test-recipes lint format docs ui up down bench \
	parity wheel clean clean-old-runs clean-runs

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the pinned dependencies and the project (the others do it when needed)

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed, and $$(python3 --version 2>&1) is what there is:" \
		"install one (https://www.python.org/downloads/), or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true  # pip does it on one core; templates don't compile
	touch $@

run: $(READY)  ## run a recipe end to end: make run RECIPE=embedded ARGS='--set ppo.steps=20'
	$(BIN)/rlhf run $(RECIPE) $(ARGS)

test: $(READY)  ## run the tests, two files at a time: make test ARGS='-k kl'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' $(ARGS)

test-recipes: $(READY)  ## every published recipe, unchanged and offline, against small stand-ins
	$(BIN)/python -m pytest tests/end_to_end/test_recipes.py tests/end_to_end/test_recipes_run.py $(ARGS)

test-backends: $(READY)  ## Prefect and MLflow on a real PostgreSQL, with logins (Debian: apt-get install postgresql)
	$(BIN)/python -m pytest tests/operations/test_postgres.py $(ARGS)

test-browser: $(READY)  ## what docs/operate.md tells, from make up to make down, in a real browser (Chromium)
	$(BIN)/python -m pytest tests/operations/test_trigger_form.py tests/operations/test_compare_browser.py \
		tests/operations/test_promotion_event.py tests/operations/test_annotate_browser.py \
		tests/operations/test_playground_browser.py $(ARGS)

test-docs: $(READY)  ## README and how-tos, command by command, in a fresh shell from a fresh clone: half an hour; the wheel
	$(BIN)/python -m pytest tests/operations/test_docs_walk.py tests/operations/test_wheel.py $(ARGS)

test-faults: $(READY)  ## kills in every stage, outages, full disks, clocks, cancellation: make test-faults ARGS='-k disk'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/operations/test_faults.py $(ARGS)

lint: $(READY)  ## ruff, mypy, the import contracts, and hadolint where it is there
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint Dockerfile

format: $(READY)  ## format the code and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write docs/recipes.md anew: what the shipped recipes take, and every key
	$(BIN)/python -m rlhf_lib.recipe.document docs/recipes.md

ui: $(READY)  ## open the results: Prefect on http://127.0.0.1:4200, MLflow on http://127.0.0.1:5000
	$(BIN)/rlhf ui $(ARGS)

up: $(READY)  ## servers, deployments and a worker, left running: make up ARGS='--prefect-port 4201'
	$(BIN)/rlhf up $(ARGS)

down: $(READY)  ## stop what make up started
	$(BIN)/rlhf down $(ARGS)

bench: $(READY)  ## speed and memory beside TRL 0.11.4, in an environment of its own: make bench METHODS='full lora'
	test -x build/trl/bin/python || PYTHON=$(BIN)/python sh benchmarks/trl_environment.sh build/trl
	for method in $(METHODS); do \
		PYTHONPATH=. $(BIN)/python benchmarks/speed.py --method $$method $(ARGS) || exit 1; done

parity: $(READY)  ## compute TRL 0.11.4's PPO statistics anew and hold ours against them
	test -x build/trl/bin/python || PYTHON=$(BIN)/python sh benchmarks/trl_environment.sh build/trl
	build/trl/bin/python benchmarks/trl_parity.py
	$(BIN)/python -m pytest tests/rlhf_lib/ppo/test_parity.py

wheel: $(READY)  ## build dist/ppo_rlhf-VERSION-py3-none-any.whl
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:  ## remove caches and build output; the runs and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find flows tasks rlhf_lib tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

clean-old-runs: $(READY)  ## remove what old runs left, as runs/settings.yaml says: make clean-old-runs ARGS=--dry-run
	$(BIN)/rlhf clean $(ARGS)

clean-runs:  ## remove ./runs: every run, its models and both databases
	rm -rf runs
