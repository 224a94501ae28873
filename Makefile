# make serve       set up and serve the embedded pocket model      (PORT=8123, ARGS="--max-num-seqs 4")
# make test        set up and run the tests; the kernels in the interpreter and on simulated chips
# make verify-gpu  every case of the kernel tests in the interpreter and on both simulated chips, the
#                  code of every kernel, the pocket model layer by layer, and the simulator itself;
#                  MACHINE=gfx942, gfx950 or interpreter for the kernel tests on one of them,
#                  MACHINE=gpu PYTHON=... on the GPU that is here, with that Python's torch
# make check       set up and run ruff format, ruff and mypy
# make test-clients  real clients (openai, anthropic, LangChain, LiteLLM, lm-eval, ...), routers and
#                  hostile requests against the served pocket model: docs/clients.md. Minutes, and
#                  packages of its own, so neither `make test` nor CI runs it
PYTHON ?= python3
PORT ?= 8000
ARGS ?=
MACHINE ?=
BIN := .venv/bin
INTERPRET := TRITON_INTERPRET=1 $(BIN)/pytest -q
KERNELS := $(BIN)/pytest -q tests/kernels

.PHONY: serve test test-unit test-kernels test-interpreter test-gfx942 test-gfx950 \
	test-codegen verify-codegen verify-models verify-backends verify-simulator \
	check verify-cpu verify-gpu
serve: .venv/installed
	$(BIN)/glm-portable serve --port $(PORT) $(ARGS)

test: test-unit test-kernels test-ascend

# The tests' products are small: the threads of several processes on few cores mostly wait for each
# other (96 tests of tests/backends/test_cpu.py on a busy machine: 39 s of processor time, not 4).
test-unit test-interpreter test-gfx942 test-gfx950 test-codegen: export OMP_NUM_THREADS ?= 1

test-unit: .venv/kernels
	$(BIN)/pytest -q --ignore=tests/interpreter --ignore=tests/kernels --ignore=tests/ascend --ignore=tests/clients $(ARGS)

# With -j2 these run beside each other.
test-kernels: test-interpreter test-gfx942 test-gfx950 test-codegen

test-interpreter: .venv/kernels
	$(INTERPRET) tests/interpreter tests/kernels

test-gfx942 test-gfx950: test-%: .venv/kernels
	$(KERNELS) --machine $*

# What the kernels compile into, one case of each kind, and every one: see docs/kernels.md.
test-codegen verify-codegen: .venv/kernels
	$(BIN)/python -m glm_portable.virtual.codegen $(if $(filter test-%,$@),--quick)

# The pocket model on both simulated chips against the reference, layer by layer.
verify-models: .venv/kernels
	for chip in gfx942 gfx950; do for format in bf16 fp8; do \
		$(BIN)/glm-portable verify model --virtual $$chip --format $$format || exit 1; \
	done; done

# The whole suite on the CPU: every op with the shapes of the real models, the pocket model, and the
# suite itself by faults put in on purpose.
verify-cpu: .venv/kernels
	time -p $(BIN)/glm-portable verify ops --full --backend cpu
	time -p $(BIN)/glm-portable verify model --backend cpu
	time -p $(BIN)/glm-portable verify faults --backend cpu

# Every backend that this machine has or simulates, side by side: docs/verify.md. Exit code 2 says
# that something is unsupported.
REPORTS := build/verify
verify-backends: .venv/kernels .venv-ascend/installed
	mkdir -p $(REPORTS)
	$(BIN)/glm-portable verify --backend cpu --json $(REPORTS)/cpu.json
	for chip in gfx942 gfx950; do \
		$(BIN)/glm-portable verify --virtual $$chip --json $(REPORTS)/$$chip.json || exit 1; \
	done
	for chip in Ascend910B1 Ascend910_9391 Ascend950PR_9599; do \
		.venv-ascend/bin/glm-portable verify --virtual $$chip --json $(REPORTS)/$$chip.json \
			|| [ $$? = 2 ] || exit 1; \
	done
	$(BIN)/glm-portable verify table $(REPORTS)/*.json

# Compiled kernels with one instruction taken out: which the simulator notices.
verify-simulator: .venv/kernels
	$(BIN)/python -m glm_portable.virtual.cdna.mutation

ifdef MACHINE
verify-gpu: verify-on-$(MACHINE)
else
verify-gpu: verify-on-interpreter verify-on-gfx942 verify-on-gfx950 verify-codegen \
	verify-models verify-simulator
endif

verify-on-interpreter: .venv/kernels
	$(INTERPRET) tests/interpreter tests/kernels --full

# The torch in .venv may be built for no GPU, or for another.
verify-on-gpu:
	$(PYTHON) -m pytest -q tests/kernels --machine gpu --full

verify-on-%: .venv/kernels
	$(KERNELS) --machine $* --full

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
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 .venv-ascend/bin/pytest -q tests/ascend $(ARGS)

.venv-ascend/installed: requirements-ascend.lock pyproject.toml
	$(PYTHON) -m venv .venv-ascend
	.venv-ascend/bin/pip install --quiet --requirement requirements-ascend.lock
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 .venv-ascend/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Real clients against the server, which runs in .venv. LOAD_SECONDS=60 keeps 32 clients for a
# minute, ARGS="--table docs/clients.md" writes the results there.
LOAD_SECONDS ?= 5
.PHONY: test-clients
test-clients: .venv/installed .venv-clients/installed
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-clients/bin/pytest -q -W ignore::UserWarning \
		tests/clients --load-seconds $(LOAD_SECONDS) $(ARGS)

.venv-clients/installed: requirements-clients.lock
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --requirement requirements-clients.lock
	touch $@
