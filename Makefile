# Every target that runs something first makes .venv, once, under the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-slow lint docs scenario gif agents leaderboard fuzz clean help

demo: $(STAMP)  ## collect logs, fit users, train a policy, score it on the ground truth
	$(BIN)/edgerec demo

# worksteal keeps the tests of a file together, so that what they share is made once.
test: $(STAMP)  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

test-slow: $(STAMP)  ## run the tests that train until something is learned, or run a whole study
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow

lint: $(STAMP)  ## style, format, spelling, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(STAMP)  ## build the documentation site, docs/_build/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo docs/_build/index.html

scenario: $(STAMP)  ## fit the two shipped scenarios again
	$(BIN)/edgerec scenario

gif: $(STAMP)  ## record docs/feed.gif: a policy scrolls one session
	$(BIN)/python examples/record_gif.py --seed 42 --out docs/feed.gif

agents: $(STAMP)  ## ship the runs that edgerec bench has trained on lite, for its --quick
	$(BIN)/python -m benchmarks.ship_agents

fuzz: $(STAMP)  ## attack the package: random feeds, corrupted files (minutes; see benchmarks/fuzz)
	$(BIN)/python -m benchmarks.fuzz

leaderboard: $(STAMP)  ## write docs/leaderboard.md from benchmarks/results
	$(BIN)/python -m benchmarks.leaderboard

# The stamp is removed first and written last, so an interrupted install is done again.
$(STAMP): setup.py constraints.txt
	@rm -f $@
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; name a Python 3.11 or newer: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: edgerec_gym needs Python 3.11 or newer, $(PYTHON) is older; name another: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e ".[dev]" -c constraints.txt
	@touch $@

clean:  ## remove .venv, builds and caches
	rm -rf .venv build dist docs/_build docs/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
