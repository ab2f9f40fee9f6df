# Two commands: `make demo` and `make test`. Both need Python 3.11+ and this file; uv is fetched when it is absent.
SHELL := /bin/bash
export PATH := $(CURDIR)/.tools/bin:$(PATH)
# Without byte code, every Ray worker would compile torch anew: seconds for each process.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
OUT ?= outputs/demo
SEED ?= 0

.PHONY: demo reproduce test test-slow bench lint mlflow uv env
demo: env
	.venv/bin/python -m jobs.demo --output $(OUT) --seed $(SEED) \
	  $(if $(HR),--hr $(HR)) $(if $(LR),--lr $(LR)) $(if $(TEST),--test $(TEST)) $(if $(REAL),--real $(REAL))

# The paper's tables, on drawn faces or one's own: WHAT=table3 PRESET=mini; docs/experiments.md.
reproduce: env
	.venv/bin/python -m jobs.reproduce $(or $(WHAT),all) --preset $(or $(PRESET),mini) --seed $(SEED) \
	  $(if $(HR),--hr $(HR)) $(if $(LR),--lr $(LR)) $(if $(TEST),--test $(TEST)) $(if $(REAL),--real $(REAL))

# Tests with Ray are mostly waiting for its processes: a second process runs others meanwhile.
test: env lint
	.venv/bin/pytest -n 2 --dist loadgroup

test-slow: env
	.venv/bin/pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "slow or cluster or browser or chaos" --timeout 900

bench: env
	.venv/bin/python -m benchmarks.frechet

# What deploy/compose.yaml starts, without containers: on the PostgreSQL (PGHOST) and the bucket that deploy/tracking.env names.
mlflow: env
	@test -f deploy/tracking.env || { echo "cp deploy/tracking.env.example deploy/tracking.env, and change it"; exit 1; }
	set -a; source deploy/tracking.env; PGPASSWORD=$$POSTGRES_PASSWORD PGUSER=mlflow PGDATABASE=mlflow; \
	  MLFLOW_BACKEND_STORE_URI=postgresql:// MLFLOW_AUTH_CONFIG_PATH=deploy/tracking_auth.ini \
	  MLFLOW_AUTH_ADMIN_USERNAME=admin MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false; \
	  exec .venv/bin/mlflow server --app-name=basic-auth --host=$$MLFLOW_BIND --port=5000 --workers=2 \
	  --allowed-hosts=$$MLFLOW_ALLOWED_HOSTS

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyrefly check

env: uv
	uv sync --quiet --frozen --all-extras

uv:
	@command -v uv >/dev/null || { echo "fetching uv into .tools"; \
	  $(PYTHON) -m venv .tools && .tools/bin/pip install --quiet uv; }
