# Everything a newcomer needs: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dstack
# Compiled dependencies are shared between clones.
export CARGO_TARGET_DIR ?= $(cache)/target
tools := $(cache)/tools
export DSTACK_BIN_DIR := $(CARGO_TARGET_DIR)/release
export PATH := $(tools)/bin:$(PATH)

vhost_device_vsock := 0.3.0
cargo_deny := 0.20.2
cargo_fuzz := 0.13.2
# Only to be compared with.
dcap_qvl_cli := 0.7.1
services := -p dstack-cli -p dstack-vmm -p dstack-supervisor -p dstack-kms -p dstack-tee-simulator -p dstack-verifier

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install the Debian packages that are missing
	@scripts/install-deps

$(tools)/bin/vhost-device-vsock:
	cargo install --quiet --locked --root $(tools) --version $(vhost_device_vsock) vhost-device-vsock

$(tools)/bin/cargo-deny:
	cargo install --quiet --locked --root $(tools) --version $(cargo_deny) cargo-deny

$(tools)/bin/dcap-qvl:
	cargo install --quiet --locked --root $(tools) --version $(dcap_qvl_cli) dcap-qvl-cli

$(tools)/bin/cargo-fuzz:
	cargo install --quiet --locked --root $(tools) --version $(cargo_fuzz) cargo-fuzz

.PHONY: build
build: deps $(tools)/bin/vhost-device-vsock ## build every program
	cargo build --locked --release $(services)

.PHONY: image
image: build ## build the development flavour of dstack-os and the example's container images
	$(DSTACK_BIN_DIR)/dstack os build --flavor development
	examples/hello/build-images

.PHONY: demo
demo: image ## an application in a real VM, verified; KEEP=1 leaves it running
	@scripts/demo $(if $(KEEP),--keep)

.PHONY: test
test: image check ## the whole test suite, end-to-end boot included
	cargo test --locked --no-fail-fast --workspace --all-features

.PHONY: check
check: deps $(tools)/bin/cargo-deny ## formatting, lints, floors, file sizes, dependency policy
	cargo xtask check
	cargo deny --log-level error check bans licenses sources

.PHONY: bench
bench: image $(tools)/bin/dcap-qvl ## the figures of SPECIFICATION.md
	scripts/bench

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: deps $(tools)/bin/cargo-fuzz ## random input for every parser of strangers' bytes; FUZZ_SECONDS=60, FUZZ=target for one
	tests/fuzz/run $(FUZZ_SECONDS) $(FUZZ)

.PHONY: sdk-typescript
sdk-typescript: ## the verifier as WebAssembly with its JavaScript package, tested in Node.js and Chromium
	@scripts/install-deps rustc-web rust-web-src lld-22 chromium-headless-shell $(if $(shell command -v npm),,nodejs npm)
	cd sdk/typescript && npm ci --no-audit --no-fund && npm run --silent build && ./build-wasm && npm test
	node sdk/typescript/test/browser.mjs chromium-headless-shell
