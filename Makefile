# What a contributor runs. `make` alone lists it.

ifndef PYTHON
# Asked to run, not only looked for: a name on the path may be a shim with nothing behind it.
PYTHON := $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
endif

VENV  := .venv
PINS  := .venv-pins
PEERS := .venv-peers
MUTANTS := .venv-mutants
DIST := .venv-dist
PIP   := bin/python -m pip --disable-pip-version-check --quiet

# pyright's wrapper asks the network for a newer release of itself, unless told not to.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# The suite starts several hundred interpreters: without bytecode, each would compile the library again.
unexport PYTHONDONTWRITEBYTECODE

define CHECK_PYTHON
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
"stageflow needs Python 3.11 or later, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" \
% sys.version_info[:2])'
endef

.DEFAULT_GOAL := help
.PHONY: help api-types ui-build screenshots test test-slow test-ray test-matrix test-uvloop mutants dist release docs docs-serve demo bench \
    bench-peers format schemas constraints clean

help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

ui-build: $(VENV)/.dev ## Build the page of the web UI, if web/ changed
	$(VENV)/bin/python hatch_build.py

test: $(VENV)/.dev ui-build ## Check format, lint and types, then run the tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy & mypy=$$!; $(VENV)/bin/pyright; pyright=$$?; wait $$mypy && exit $$pyright
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile -m "not slow and not ray"

test-slow: $(VENV)/.dev ui-build ## Run the tests that start a browser or many processes, or check many states
	$(VENV)/bin/pytest --numprocesses auto --dist loadfile -m "slow and not ray" $(ARGS)

test-ray: $(VENV)/.dev ## Run the tests of stages on Ray, on a local cluster
	RAY_USAGE_STATS_ENABLED=0 $(VENV)/bin/pytest -m ray $(ARGS) tests/test_ray.py tests/test_docs.py

test-matrix: $(VENV)/.dev ## Run the tests on every installed Python and print a table
	$(VENV)/bin/python -m tests.matrix $(ARGS)

test-uvloop: $(VENV)/.dev ## Run the tests with uvloop as the event loop
	PYTHONPATH=tests/uvloop_site $(VENV)/bin/pytest $(ARGS)

mutants: $(VENV)/.dev $(MUTANTS)/.installed ## Mutate lines of the code and list the mutations that no test detects
	$(MUTANTS)/bin/python -m tests.mutants $(ARGS)

dist: $(DIST)/.installed ## Build sdist, wheel and SBOM, and test the wheel in clean environments
	$(DIST)/bin/python tools/dist.py $(ARGS)

release: test test-slow dist ## Perform every step of a release except publishing
	$(DIST)/bin/python tools/dist.py --release

docs: $(VENV)/.dev ## Build the documentation site in build/site; warnings are errors
	$(VENV)/bin/python tools/site/build.py

docs-serve: docs ## Build the documentation site, and serve it on port 8000 of this machine
	$(VENV)/bin/python -m http.server --bind 127.0.0.1 --directory build/site 8000

demo: $(VENV)/.cli ## Run the demonstration, and build the page of the web UI if npm is installed
	@$(VENV)/bin/python hatch_build.py || echo "The demo continues without the web UI." >&2
	$(VENV)/bin/stageflow demo

bench: $(VENV)/.dev ## Run the benchmarks
	$(VENV)/bin/python -m benchmarks

bench-peers: $(VENV)/.dev ## Run the benchmarks beside other engines
	$(VENV)/bin/python -m benchmarks.peers

format: $(VENV)/.dev ## Format the code and mend what ruff can mend
	$(VENV)/bin/ruff check --fix --exit-zero --quiet .
	$(VENV)/bin/ruff format .

schemas: $(VENV)/.cli ## Write the published JSON Schemas again
	$(VENV)/bin/stageflow schema --to src/stageflow/schemas

api-types: $(VENV)/.dev ## Write the TypeScript types of the web API again
	$(VENV)/bin/python tools/api_types.py > web/src/api.ts

screenshots: $(VENV)/.dev ui-build ## Take the screenshots of the docs again
	$(VENV)/bin/python tools/screenshots.py

constraints: ## Pin the newest version of every package again
	@$(CHECK_PYTHON)
	rm -rf $(PINS)
	$(PYTHON) -m venv $(PINS)
	$(PINS)/$(PIP) install hatchling hatch-fancy-pypi-readme setuptools
	$(PINS)/$(PIP) install --no-build-isolation '.[cli,dev]'
	sed '/^[^#]/,$$d' constraints.txt > $(PINS)/constraints.txt
	$(PINS)/$(PIP) freeze --all --exclude stageflow --exclude pip >> $(PINS)/constraints.txt
	mv $(PINS)/constraints.txt constraints.txt
	rm -rf $(PINS)

clean: ## Remove what was installed, built and cached
	rm -rf $(VENV) $(PINS) $(PEERS) $(MUTANTS) $(DIST) .matrix build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A separate environment: its packages are not pinned together with those of the test suite.
$(MUTANTS)/.installed: tests/mutants-requirements.txt
	$(PYTHON) -m venv $(MUTANTS)
	$(MUTANTS)/$(PIP) install -r tests/mutants-requirements.txt
	@touch $@

$(DIST)/.installed: tools/dist-requirements.txt
	$(PYTHON) -m venv $(DIST)
	$(DIST)/$(PIP) install -r tools/dist-requirements.txt
	@touch $@

# What a user has, and on top of it what a contributor needs: `make demo` waits for no type checker.
# hatchling and its plug-in come first and build outside pip's isolation, so that they too are pinned; so does
# setuptools, for what is published as source alone: the one that Python 3.11 brings builds no wheels.
$(VENV)/.cli: pyproject.toml constraints.txt
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/$(PIP) install -c constraints.txt hatchling hatch-fancy-pypi-readme setuptools
	$(VENV)/$(PIP) install -c constraints.txt --no-build-isolation -e '.[cli,store,ui]'
	@touch $@

$(VENV)/.dev: $(VENV)/.cli
	$(VENV)/$(PIP) install -c constraints.txt --no-build-isolation -e '.[cli,dev]'
	@touch $@
