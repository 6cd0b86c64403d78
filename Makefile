# make demo   install into .venv and run the whole pipeline on the embedded data
# make test   install into .venv and run every check and test
PYTHON ?= python3
# pip compiles nothing: of 20 000 files a run imports a third, and Python compiles and keeps those as it does
PIP = .venv/bin/python -m pip --disable-pip-version-check install -qq --no-compile --constraint constraints.txt
WORKERS = --numprocesses auto --maxprocesses 4
# the warning is of branches in the tests themselves, which are not counted
COVERAGE = .venv/bin/python -W "ignore:Unable to activate pytest branch coverage" -m slipcover
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test
demo: .venv/installed
	.venv/bin/anneal run

test: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(COVERAGE) -m pytest $(WORKERS) --dist worksteal -m "not slow"
	.venv/bin/python -m pytest $(WORKERS) --dist loadfile -m slow
	@echo "covered by the tests that are not slow (coverage.txt):"
	@awk '/^\(summary\)/ {print $$6 " % of branches, " $$7 " % of lines and branches"}' coverage.txt

# pip first: the one that Python 3.11 comes with takes a minute and a half longer to choose the packages.
# torch next: asked for by another package, pip may take a build for GPUs of several GB. Most of it is imported:
# another core compiles it while the rest is installed. At last what a first run would wait for.
.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch
	.venv/bin/python -m compileall -qq .venv/lib & $(PIP) --editable . && wait
	.venv/bin/python -m flows.prepare
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable ".[test]"
	touch $@
