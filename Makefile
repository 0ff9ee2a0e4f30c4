# Every target makes what it needs by itself, on a fresh machine too: the only thing to have is
# Python 3.13 or 3.12 (`.ci/find-python` looks for it). Packages come from PyPI into .venv.

BIN := .venv/bin
ARGS ?=
# Of what ARGS picks out there may be no test in one of the two halves: pytest's exit code 5.
NONE = { test $$? -eq 5 && test -n '$(value ARGS)'; }


# What `make test` runs over both engines together (auto) too: all that an engine does in one process,
# and of the real program what is hard about one. `make engines` runs the rest, and all of it over http1
# alone. Two files run each engine by themselves.
AGAIN := tests/proxy/engines $(patsubst %,tests/end_to_end/test_%.py,\
  crash_matrix cut halt_race kill many_clients secrets start upstream_faults writes_once)
EACH := --ignore=tests/proxy/engines/test_malformed.py --ignore=tests/proxy/engines/test_http1_fuzz.py
OVER = $(BIN)/python -m pytest -q $(EACH)

.DEFAULT_GOAL := help
.PHONY: help setup up test engines demo check format-check lint types contracts format eval bench \
  instructions scale proof lock

help:
	@printf '%-17s %s\n' \
	  'make up'     'start pullcord here; prints its address, stops with Ctrl-C (ARGS="--listen ...")' \
	  'make test'   'all tests, those of past incidents too, 3 rounds of each kill and race (ARGS="-k name")' \
	  'make engines' 'all tests of the engines and of the program over the http1 engine, alone and in auto' \
	  'make demo'   'a runaway agent, contained before your eyes, in about 30 seconds' \
	  'make check'  'format, lint, types, import contracts, tests' \
	  'make proof'  'the kills and races alone, 50 rounds (ROUNDS=n), a million calls (CALLS=n), an hour of fuzzing (FUZZ_SECONDS=n)' \
	  'make eval'   'the detectors over real traces: false alerts, what is caught and when' \
	  'make bench'  'direct, stock mitmdump and pullcord over both engines side by side, in one run' \
	  'make instructions'  'what a call costs in instructions, over both engines, against the baseline' \
	  'make scale'  'admissions beside a sync of the disk, and a ledger of ten million rows' \
	  'make format' 'rewrite the sources in the one format' \
	  'make setup'  'make .venv; every target above does it when needed' \
	  'make lock'   'resolve requirements.lock anew from pyproject.toml'

setup:
	@.ci/setup

up: setup
	@exec $(BIN)/pullcord up $(ARGS)

demo: setup
	@exec $(BIN)/pullcord demo $(ARGS)

# The proofs race and kill, and print what they saw: nothing runs beside them. The others wait a lot,
# so three share two cores; in the order of their folders the long files come first.
test: setup
	@$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m "not proof and not alone" $(ARGS) || $(NONE)
	@ROUNDS=$${ROUNDS:-3} $(BIN)/python -m pytest -q -m "proof or alone" $(ARGS) || $(NONE)
	@ENGINE=auto $(OVER) -n 3 --dist loadfile --no-loadscope-reorder \
	  -m "not mitmproxy and not proof and not alone" $(AGAIN) $(ARGS) || $(NONE)
	@ENGINE=auto ROUNDS=1 $(OVER) -m "not mitmproxy and (proof or alone)" $(AGAIN) $(ARGS) || $(NONE)

engines: setup
	@for engine in auto http1; do \
	  ENGINE=$$engine $(OVER) -n 3 --dist loadfile --no-loadscope-reorder \
	    -m "not mitmproxy and not proof and not alone" tests/proxy/engines tests/end_to_end $(ARGS) && \
	  ENGINE=$$engine ROUNDS=$${ROUNDS:-3} $(OVER) -m "not mitmproxy and (proof or alone)" \
	    tests/proxy/engines tests/end_to_end $(ARGS) || exit 1; \
	done

check: format-check lint types contracts test

format-check: setup
	@$(BIN)/ruff format --check --quiet --diff .

lint: setup
	@$(BIN)/ruff check --quiet .

types: setup
	@$(BIN)/mypy

contracts: setup
	@$(BIN)/lint-imports --no-logo

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

eval: setup
	@$(BIN)/python -m tests.eval.run $(ARGS)

bench: setup
	@$(BIN)/python tests/bench/run.py $(ARGS)

instructions: setup
	@$(BIN)/python -m tests.bench.instructions $(ARGS)

scale: setup
	@$(BIN)/python -m tests.bench.scale $(ARGS)

proof: setup
	@ROUNDS=$${ROUNDS:-50} CALLS=$${CALLS:-1000000} FUZZ_SECONDS=$${FUZZ_SECONDS:-3600} \
	  $(BIN)/python -m pytest -q -m proof $(ARGS)

lock: setup
	@.ci/lock
