# make serve   set up and serve the embedded pocket model      (PORT=8123, ARGS="--max-num-seqs 4")
# make test    set up and run the tests
# make check   set up and run ruff format, ruff and mypy
PYTHON ?= python3
PORT ?= 8000
ARGS ?=
BIN := .venv/bin

.PHONY: serve test check
serve: .venv/installed
	$(BIN)/glm-portable serve --port $(PORT) $(ARGS)

test: .venv/kernels
	$(BIN)/pytest -q --ignore=tests/interpreter $(ARGS)
	TRITON_INTERPRET=1 $(BIN)/pytest -q tests/interpreter

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "glm-portable needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What the GPU kernels are written in; serving on the CPU does without.
.venv/kernels: .venv/installed requirements-kernels.lock
	$(BIN)/pip install --quiet --requirement requirements-kernels.lock
	touch $@

# The Ascend backend on virtual NPUs, with the real torch_npu, in an environment of its own.
.PHONY: test-ascend
test-ascend: .venv-ascend/installed
	.venv-ascend/bin/pytest -q tests/ascend $(ARGS)

.venv-ascend/installed: requirements-ascend.lock pyproject.toml
	$(PYTHON) -m venv .venv-ascend
	.venv-ascend/bin/pip install --quiet --requirement requirements-ascend.lock
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 .venv-ascend/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
