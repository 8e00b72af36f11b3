# The two commands of the README, and the thin targets behind them. Anything longer than a line lives in a script.
.PHONY: demo demo-vmx test bench fmt lint packages

# make demo [ARGS=--exit]: one real crash after another, and the dashboard at http://127.0.0.1:8480
demo: packages
	cargo build --release -p crashyard-server -p crashyard-agent -p crashyard-lab
	cargo run --quiet --release -p crashyard-lab -- demo $(ARGS)

# make demo-vmx [ARGS=--exit]: good and broken kernels crash in every state of VMX; sixteen verdicts against predictions
demo-vmx: packages
	@lab/packages lab/kernel/packages.txt lab/bochs/packages.txt vmx-module/packages.txt
	cargo build --release -p crashyard-server -p crashyard-agent -p crashyard-lab
	cargo run --quiet --release -p crashyard-lab -- demo-vmx $(ARGS)

# make test: everything that must hold, on this machine, with nothing skipped
test: packages
	lab/test

# make bench: ratios and counts, each with its physical limit beside it
bench: packages
	lab/bench

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --workspace -- -D warnings
	cargo clippy --workspace --all-targets -- -D warnings -A clippy::unwrap_used

# Debian packages that demo, tests and benchmarks need (root or sudo, only when one is missing)
packages:
	@lab/packages
