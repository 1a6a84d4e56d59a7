# `sudo make demo` and `sudo make test` are all a newcomer needs: both set up what is missing first.
PYTHON_ENV := .venv/bin/python
BENCHES := attach bulk dataplane fairness policy rollout

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long chaos chaos-long soak lint types contracts protos released fuzz clean $(addprefix bench-,$(BENCHES))

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '  make %-16s %s\n' $(foreach b,$(BENCHES),bench-$(b) "benchmark; writes bench/results/$(b).json (root)")

setup: ## install what is missing (root only if Debian packages are)
	@deploy/setup.sh

demo: setup ## the story on a lab of 3 hosts (root); KEEP=1 leaves the lab up
	@$(PYTHON_ENV) -m tealnet.cli.main demo $(if $(KEEP),--keep)

test: setup ## every test (root)
	@$(PYTHON_ENV) -m pytest $(ARGS)

test-long: setup ## the tests that take samples, with many of them (root, an hour or two)
	@TEALNET_LONG=1 $(PYTHON_ENV) -m pytest -m long --timeout=7200 $(ARGS)

chaos: setup ## random operations and faults for MINUTES=12, judged (root); SEED=sim:N or SEED=lab:N runs one again
	@$(PYTHON_ENV) -m tests.chaos --minutes $(or $(MINUTES),12) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY))

chaos-long: setup ## the same for HOURS=2, the soak, and long outages (root)
	@$(PYTHON_ENV) -m tests.chaos.soak
	@$(PYTHON_ENV) -m tests.chaos.outages
	@$(PYTHON_ENV) -m tests.chaos.promises all
	@$(PYTHON_ENV) -m tests.chaos.herd
	@$(PYTHON_ENV) -m tests.chaos --minutes $$(( $(or $(HOURS),2) * 60 ))

soak: setup ## 2,000 workloads come and go, 200 agents are killed: is anything left? (root)
	@$(PYTHON_ENV) -m tests.chaos.soak

lint: setup ## ruff
	@$(PYTHON_ENV) -m ruff check .
	@$(PYTHON_ENV) -m ruff format --check .

types: setup ## mypy --strict
	@$(PYTHON_ENV) -m mypy

contracts: setup ## who may import whom
	@.venv/bin/lint-imports

protos: setup ## lint the protos, compare them with the released ones, and generate their modules
	@.venv/bin/buf lint
	@.venv/bin/buf breaking --against protos/released.binpb
	@$(PYTHON_ENV) hatch_build.py

released: setup ## with a release: from now on the protos must stay compatible with these
	@.venv/bin/buf build --exclude-source-info -o protos/released.binpb

FUZZ_LIB := build/fuzz/lib
fuzz: setup ## coverage-guided fuzzing of all decoders for SECONDS=60 (installs atheris below build/)
	@[ -d $(FUZZ_LIB)/atheris ] || $(PYTHON_ENV) -m pip install --disable-pip-version-check --root-user-action=ignore \
	  --no-input --quiet --no-deps --target $(FUZZ_LIB) -r tests/fuzz/requirements.txt
	@PYTHONPATH=$(FUZZ_LIB) $(PYTHON_ENV) -m tests.fuzz --seconds $(or $(SECONDS),60)

$(addprefix bench-,$(BENCHES)): bench-%: setup
	@$(PYTHON_ENV) -m bench.$*

clean: ## remove caches, generated modules and the virtual environment
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find tealnet \( -name '*_pb2.py' -o -name '*_pb2.pyi' -o -name '*_pb2_grpc.py' \) -delete
