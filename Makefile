# The first two targets need nothing but Python 3.11 or later.
PYTHON ?= python3
THREADS ?= 2
MINUTES ?= 5
# ArviZ 1.0 and later need Python 3.12 or later.
NEWER ?= python3.13
BIN := .venv/bin
# Errors alone are shown: pip and setuptools warn of much that nobody can mend.
PIP = PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --quiet
SPHINX = $(BIN)/python -m sphinx -q -E -W --keep-going -c docs -d out/doctrees .

.PHONY: demo test docs pages linkcheck notebooks examples bench soak fuzz matrix arviz wheel lint format install clean

demo: .venv/runtime  ## fit the five-wing pinwheel; figures, metrics and the animation in out/
	$(BIN)/python -m pyro_vmonf run pinwheel --quick --out out

# Each of the two workers has one core.
test: .venv/dev  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs  ## the site in out/docs; a broken link or any other warning is an error
	$(SPHINX) out/docs
	@echo "the first page is out/docs/index.html"

pages: .venv/dev  ## write results into the pages, and draw the pictures of front page and gallery
	$(BIN)/python -m benchmarks.pages
	$(BIN)/python docs/pictures.py

linkcheck: .venv/docs  ## the site's links to other places
	$(SPHINX) -b linkcheck out/linkcheck

notebooks: .venv/dev  ## run the notebooks in full and write their outputs into them
	$(BIN)/python notebooks/run.py

examples: .venv/dev  ## the larger programs in full, and their numbers
	$(BIN)/python -m examples

bench: .venv/bench  ## every benchmark; rows in out/benchmarks.jsonl, tables in benchmarks/RESULTS.md
	mkdir -p out
	echo "# The last full run of \`make bench\`\n" > benchmarks/RESULTS.md
	for name in step whole_fit sample score scaling restarts quality; do \
		$(BIN)/python -m benchmarks $$name --threads $(THREADS) --json out/benchmarks.jsonl > out/table || exit 1; \
		cat out/table; cat out/table >> benchmarks/RESULTS.md; \
	done

soak: .venv/dev  ## the same round for minutes: memory, files, param store, results
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)
	$(BIN)/python -m benchmarks.crowd --minutes $(MINUTES)

fuzz: .venv/dev  ## the tests of faults, files and bad input, many times longer
	EXAMPLES=300 FAULTS=40 KILLS=20 $(BIN)/python -m pytest -n 2 tests/test_bad_input.py tests/training/test_faults.py tests/test_files.py

matrix: .venv/dev  ## every bank with all weights, every guide and every verb
	mkdir -p out
	WHOLE_MATRIX=out/matrix.jsonl $(BIN)/python -m pytest -n 2 tests/test_swapping.py tests/test_context.py
	$(BIN)/python -m benchmarks.matrix

arviz: .venv/dev .venv-arviz/done  ## what goes to ArviZ 1.x, in an environment of ArviZ alone
	$(BIN)/python -m pytest tests/interop/test_arviz.py -k arviz_1_0

.venv-arviz/done:
	$(NEWER) -m venv .venv-arviz
	.venv-arviz/bin/pip install --quiet "arviz>=1,<2" matplotlib netCDF4
	touch $@

wheel: .venv-wheel/done  ## wheel and source archive in dist/, checked
	rm -rf dist
	.venv-wheel/bin/python -m build --outdir dist .
	.venv-wheel/bin/twine check --strict dist/*

.venv-wheel/done:
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet build twine
	touch $@

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/dev

# torch comes at its tested version: a bare torch can pull gigabytes of CUDA packages. The pip that an
# older Python brings takes half as long again.
TORCH = "$$(grep '^torch==' constraints.txt)"

.venv/pip:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade "pip>=25"
	touch $@

.venv/torch: .venv/pip constraints.txt
	$(PIP) $(TORCH)
	touch $@

.venv/runtime: .venv/torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable .
	touch $@

# What does not need torch is unpacked beside it, on another core.
BESIDE = arviz hmmlearn hypothesis ipykernel matplotlib mypy nbclient nbformat pandas pre-commit \
	pytest-xdist ruff scikit-learn

.venv/dev: .venv/pip constraints.txt pyproject.toml
	$(PIP) --no-deps $(TORCH) & first=$$!; \
	$(PIP) --constraint constraints.txt $(BESIDE); wait $$first
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@ .venv/torch .venv/runtime

.venv/bench: .venv/torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable ".[bench]"
	touch $@ .venv/runtime

.venv/docs: .venv/torch pyproject.toml
	$(PIP) --constraint constraints.txt --editable ".[docs]"
	touch $@ .venv/runtime

clean:
	rm -rf .venv .venv-arviz .venv-wheel dist out build *.egg-info
