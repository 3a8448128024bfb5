# Node 20 still works, though its support has ended.
export JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION = 20
# With it, each process would compile every module that it imports.
unexport PYTHONDONTWRITEBYTECODE
# The CDK's Python side unpacks itself there; the home folder may be read-only.
export JSII_RUNTIME_PACKAGE_CACHE_ROOT = $(CURDIR)/.cache/jsii

# The demo's test watches the disk: no other may write there meanwhile.
PYTEST = .venv/bin/python -m pytest -q

.PHONY: help setup demo test test-fast test-image test-machine test-all lint lock clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile

setup: ## install what `make` needs, once
	@python3 rehearsal/setup.py

demo: setup ## from stacks to prediction on this machine, no AWS account needed
	@.venv/bin/python -m rehearsal.demo

test-fast: setup ## of the tests, what takes under a minute: to run after each edit
	@$(PYTEST) -n 3 --fast

test: lint ## style, types and every test
	@$(PYTEST) -n 3 --dist worksteal --ignore tests/rehearsal/test_demo.py
	@$(PYTEST) tests/rehearsal/test_demo.py

test-all: lint ## proofs that take long as well
	@$(PYTEST) -m "slow or not slow" -n 3 --dist worksteal --ignore tests/rehearsal/test_demo.py
	@$(PYTEST) -m "slow or not slow" tests/rehearsal/test_demo.py

test-image: setup ## build the serving image with buildah, as root, and run it
	@$(PYTEST) -m slow -rs tests/serving/container/test_built_image.py

test-machine: setup ## boot the user data under cloud-init and systemd, as root
	@$(PYTEST) -m slow -rs tests/infra/test_booted_machine.py

lint: setup ## ruff, mypy, and which package imports which
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

LOCK = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --custom-compile-command "make lock"

lock: setup ## requirements.txt and .ci/checkov.txt from what is asked for in requirements.in
	@$(LOCK) requirements.in --output-file requirements.txt
	@$(LOCK) .ci/checkov.in --output-file .ci/checkov.txt

clean: ## back to a fresh clone: the next run sets up again
	@rm -rf .venv .cache node_modules .demo cdk.out .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
