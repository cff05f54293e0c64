# Two commands for a fresh clone: `make demo` and `make test`.  Both make .venv and install the pinned requirements once.
SHELL := /bin/bash

# The first of these that is Python 3.10, 3.11 or 3.12; `make test PYTHON=/path/to/python3` overrides the search.
IS_SUPPORTED := -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.10 python3; do \
	$$python $(IS_SUPPORTED) >/dev/null 2>&1 && command -v $$python && break; done)

VENV_PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
REQUIREMENTS := requirements.txt requirements-dev.txt constraints.txt

.PHONY: demo test test-slurm test-harnesses lint install clean

demo: $(INSTALLED)
	$(VENV_PYTHON) -m megatron_moe_grpo demo

test: $(INSTALLED)
	$(VENV_PYTHON) -m pytest tests/unit
	$(VENV_PYTHON) -m pytest tests -m "not gpu and not slurm and not harness" --ignore tests/unit

# A real Slurm on this machine: Debian's packages, root, and two nodes on loopback addresses.  Skipped, with the reason,
# where that cannot be.
test-slurm: $(INSTALLED)
	@command -v slurmctld >/dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; } || true
	$(VENV_PYTHON) -m pytest tests/slurm -rs

# Other people's harnesses and clients against our server, each in a virtual environment of its own (3.5 GB, made once).
test-harnesses: $(INSTALLED)
	$(VENV_PYTHON) -m pytest tests/harnesses -rs

lint: $(INSTALLED)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	.venv/bin/shellcheck --external-sources launch/*.sh

install: $(INSTALLED)

# .venv is made anew when it lacks pip (Debian's python3 without python3-venv leaves such a half) or has another Python
# than we support; a changed requirement only installs on top.  The stamp is touched last, so a failed try is repeated.
$(INSTALLED): $(REQUIREMENTS)
	@if ! { $(VENV_PYTHON) $(IS_SUPPORTED) && $(VENV_PYTHON) -m pip --version; } >/dev/null 2>&1; then \
		python="$(PYTHON)"; \
		if [ -z "$$python" ] || ! "$$python" $(IS_SUPPORTED); then \
			echo "error: no Python that we support"; \
			echo "  got:      $$("$${python:-python3}" --version 2>/dev/null || echo 'none')"; \
			echo "  expected: Python 3.10, 3.11 or 3.12"; \
			echo "  to do:    install one, or pass its path: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; \
			exit 1; \
		fi >&2; \
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "error: $$python cannot make virtual environments"; \
			echo "  to do:    sudo apt-get install python3-venv"; \
			exit 1; \
		fi >&2; \
		echo "making .venv with $$python"; \
		"$$python" -m venv --clear .venv; \
	fi
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --no-deps --editable .
	@touch $@

# Runs are kept: delete runs/ yourself.
clean:
	rm -rf .venv .pytest_cache .ruff_cache build
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
