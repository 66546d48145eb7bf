# Two commands do everything on a fresh machine: `make demo` shows chaski at work, `make test` proves it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
DENY_VERSION := 0.20.2
CARGO_HOME ?= $(HOME)/.cargo
DENY := $(CARGO_HOME)/bin/cargo-deny
KAFKA_VERSION := $(shell sed -n 's:.*<version>\(.*\)</version>.*:\1:p' tests/kafka/pom.xml | head -1)
KAFKA_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/chaski/kafka-$(KAFKA_VERSION)

.PHONY: help demo build test test-kafka check bench fmt tools-build tools-test tools-kafka

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: tools-build ## build, then show a payment day on loopback: callbacks, repeats, forgeries, an ERP that refuses
	cargo run --release --bin chaski -- demo

build: tools-build ## the release binary, target/release/chaski
	cargo build --release --bin chaski

test: tools-build tools-test ## every test: units, properties, storage conformance, journeys, crash
	cargo test --workspace --all-targets
	cargo test --workspace --doc

test-kafka: tools-build tools-kafka ## the storage on Apache Kafka and Redis, which no configuration reaches yet, against real servers
	cargo test --package chaski-common --package chaski-dispatcher --features chaski-common/kafka,chaski-dispatcher/kafka

check: tools-build $(DENY) ## format, lints, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	$(DENY) --log-level error check bans licenses sources

bench: tools-build ## what chaski costs beside its own baseline, measured in one run
	cargo build --release --package chaski --package chaski-benches --bins
	target/release/chaski-bench --json benches/results.json

fmt: ## format the code
	cargo fmt --all

tools-build:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later (rustup.rs)"; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: apt-get install gcc libc6-dev"; exit 1; }

tools-test:
	@for tool in curl openssl python3; do \
		command -v $$tool >/dev/null || { echo "$$tool is missing: apt-get install $$tool"; exit 1; }; \
	done

# Fetched once, then no network is needed. A broker of one's own makes it unnecessary.
tools-kafka:
	@pkg-config --exists openssl zlib || { echo "libraries are missing: apt-get install pkg-config libssl-dev zlib1g-dev"; exit 1; }
	@for tool in kcat redis-server; do \
		command -v $$tool >/dev/null || { echo "$$tool is missing: apt-get install $$tool"; exit 1; }; \
	done
	@test -n "$${CHASKI_TEST_KAFKA:-}$${KAFKA_HOME:-}" || test -d $(KAFKA_CACHE)/libs || { \
		command -v java >/dev/null || { echo "java is missing: apt-get install openjdk-17-jre-headless"; exit 1; }; \
		command -v mvn >/dev/null || { echo "mvn is missing: apt-get install maven"; exit 1; }; \
		mkdir -p $(KAFKA_CACHE) && rm -rf $(KAFKA_CACHE)/fetched && \
		mvn --batch-mode --quiet --file tests/kafka/pom.xml dependency:copy-dependencies \
			-DincludeScope=runtime -DoutputDirectory=$(KAFKA_CACHE)/fetched && \
		mv $(KAFKA_CACHE)/fetched $(KAFKA_CACHE)/libs; }

$(DENY):
	cargo install cargo-deny --version $(DENY_VERSION) --locked --quiet
