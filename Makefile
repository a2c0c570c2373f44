# Every target sets up what it needs first (.venv; fast when nothing has changed).
# The logic is in tools/setup_environment.py.

PYTHON ?= python3
CONFIG ?= default
DEMO_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=
MUTATE_ARGS ?=

# Two tests at a time; what PYTEST_ARGS says comes later and wins ("-n 0 --pdb").
PARALLEL := -n 2 --dist worksteal

# Tests of whole programs on the smallest configuration: a simulator that counts takes minutes to build.
COVERED := tests/sim/test_top_matmul.py tests/sim/test_end_to_end.py tests/sim/test_batch.py -m "not slow" \
  -k "not (default or edge or large or 6x10 or do_not_depend or tiny-stalls)"

BIN := .venv/bin

# $(call setup,ARGUMENTS): one line where there is no Python at all, else the bootstrap's.
define setup
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "error: $(PYTHON) was not found: install Python 3.11 or later, or name it, as in 'make PYTHON=python3.12 ...'" >&2; \
	  exit 1; }
	@"$(PYTHON)" tools/bootstrap.py $(1)
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all mutate coverage bench verilog lint clean distclean

help:  ## say what the targets do
	@echo "Tilewright: make TARGET [PYTHON=python3.12]"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

setup:  ## make .venv with everything in it, for development
	$(call setup,--extras dev)

demo:  ## write a tale on the simulated accelerator, and check it against the golden model
	$(call setup,--extras rtl)
	@$(BIN)/tilewright demo $(DEMO_ARGS)

test:  ## run the tests, without the slow ones (PYTEST_ARGS=... adds arguments)
	$(call setup,--extras dev --cocotb)
	@$(BIN)/python -m pytest -m "not slow" $(PARALLEL) $(PYTEST_ARGS)

test-all:  ## run every test
	$(call setup,--extras dev --cocotb)
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

mutate:  ## plant bugs in every block, and see whether its bench finds them (MUTATE_ARGS="Skew --count 20")
	$(call setup,--extras dev --cocotb)
	@$(BIN)/python -m tilewright_sim.mutate $(MUTATE_ARGS)

coverage:  ## which lines of the gateware run, and which signals toggle, in whole programs
	$(call setup,--extras dev)
	@rm -rf build/coverage
	@TILEWRIGHT_COVERAGE=build/coverage $(BIN)/python -m pytest $(COVERED) $(PYTEST_ARGS)
	@$(BIN)/python -m tilewright_sim.coverage build/coverage

bench:  ## measure speed, utilisation and quality (BENCH_ARGS=... adds arguments)
	$(call setup,--extras rtl)
	@$(BIN)/python -m tilewright.bench $(BENCH_ARGS)
	$(if $(BENCH_ARGS),,@$(BIN)/python -m tilewright.bench quality)

verilog:  ## write the Verilog to build/verilog (CONFIG=tiny, edge, default, large or a .toml)
	$(call setup,--extras rtl)
	@$(BIN)/tilewright verilog --config $(CONFIG) -o build/verilog

lint:  ## check style and types
	$(call setup,--extras dev)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:  ## remove what the targets built, but not .venv
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis obj_dir sim_build
	@find hw sw sim tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too (the simulators in the user's cache stay)
	@rm -rf .venv .cache
