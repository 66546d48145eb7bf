# Two commands do everything on a fresh machine: `make demo` shows chaski at work, `make test` proves it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
DENY_VERSION := 0.20.2
CARGO_HOME ?= $(HOME)/.cargo
DENY := $(CARGO_HOME)/bin/cargo-deny
HELM_VERSION := v3.19.2
HELM := target/go-$(HELM_VERSION)/helm
KAFKA_VERSION := $(shell sed -n 's:.*<version>\(.*\)</version>.*:\1:p' tests/kafka/pom.xml | head -1)
KAFKA_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/chaski/kafka-$(KAFKA_VERSION)
# What brokers of tests, which live for seconds, start with: to compile them well costs more than it brings.
KAFKA_ARCHIVE := $(KAFKA_CACHE)/classes.jsa
test: export JDK_JAVA_OPTIONS := -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:SharedArchiveFile=$(KAFKA_ARCHIVE)

# Tests wait more than they compute: for brokers, for timeouts, and for processes that they start.
test: export RUST_TEST_THREADS ?= $(shell echo $$(( $$(nproc) + 1 )))

# What checks the files under deploy/; by name, so that it changes with the list.
DEPLOY_PYTHON := target/deploy-python-$(shell cat deploy/grafana/requirements.txt tests/deploy/requirements.txt | cksum | cut -d' ' -f1)

# What journeys read topics with that is not librdkafka.
TESTS_PYTHON := target/tests-python

# A minute of fuzzing of one target, unless it is said otherwise.
TARGET ?= json
SECONDS ?= 60
FUZZER := $${CARGO_TARGET_DIR:-target}/debug/examples/chaski-fuzz

.PHONY: help demo build build-test test check check-deploy check-chart pictures bench campaign fuzz fuzz-all fuzz-build forgery series constant-time fmt tools-build tools-test

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: tools-build ## build, then show a payment day on loopback: callbacks, repeats, forgeries, an ERP that refuses
	cargo run --release --bin chaski -- demo

build: tools-build ## the release binary, target/release/chaski
	cargo build --release --bin chaski

test: tools-build tools-test ## every test: units, properties, storage conformance, faults; the journeys on both storages
	cargo test --workspace --all-targets
	CHASKI_TEST_STORAGE=kafka cargo test --workspace --test it -- --skip disk:: --skip upgrade:: --skip kafka:: --skip corpus::destination:: --skip corpus::configuration:: --skip series::
	cargo test --workspace --doc
	tests/deploy/expressions.py "$${CARGO_TARGET_DIR:-target}/debug/chaski"

build-test: tools-build # what `make test` runs, without running it
	cargo test --workspace --all-targets --no-run

check: tools-build $(DENY) check-deploy ## format, lints, documentation, dependencies, what is under deploy/
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
	$(DENY) --log-level error check bans licenses sources

check-deploy: $(DEPLOY_PYTHON) ## alert rules, dashboards, container, compose, unit
	@PYTHONPATH=$(DEPLOY_PYTHON) tests/deploy/check

check-chart: $(DEPLOY_PYTHON) $(HELM) ## the chart, by helm and by Kubernetes' schemas; the first time helm is built, which takes Go and some minutes
	@PATH=$(CURDIR)/$(dir $(HELM)):$$PATH PYTHONPATH=$(DEPLOY_PYTHON) tests/deploy/chart

pictures: tools-build tools-test ## the dashboards as pictures: what they show while chaski runs under traffic and faults, in four minutes
	cargo build --bin chaski
	deploy/grafana/pictures.py "$${CARGO_TARGET_DIR:-target}/debug/chaski" deploy/grafana/pictures

bench: tools-build tools-test ## what chaski costs beside its own baseline, measured in one run: benches/README.md, with plots
	cargo build --release --package chaski --package chaski-benches --bins
	$${CARGO_TARGET_DIR:-target}/release/chaski-bench --json benches/results.json
	$${CARGO_TARGET_DIR:-target}/release/chaski-bench page

campaign: tools-build ## attack a gateway while it serves: NAME=slow, overload or forged; SEED repeats a run
	cargo build --release --package chaski --package chaski-benches --bins
	$${CARGO_TARGET_DIR:-target}/release/chaski-bench campaign $(NAME) $(if $(SEED),--seed $(SEED)) --out benches/campaigns/$(NAME).jsonl

fuzz: fuzz-build ## look for inputs that break a target, guided by coverage: make fuzz TARGET=json SECONDS=60
	@mkdir -p fuzz/found target/fuzz/$(TARGET)
	CHASKI_FUZZ_TARGET=$(TARGET) "$(FUZZER)" -max_total_time=$(SECONDS) -max_len=4096 -timeout=300 -report_slow_units=300 \
		-artifact_prefix=fuzz/found/$(TARGET)- target/fuzz/$(TARGET) fuzz/corpus/$(TARGET)

fuzz-all: fuzz-build ## the same on every target, as many at a time as there are processors; a JSON line each, SEED and SECONDS
	@tests/tools/need python3:python3
	@$(if $(SEED),SEED=$(SEED)) fuzz/all "$(FUZZER)" $(SECONDS)

# With the whole workspace in view, dependencies have the features that `make test` has built them with.
fuzz-build: tools-build
	RUSTC_WORKSPACE_WRAPPER=fuzz/instrumented cargo build --workspace --example chaski-fuzz --features chaski-fuzz/libfuzzer

forgery: tools-build ## ten million forged requests against every preset, none may be accepted; one JSON line, SEED repeats a run
	CARGO_PROFILE_TEST_OPT_LEVEL=3 CHASKI_FORGERIES=$${CHASKI_FORGERIES:-10000000} \
		$(if $(SEED),CHASKI_TEST_SEED=$(SEED)) cargo test --package chaski-ingest --lib -- fuzzing::forgery --nocapture

series: tools-build tools-test ## a hundred thousand event types, paths and key ids that strangers write: none adds a time series
	CHASKI_STRANGERS=$${CHASKI_STRANGERS:-100000} cargo test --test it -- series::

constant-time: tools-build ## whether the time of a comparison tells how much of a forged tag is right; one JSON line
	CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo run --package chaski-ingest --example constant_time

fmt: ## format the code
	cargo fmt --all

tools-build:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust 1.95 or later (rustup.rs)"; exit 1; }
	@tests/tools/need cc:gcc c++:g++ make:make perl:perl

# Kafka is fetched once, then no network is needed. A broker of one's own makes it unnecessary.
tools-test: $(TESTS_PYTHON)/.requirements.txt
	@tests/tools/need curl:curl openssl:openssl python3:python3 redis-server:redis-server kcat:kcat prometheus:prometheus
	@test -n "$${CHASKI_TEST_KAFKA:-}" || tests/tools/need java:openjdk-17-jre-headless
	@test -n "$${CHASKI_TEST_KAFKA:-}$${KAFKA_HOME:-}" || test -e $(KAFKA_CACHE)/libs/kafka-tools-$(KAFKA_VERSION).jar || { \
		tests/tools/need mvn:maven && \
		mkdir -p $(KAFKA_CACHE) && rm -rf $(KAFKA_CACHE)/fetched && \
		mvn --batch-mode --quiet --file tests/kafka/pom.xml dependency:copy-dependencies \
			-DincludeScope=runtime -DoutputDirectory=$(KAFKA_CACHE)/fetched && \
		rm -rf $(KAFKA_CACHE)/libs && mv $(KAFKA_CACHE)/fetched $(KAFKA_CACHE)/libs; }
	@test -n "$${CHASKI_TEST_KAFKA:-}$${KAFKA_HOME:-}" || test -e $(KAFKA_ARCHIVE) || tests/kafka/archive $(KAFKA_CACHE)/libs $(KAFKA_ARCHIVE)

$(DEPLOY_PYTHON):
	@tests/tools/need python3:python3 pip3:python3-pip
	@rm -rf target/deploy-python-*
	pip3 install --quiet --disable-pip-version-check --root-user-action ignore --target $@.part --requirement tests/deploy/requirements.txt
	@mv $@.part $@

$(TESTS_PYTHON)/.requirements.txt: tests/kafka/requirements.txt
	@tests/tools/need python3:python3 pip3:python3-pip
	@rm -rf $(TESTS_PYTHON)
	pip3 install --quiet --disable-pip-version-check --root-user-action ignore --target $(TESTS_PYTHON) --requirement $<
	@cp $< $@

$(HELM):
	@tests/tools/need go:golang
	GOBIN=$(CURDIR)/$(dir $@) go install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)

# Unoptimised: it looks at one file for two seconds, and is built in less than half the time.
$(DENY):
	cargo install cargo-deny --version $(DENY_VERSION) --locked --quiet --debug
