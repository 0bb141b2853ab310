# make demo    install, pretrain on the embedded population (or SCANS=DIR), write a report
# make test    install, run the quick tests
# make docs    the documentation as a site, into site/
# make audit   known vulnerabilities of the pinned versions
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKSPACE ?= demo-workspace
POPULATION := $(WORKSPACE)/population

.PHONY: demo test test-all bench bench-gpu lint docs audit install

install: $(VENV)/installed

# hnswlib is compiled here; without this flag its code runs only on processors like this one.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	HNSWLIB_NO_NATIVE=1 $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $@

ifdef SCANS
demo: install
	$(BIN)/raygenesis run --scans "$(SCANS)" --workspace $(WORKSPACE)
else
demo: install
	@echo "demo: on a simulated population of 48 heads; for your own scans: make demo SCANS=DIR WORKSPACE=DIR"
	$(BIN)/python -m raygenesis.demo.population $(POPULATION)
	$(BIN)/raygenesis run --scans $(POPULATION)/scans --workspace $(WORKSPACE)
	$(BIN)/raygenesis finetune --images $(POPULATION)/scans --labels $(POPULATION)/labels --workspace $(WORKSPACE) \
	  --name quarters finetune.mode=probe finetune.num_labelled=[3] finetune.num_test=8
	$(BIN)/raygenesis report --workspace $(WORKSPACE)
endif
	@if [ -n "$$DISPLAY" ] || [ "$$(uname)" = Darwin ]; then \
	  $(BIN)/python -m webbrowser "file://$(abspath $(WORKSPACE))/report/index.html"; fi

test: install lint
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-all: install lint
	$(BIN)/python -m pytest -m "slow or not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet raygenesis jobs tests infra docs
	$(BIN)/mypy

# Of a package index that has no such data, pip-audit says that it found nothing and lists every package as left out.
audit: install
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

docs: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # with --quiet warnings would not count
	@echo "docs: open $(abspath site/index.html); to search in it: python3 -m http.server --bind 127.0.0.1 --directory site"

bench: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks.archive
	$(BIN)/python -m tests.benchmarks.discovery
	$(BIN)/python -m tests.benchmarks.scale
	$(BIN)/python -m tests.benchmarks.neighbours
	$(BIN)/python -m tests.benchmarks.mixed_archive
	$(BIN)/python -m tests.benchmarks.nodes
	$(BIN)/python -m tests.benchmarks.feeding
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.corruptions
	$(BIN)/python -m tests.benchmarks.device --device cpu

bench-gpu: install
	$(BIN)/python -m tests.benchmarks.device
