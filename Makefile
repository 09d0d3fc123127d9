# Everything runs in .venv, which the first target that needs it makes. PYTHON names the
# interpreter to make it with (3.10 or newer); TORCH and TRITON other releases than those pinned in
# requirements-dev.txt.
PYTHON ?= python3
TORCH ?=
TRITON ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp') setup.py pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help build demo test test-all test-matrix sanitize arm fuzz load defects audit dist check-full lint format bench instructions goals sweep fresh company figures clean

help: ## list these verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

$(VENV)/.environment: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=..." if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed $(if $(TORCH),-e 's/^torch==.*/torch==$(TORCH)/') $(if $(TRITON),-e 's/^triton==.*/triton==$(TRITON)/') -e '' requirements-dev.txt > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.build: $(VENV)/.environment $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[check,test,bench,examples]'
	@touch $@

build: $(VENV)/.build ## make .venv and build the extension, if that is not done yet

demo: build ## train on real data with both sigmoids, then the quick benchmark
	$(BIN)/python examples/binary_classification.py
	$(BIN)/python -m bench --quick

# A process for each core, but no more than 8, since each imports torch; a file's tests in one. Files
# in their order, in which those of few but long tests are not the last.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: build ## the suite, in 5 to 8 minutes
	$(PYTEST)

test-all: build ## the suite and what repeats it for other dtypes, architectures and huge tensors
	$(PYTEST) -m 'slow or not slow'

# Every torch (two digits) and every Python once, then the other corners: the oldest torch with the
# newest Python, the newest with the oldest Python that it has a wheel for, and the last for Python
# 3.10. Gigabytes of downloads each.
MATRIX ?= 3.10:2.11.0 3.11:2.12.1 3.12:2.13.0 3.13:2.14.1 3.14:2.15.0 \
	3.14:2.11.0 3.11:2.15.0 3.10:2.14.1
test-matrix: build ## the suite with other releases of torch and Python
	$(BIN)/python -m tools.matrix $(MATRIX)

# The torch-free kernels under sanitizers, three minutes of two cores; needs g++ alone. ONE_IN=8 runs
# an eighth of the trials, always the same, in one and a half.
ONE_IN ?= 1
sanitize: $(VENV)/.environment ## the kernels under address, undefined-behaviour and thread sanitizers
	$(BIN)/python -m tests.native.run sanitize --one-in $(ONE_IN)

# Needs g++-aarch64-linux-gnu and qemu-user; ARM_CXX and ARM_EMULATOR name others.
arm: $(VENV)/.environment ## the kernels for 64-bit ARM by emulation: memory, bits of x86; 5 minutes
	$(BIN)/python -m tests.native.run arm

# Long runs, which leave their figures in bench/results/reliability.json. The fuzz target needs clang.
EXECUTIONS ?= 10000000
fuzz: build ## kernels under libFuzzer, the Python face by hypothesis and programs; 45 minutes
	$(BIN)/python -m tests.native.run fuzz --executions $(EXECUTIONS) --write
	$(BIN)/python -m tests.native.run properties --write
	$(BIN)/python -m tests.fuzz_programs --write

load: build ## threads, calls and training steps for a quarter of an hour, results checked
	$(BIN)/python -m tools.load --write

defects: build ## plant known defects in copies and see which check sees which; 20 minutes
	$(BIN)/python -m tools.defects --write

# pip-audit has an environment of its own: it would put its dependencies into the lock. Without
# --strict it finds no vulnerabilities, and succeeds, where its database cannot be read.
AUDIT := build/audit
audit: build ## write the development lock with licences; known vulnerabilities, by pip-audit
	$(BIN)/python -m tools.dependencies requirements-lock.txt
	test -x $(AUDIT)/bin/pip-audit || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(AUDIT)/bin/pip-audit --strict --requirement requirements-lock.txt --no-deps --disable-pip

dist: build ## a wheel and a source distribution, each tried in an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m tools.try_distribution dist/*.whl dist/*.tar.gz

# The folder in bench/results that today's benchmark writes; MACHINE=... names another.
MACHINE ?= $(shell $(BIN)/python -c 'import torch; from bench import machine; \
	print(machine.folder_name("cuda" if torch.cuda.is_available() else "cpu"))')
check-full: build ## measure the errors of every kernel, for all 2^32 numbers of float32
	$(BIN)/python -m fused_sigmoid check --full --json bench/results/$(MACHINE)/check.json
	$(BIN)/python -m tools.error_budget --write
	$(BIN)/python -m tests.native.run quotient

lint: build ## ruff, mypy, clang-format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(find csrc tests tools -name '*.h' -o -name '*.cpp')

format: build ## format Python and C++
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $$(find csrc tests tools -name '*.h' -o -name '*.cpp')

bench: build ## the full benchmark of this machine's devices
	$(BIN)/python -m bench

instructions: build ## record how many instructions each kernel executes
	$(BIN)/python -m tools.instructions --write

goals: build ## the rows that have a goal on a CPU, met or missed
	$(BIN)/python -m bench --goals

sweep: build ## never slower than torch? all sizes, dtypes and layouts; half an hour
	$(BIN)/python -m bench --sweep --time-limit 1800

# PROCESSES of each side for a row; ALLOCATORS of those that are installed, in place of all.
PROCESSES ?= 5
ALLOCATORS ?=
fresh: build ## never slower than torch in a process of its own, with any allocator? 20 minutes
	$(BIN)/python -m bench.fresh_processes --processes $(PROCESSES) $(if $(ALLOCATORS),--allocators $(ALLOCATORS))

company: build ## gradients before nn.BCELoss, trainings with wrong labels: recorded anew; 2 minutes
	$(BIN)/python -m examples.loss_gradients --measure
	$(BIN)/python -m examples.wrong_labels --measure

figures: build ## write the tables and pictures of README and docs from committed results
	$(BIN)/python -m examples.gradient_accuracy
	$(BIN)/python -m examples.loss_gradients
	$(BIN)/python -m examples.wrong_labels
	$(BIN)/python -m bench.pages

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) .matrix build dist *.egg-info fused_sigmoid/*.so
