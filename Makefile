# Two commands: `make demo` and `make test`. Both need Python 3.11+ and this file; uv is fetched when it is absent.
SHELL := /bin/bash
export PATH := $(CURDIR)/.tools/bin:$(PATH)
# Without byte code, every Ray worker would compile torch anew: seconds for each process.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
OUT ?= outputs/demo
SEED ?= 0

.PHONY: demo test test-slow bench lint uv env
demo: env
	.venv/bin/python -m jobs.demo --output $(OUT) --seed $(SEED) \
	  $(if $(HR),--hr $(HR)) $(if $(LR),--lr $(LR)) $(if $(TEST),--test $(TEST)) $(if $(REAL),--real $(REAL))

# Tests with Ray are mostly waiting for its processes: a second process runs others meanwhile.
test: env lint
	.venv/bin/pytest -n 2 --dist loadgroup

test-slow: env
	.venv/bin/pytest -m "slow or cluster or browser or chaos" --timeout 900

bench: env
	.venv/bin/python -m benchmarks.frechet

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyrefly check

env: uv
	uv sync --quiet --frozen --all-extras

uv:
	@command -v uv >/dev/null || { echo "fetching uv into .tools"; \
	  $(PYTHON) -m venv .tools && .tools/bin/pip install --quiet uv; }
