OUT ?= studies/pocket
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test evidence campaigns test-slow test-oldest test-without-extensions lint docs bench-train bench-eval clean

quickstart: .venv/installed
	$(BIN)/rankscope quickstart --out $(OUT)

# One process per core, one thread each: most tests are too small for more.
# Some of them, or other options of pytest: make test TESTS="tests/run -k kill".
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

# Every number of evidence/ is computed again from its records, and compared with its page.
evidence: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile evidence

# What a maintainer runs before a release, for hours: faults made to happen to real commands, hostile
# inputs, the driver's load.
campaigns: .venv/installed-dev
	$(BIN)/python evidence/campaigns/faults.py
	$(BIN)/python evidence/campaigns/fuzz.py --inputs 100000
	$(BIN)/python evidence/campaigns/driver_load.py

# What takes minutes: units on a local Ray cluster, in SLURM's queue (as root, with Debian's
# slurm-wlm) and on two devices, races in small, a lesson, studies killed over and over.
test-slow: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,ray]'
	OMP_NUM_THREADS=1 RANKSCOPE_SLOW=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile \
		-m "ray or slurm or slow" --require ray --require slurm --require slow

# The core alone: a copy of the checkout without extensions, their tests, and their keys.
test-without-extensions: .venv/installed-dev
	core=$$(mktemp -d) && trap "rm -r $$core" EXIT && git ls-files -z | xargs -0 cp --parents --target-directory $$core && \
		cd $$core && rm -r src/rankscope/extensions/*/ tests/extensions/*/ && \
		export PYTHONPATH=$$core/src OMP_NUM_THREADS=1 && \
		$(CURDIR)/$(BIN)/rankscope init --schema > docs/study.schema.json && \
		$(CURDIR)/$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

# With the oldest releases that pyproject.toml admits, in an environment of its own. uv finds them.
test-oldest: .venv/bin/python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-oldest
	$(BIN)/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses auto --dist worksteal $(TESTS)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# site/index.html, which opens without a server or a network.
docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# On an idle machine, nothing beside it; see benchmarks/README.md.
bench-train: .venv/installed-dev
	$(BIN)/python benchmarks/train_sweep.py
	$(BIN)/python benchmarks/train_pocket.py

bench-eval: .venv/installed-dev
	$(BIN)/python benchmarks/evaluate_choice.py --task arc_easy
	$(BIN)/python benchmarks/evaluate_choice.py --task mmlu
	$(BIN)/python benchmarks/evaluate_generate.py

# Stamps: the package is installed again only when pyproject.toml has changed.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv .venv-oldest build dist site .hypothesis .pytest_cache .mypy_cache .ruff_cache
