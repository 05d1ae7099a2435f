# The two commands are `make serve` and `make test`; each installs what it needs first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.PHONY: install serve test lint format bench chaos clean
.DEFAULT_GOAL := help

help:
	@echo "make install   create $(VENV) with everything, every version pinned"
	@echo "make serve     serve the demo model on 127.0.0.1:8000   (ARGS='--port 9000' adds options)"
	@echo "make test      run the whole test suite"
	@echo "make lint      ruff and mypy --strict"
	@echo "make chaos     two minutes of kills, stops and double kills under load, every answer checked"
	@echo "make bench     measure this machine: rings, bare executor, serving   (ARGS=peers: beside other engines)"

install: $(STAMP)

# torch comes first and alone: where the index offers a CPU build of that version, pip takes it, and
# nothing that follows replaces it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Troupe needs Python 3.11 or newer; set PYTHON=python3.11, say."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-build-isolation -e '.[dev]'
	touch $(STAMP)

serve: install
	@$(BIN)/actorctl serve $(ARGS)

test: install
	$(BIN)/python -m pytest $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m tools.bench $(ARGS)

chaos: install
	$(BIN)/python -m tools.chaos --faults 110 --interval 1 --kinds kill=1,double=0.3,stop=0.15 $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
