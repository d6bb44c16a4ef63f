# Every target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GUEST := .guest
CLIENT := clients/python
SOURCES := services clients protos native tests bench docs deploy
FASTPATH := services/devicehost/libfastpath.so
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
# Plugins are found in PATH; protoc itself is of another version than the packages in .venv.
PROTOC := PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=$(VENV)/protoc $(BIN)/python -m grpc_tools.protoc
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	--generate-hashes --no-emit-index-url --no-header --no-emit-package porthole-client
FRONT_END := build/bench/front_end
NET_FRONT_END := build/bench/net_front_end
NET_LOAD := build/bench/net_load
C_SOURCES := $(wildcard native/*.c native/fuzz/*.c bench/front_end/*/*.c)
C_HEADERS := $(wildcard native/*.h native/fuzz/*.h bench/front_end/*/*.h)
TIDY := $(C_SOURCES:%.c=build/tidy/%.ok)
MINI_INIT := services/guest_init/mini_init
MINI_INIT_SOURCES := $(wildcard $(MINI_INIT)/*.c)
MINI_INIT_HEADERS := $(wildcard $(MINI_INIT)/*.h)
MINI_INIT_TIDY := $(MINI_INIT_SOURCES:%.c=build/tidy/%.ok)
MINI_INIT_PROTOS := porthole/handshake/v1/guest_capabilities.proto \
	porthole/guest/v1/guest_control.proto porthole/guest/v1/mini_init.proto
# Debian's package nanopb, by its old name or its new one.
NANOPB_GENERATOR = $(shell command -v nanopb_generator.py || command -v nanopb_generator)
NANOPB := build/nanopb
IMAGE := $(GUEST)/image
PROTOS := $(sort $(shell cd protos && find porthole -name '*.proto'))
BUF := build/buf/node_modules/.bin/buf
NODE := build/node/node_modules/.package-lock.json
AXE := build/browser/node_modules/.package-lock.json
# The newest release; before the first one there is only unreleased.binpb, which sorts before v….
BASELINE = $(shell ls protos/baseline/*.binpb | sort -V | tail -1)

.DEFAULT_GOAL := help
.PHONY: help setup demo guest guest-image passt kernel test test-guest soak check fmt protos schemas baseline lock bench fuzz flaky packages mutants front-end check-protos check-c check-mini-init tidy tidy-mini-init clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

# Without the mark .venv is the rest of an interrupted run, and is made anew.
$(READY): requirements-dev.lock requirements-protos.lock pyproject.toml $(CLIENT)/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"porthole needs Python 3.11 or later; {sys.executable} is {v.major}.{v.minor}. Set PYTHON=/path/to/python3.11")'
	@test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	@rm -f $@
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --require-hashes --no-deps --upgrade --target $(VENV)/protoc -r requirements-protos.lock
	@$(PIP) install --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

$(FASTPATH): $(wildcard native/*.[ch]) native/build.py compile_flags.txt $(READY)
	@$(BIN)/python native/build.py

setup: $(READY) $(FASTPATH) ## make the virtual environment (.venv)

# With the passt of `make passt`, unless PORTHOLE_PASST names another.
demo: $(READY) $(FASTPATH) ## run the main job: three VMs, real files, the checker's verdict (ARGS=--dashboard)
	@test ! -x build/passt/passt || : "$${PORTHOLE_PASST:=$(CURDIR)/build/passt/passt}"; \
		export PORTHOLE_PASST="$${PORTHOLE_PASST:-passt}"; $(BIN)/porthole demo $(ARGS)

$(GUEST)/.ready:
	@rm -rf $(addprefix $(GUEST)/,bin boot lib usr packages) && mkdir -p $(GUEST)/packages
	@cd $(GUEST)/packages && apt-get download -qq -o APT::Sandbox::User=root busybox-static \
		"$$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $$2; exit}')"
	@for package in $(GUEST)/packages/*.deb; do dpkg-deb -x "$$package" $(GUEST) || exit; done
	@rm -r $(GUEST)/packages
	@touch $@

# The newest QEMU that is supported, where the machine's own is older and Debian has it for this machine.
$(GUEST)/qemu-10/.ready: deploy/unpack_from_debian.sh deploy/debian_archive.sh
	@if apt-get indextargets --format '$$(RELEASE)' | grep -qx bookworm; then \
		deploy/unpack_from_debian.sh bookworm-backports $(@D) \
			qemu-system-x86 qemu-system-common qemu-system-data seabios && touch $@; \
	else \
		echo "this is not Debian 12: QEMU 10 is not fetched beside the machine's own"; \
	fi

build/passt/passt: deploy/build_passt.sh deploy/debian_archive.sh
	@deploy/build_passt.sh $(@D) && touch $@

passt: build/passt/passt ## build passt of 2026 from Debian's source, for tests and benchmarks (15 s)

guest: $(GUEST)/.ready $(GUEST)/qemu-10/.ready ## fetch what tests with QEMU need, from Debian's archive (40 MB)

$(NANOPB)/.ready: $(addprefix protos/,$(MINI_INIT_PROTOS)) $(MINI_INIT)/nanopb.options
	@test -n "$(NANOPB_GENERATOR)" -a -e /usr/include/pb.h || { echo "nanopb was not found: install Debian's packages nanopb and libnanopb-dev" >&2; exit 1; }
	@rm -rf $(NANOPB) && mkdir -p $(NANOPB)
	@cd protos && $(NANOPB_GENERATOR) --quiet -I . -f ../$(MINI_INIT)/nanopb.options -D ../$(NANOPB) $(MINI_INIT_PROTOS)
	@touch $@

$(IMAGE)/x86_64/init: COMPILER := $(if $(filter x86_64,$(shell uname -m)),$(CC),x86_64-linux-gnu-gcc)
$(IMAGE)/x86_64/init: LIBRARY := -lprotobuf-nanopb
$(IMAGE)/arm64/init: COMPILER := aarch64-linux-gnu-gcc
$(IMAGE)/arm64/init: LIBRARY := $(IMAGE)/arm64/libprotobuf-nanopb.a
$(IMAGE)/arm64/init: $(IMAGE)/arm64/libprotobuf-nanopb.a

$(IMAGE)/%/init: $(MINI_INIT_SOURCES) $(MINI_INIT_HEADERS) $(NANOPB)/.ready
	@mkdir -p $(@D)
	@$(COMPILER) @$(MINI_INIT)/compile_flags.txt -isystem $(NANOPB) -Os -static -s -Wl,--build-id=none \
		-o $@ $(MINI_INIT_SOURCES) $(addprefix $(NANOPB)/,$(MINI_INIT_PROTOS:.proto=.pb.c)) $(LIBRARY)

# The library of the other architecture, by lists of packages that are not the machine's.
$(IMAGE)/arm64/libprotobuf-nanopb.a: deploy/guest_image/foreign_library.sh
	@deploy/guest_image/foreign_library.sh arm64 libnanopb-dev $@

$(IMAGE)/%/initramfs: $(IMAGE)/%/init deploy/guest_image/initramfs.py
	@$(PYTHON) deploy/guest_image/initramfs.py init $< $@

$(IMAGE)/x86_64/modules: $(GUEST)/.ready deploy/guest_image/initramfs.py
	@$(PYTHON) deploy/guest_image/initramfs.py modules $(GUEST)/lib/modules $@

guest-image: $(IMAGE)/x86_64/initramfs ## build the initramfs of Linux guests (docs/guest-init.md)
	@if [ -e $(GUEST)/.ready ]; then \
		$(MAKE) --no-print-directory --silent $(IMAGE)/x86_64/modules; \
	else \
		echo "no kernel with modules was fetched (make guest): there is no archive of its modules"; \
	fi
	@if [ -e "$$(aarch64-linux-gnu-gcc -print-file-name=libc.a 2>/dev/null)" ]; then \
		$(MAKE) --no-print-directory --silent $(IMAGE)/arm64/initramfs; \
	else \
		echo "gcc-aarch64-linux-gnu or libc6-dev-arm64-cross was not found: the image for arm64 is not built"; \
	fi

kernel: ## build the kernel of docs/kernel.md (ARCH=x86_64 or arm64; by default this machine's)
	@deploy/kernel/build.sh $(ARCH)

test: $(READY) $(FASTPATH) ## run every test that this machine can run (ARGS: of pytest)
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory --silent $(NODE) $(AXE); fi
	@$(BIN)/python -m pytest $(ARGS)

test-guest: $(READY) $(FASTPATH) guest kernel ## run the tests with our kernel in QEMU, and build what they boot
	@$(MAKE) --no-print-directory --silent guest-image
	@$(BIN)/python -m pytest -m guest_kernel $(ARGS)

soak: $(READY) $(FASTPATH) ## run the conformance tests 20 times as long, with other random calls
	@PORTHOLE_SOAK=$${PORTHOLE_SOAK:-20} PORTHOLE_SEED=$${PORTHOLE_SEED:-$$RANDOM} \
		$(BIN)/python -m pytest tests/conformance

check: $(READY) $(FASTPATH) ## formatting, lint, types, layers, protos; of C too
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory check-protos
	@$(BIN)/clang-format --dry-run --Werror $(C_SOURCES) $(C_HEADERS) $(MINI_INIT_SOURCES) $(MINI_INIT_HEADERS)
	@$(MAKE) --no-print-directory check-c
	@$(MAKE) --no-print-directory check-mini-init

check-protos:
	@if ! command -v npm >/dev/null; then \
		echo "npm was not found: buf does not check the .proto files"; \
	else \
		$(MAKE) --no-print-directory --silent $(BUF) && \
		$(BUF) format --diff --exit-code protos && \
		$(BUF) lint protos && \
		$(BUF) breaking protos --against $(BASELINE); \
	fi

$(BUF): protos/package.json protos/package-lock.json
	@mkdir -p build/buf && cp $^ build/buf
	@cd build/buf && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(NODE): clients/node/package.json clients/node/package-lock.json
	@mkdir -p build/node && cp $^ build/node
	@cd build/node && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(AXE): tests/browser/package.json tests/browser/package-lock.json
	@mkdir -p build/browser && cp $^ build/browser
	@cd build/browser && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

check-c:
	@if ! command -v $(firstword $(CC)) >/dev/null; then \
		echo "no C compiler ($(CC)) was found: of the C sources only the format is checked"; \
	else \
		printf '%s\n' $(C_SOURCES) | xargs -n1 -P2 $(CC) @compile_flags.txt -O2 -Werror -S -o /dev/null && \
		$(MAKE) --no-print-directory -j2 tidy; \
	fi

check-mini-init:
	@if ! command -v $(firstword $(CC)) >/dev/null || [ -z "$(NANOPB_GENERATOR)" -o ! -e /usr/include/pb.h ]; then \
		echo "nanopb (nanopb, libnanopb-dev) or a C compiler was not found: of mini_init only the format is checked"; \
	else \
		$(MAKE) --no-print-directory --silent $(NANOPB)/.ready && \
		printf '%s\n' $(MINI_INIT_SOURCES) | xargs -n1 -P2 $(CC) @$(MINI_INIT)/compile_flags.txt -isystem $(NANOPB) \
			-O2 -Werror -S -o /dev/null && \
		$(MAKE) --no-print-directory --silent -j2 tidy-mini-init; \
	fi

tidy: $(TIDY)

tidy-mini-init: $(MINI_INIT_TIDY)

$(MINI_INIT_TIDY): $(MINI_INIT_HEADERS) $(MINI_INIT)/compile_flags.txt $(NANOPB)/.ready

$(TIDY): $(C_HEADERS)

$(TIDY) $(MINI_INIT_TIDY): build/tidy/%.ok: %.c .clang-tidy compile_flags.txt $(READY)
	@mkdir -p $(@D)
	@$(BIN)/clang-tidy --quiet $< 2>$(@:.ok=.log) || { cat $(@:.ok=.log) >&2; exit 1; }
	@touch $@

fmt: $(READY) ## format the code, and fix the lint that can be fixed by itself
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(C_SOURCES) $(C_HEADERS) $(MINI_INIT_SOURCES) $(MINI_INIT_HEADERS)
	@test ! -x $(BUF) || $(BUF) format -w protos

protos: $(READY) ## generate stubs (in clients/python) and docs/errors.md from the .proto files
	@test -d $(VENV)/protoc/grpc_tools || { echo "protoc is built for Python 3.11 to 3.13: set PYTHON, after make clean" >&2; exit 1; }
	@find $(CLIENT) -name '*_pb2*' -delete
	@$(PROTOC) -I protos \
		--python_out=$(CLIENT) --grpc_python_out=$(CLIENT) \
		--mypy_out=quiet:$(CLIENT) --mypy_grpc_out=quiet:$(CLIENT) $(PROTOS)
	@touch $(sort $(foreach folder,$(dir $(PROTOS)),$(CLIENT)/$(dir $(folder:/=))__init__.py $(CLIENT)/$(folder)__init__.py))
	@$(BIN)/python protos/document_errors.py >docs/errors.md

schemas: $(READY) ## generate docs/schemas, of what `porthole` prints with --json, docs/virtiofsd.md and docs/metrics.md
	@$(BIN)/python -m services.cli.schemas docs/schemas
	@$(BIN)/python -m services.cli.virtiofsd.document docs/virtiofsd.md
	@$(BIN)/python -m docs.document_metrics docs/metrics.md

baseline: $(READY) ## accept the present .proto files as what buf compares with (RELEASE=v1.2.3: for good)
	@protos/baseline.sh $(RELEASE)

fuzz: $(READY) $(FASTPATH) ## fuzz the input of guests and front-ends, FUZZ_SECONDS=600 for each target
	@$(PIP) install --require-hashes -r requirements-fuzz.lock
	@nice $(BIN)/python -m tests.fuzz --seconds $${FUZZ_SECONDS:-600} $(ARGS)

flaky: $(READY) $(FASTPATH) ## run the tests that meet a kernel FLAKY_ROUNDS=20 times, under load, in random order
	@nice $(BIN)/python -m tests.flaky --rounds $${FLAKY_ROUNDS:-20} $(ARGS)

packages: $(READY) ## use the wheels with their oldest dependencies and with other Pythons
	@nice $(BIN)/python -m tests.packages

mutants: $(READY) $(FASTPATH) ## list changes of the code that no test notices (PACKAGES="folder …", ARGS=--help)
	@$(PIP) install --require-hashes -r requirements-mutants.lock
	@nice $(BIN)/python -m tests.mutants $(PACKAGES) $(ARGS)

lock: $(READY) ## pin the dependencies anew
	@$(UV_COMPILE) pyproject.toml -o requirements.lock
	@$(UV_COMPILE) pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock
	@$(UV_COMPILE) --resolution lowest-direct pyproject.toml -o requirements-lowest.lock
	@$(UV_COMPILE) --group protos --no-deps -o requirements-protos.lock
	@$(UV_COMPILE) --group fuzz -o requirements-fuzz.lock
	@$(UV_COMPILE) --group mutants -c requirements-dev.lock -o requirements-mutants.lock

$(FRONT_END): $(wildcard bench/front_end/fs/*.[ch])
$(NET_FRONT_END): $(wildcard bench/front_end/net/*.[ch])
$(NET_LOAD): $(wildcard bench/front_end/load/*.[ch])

$(FRONT_END) $(NET_FRONT_END) $(NET_LOAD): $(wildcard bench/front_end/shared/*.[ch]) compile_flags.txt
	@mkdir -p $(@D)
	@$(CC) @compile_flags.txt -O2 -g -o $@ $(filter %.c,$^)

front-end: $(FRONT_END) $(NET_FRONT_END) $(NET_LOAD)

bench: $(READY) front-end ## measure against virtiofsd, passt and others (FULL=1: everything; ARGS=--help)
	@bench/fetch_virtiofsd.sh
	@$(BIN)/python -m bench $(if $(FULL),--size full) $(ARGS)

clean: ## remove everything that the targets made
	rm -rf $(VENV) $(GUEST) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info $(FASTPATH:.so=).*
	@find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
