# shellcheck shell=bash
# The kernel's Rust toolchain: Debian's rustc-web and libclang 19 unpacked into the cache, bindgen from the crate registry.
#
# The kernel wants a rustc and its own library sources of one version, a bindgen of a narrow range and a recent libclang.
# Nothing is installed: rustc-web would put itself in front of a developer's own rustc.

BINDGEN_VERSION=0.71.1
# `A|B`: the first one the machine's suites have. rustc-web is bookworm's name for the recent compiler.
RUST_PACKAGES=("rustc-web|rustc" "rust-web-src|rust-src")
CLANG_PACKAGE=libclang1-19
PAHOLE_PACKAGE="pahole|dwarves"

# first_available "A|B" : prints `NAME=VERSION`, or fails with the names tried.
first_available() {
	local name version IFS='|'
	for name in $1; do
		version=$(newest_version "$name")
		[ -z "$version" ] || { echo "$name=$version"; return; }
	done
	return 1
}

# resolve_toolchain : sets TOOLCHAIN_PACKAGES (name=version list) and TOOLCHAIN_ID; downloads nothing.
resolve_toolchain() {
	local wanted found dep queue=()
	TOOLCHAIN_PACKAGES=()
	for wanted in "${RUST_PACKAGES[@]}" "$CLANG_PACKAGE" "$PAHOLE_PACKAGE"; do
		found=$(first_available "$wanted") || die "none of the suites of this machine has ${wanted//|/ or }; the lab kernel's Rust toolchain needs it"
		queue+=("$found")
	done
	# The libraries these load: their names carry versions, so they are asked for, not written down.
	while [ ${#queue[@]} -gt 0 ]; do
		found=${queue[0]} queue=("${queue[@]:1}")
		[[ " ${TOOLCHAIN_PACKAGES[*]} " != *" $found "* ]] || continue
		TOOLCHAIN_PACKAGES+=("$found")
		for dep in $(depends_of "${found%%=*}" '^(lib(std-rust|llvm)|libdwarves)'); do queue+=("$dep=$(newest_version "$dep")"); done
	done
	TOOLCHAIN_ID=$(hash_of "${TOOLCHAIN_PACKAGES[@]}" "$BINDGEN_VERSION" "$(gcc -dumpfullversion)" "$(ld --version | head -n1)")
}

# install_toolchain : unpacks and builds what resolve_toolchain chose, and sets the variables `make` needs (KMAKE).
install_toolchain() {
	local root=$CRASHYARD_CACHE/toolchain/$TOOLCHAIN_ID bindgen=$CRASHYARD_CACHE/bindgen-$BINDGEN_VERSION started=$SECONDS
	if [ ! -e "$root/.complete" ]; then
		say "toolchain: unpacking ${#TOOLCHAIN_PACKAGES[@]} Debian packages into the cache"
		rm -rf "$root"
		fetch_unpack "$root" "${TOOLCHAIN_PACKAGES[@]}" || die "could not fetch the toolchain packages (apt's words are above)"
		printf '%s\n' "${TOOLCHAIN_PACKAGES[@]}" >"$root/.complete"
		say "toolchain: unpacked in $(elapsed "$started")"
	fi
	if [ ! -x "$bindgen/bin/bindgen" ]; then
		command -v cargo >/dev/null || die "no cargo in PATH: bindgen $BINDGEN_VERSION is built from the crate registry"
		started=$SECONDS
		say "toolchain: building bindgen $BINDGEN_VERSION (about two minutes of CPU)"
		cargo install bindgen-cli --version "$BINDGEN_VERSION" --locked --quiet --root "$bindgen" >&2 || die "bindgen $BINDGEN_VERSION did not build"
		say "toolchain: bindgen built in $(elapsed "$started")"
	fi
	toolchain_environment "$root" "$bindgen"
}

# toolchain_environment ROOT BINDGEN_DIR : exports library paths, sets KMAKE (arguments for every kernel make).
toolchain_environment() {
	local root=$1 library
	library=$(echo "$root"/usr/src/rustc-*/library)
	[ -d "$library" ] || die "the Rust library sources are not under $root/usr/src"
	export LIBCLANG_PATH=$root/usr/lib/llvm-19/lib
	export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu:$LIBCLANG_PATH
	KMAKE=("RUSTC=$root/usr/bin/rustc" "RUSTDOC=$root/usr/bin/rustdoc" "RUST_LIB_SRC=$library" "BINDGEN=$2/bin/bindgen" "PAHOLE=$root/usr/bin/pahole")
}
