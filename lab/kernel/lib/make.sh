# shellcheck shell=bash
# Configuring, building and collecting. Expects SOURCE, OUT and KMAKE.

# Steps `make` printed in a full build of this fragment with 7.3; a newer run's own count replaces it in the cache.
STEPS_GUESS=2050

kernel_make() { make -C "$SOURCE" "O=$OUT/build" "${KMAKE[@]}" "$@"; }

# configure_kernel FRAGMENT : allnoconfig plus the fragment; every request that did not stick is an error.
configure_kernel() {
	local fragment=$1 log=$OUT/configure.log refused
	mkdir -p "$OUT/build"
	kernel_make -s rustavailable >"$log" 2>&1 || die "the kernel does not accept the Rust toolchain: $(tail -n 5 "$log")"
	if [ -e "$OUT/build/.config" ] && cmp -s "$fragment" "$OUT/build/.fragment"; then return; fi
	kernel_make -s KCONFIG_ALLCONFIG="$fragment" allnoconfig >>"$log" 2>&1 || die "configuration failed: $(tail -n 5 "$log")"
	refused=$(grep -E '^CONFIG_' "$fragment" | while IFS='=' read -r name wanted; do
		got=$(sed -n "s/^$name=//p" "$OUT/build/.config")
		[ "${got:-n}" = "$wanted" ] || echo "  $name: asked for $wanted, got ${got:-n}"
	done)
	[ -z "$refused" ] || die "these lines of $fragment did not stick:
$refused"
	cp "$fragment" "$OUT/build/.fragment"
}

# build_kernel : bzImage and modules with a progress line; the full output goes to build.log.
build_kernel() {
	local log=$OUT/build.log started=$SECONDS counted=$CRASHYARD_CACHE/steps expected jobs=${CRASHYARD_JOBS:-$(nproc)} pid
	expected=$(cat "$counted" 2>/dev/null || echo $STEPS_GUESS)
	say "kernel: building with make -j$jobs; the full output is in $log"
	kernel_make "-j$jobs" bzImage modules >"$log" 2>&1 &
	pid=$!
	trap 'kill "$pid" 2>/dev/null' INT TERM
	show_progress "$pid" "$log" "$expected" "$started"
	wait "$pid" || die "the kernel did not build:
$(grep -nE 'error|Error|\*\*\*' "$log" | tail -n 15)"
	trap - INT TERM
	[ "$(built_steps "$log")" -lt $((expected / 2)) ] || built_steps "$log" >"$counted"
	say "kernel: built in $(elapsed "$started")"
}

built_steps() { grep -cE '^  [A-Z]' "$1" || true; }

# show_progress PID LOG EXPECTED STARTED : a bar on a terminal, a line every half minute elsewhere.
show_progress() {
	local pid=$1 log=$2 expected=$3 started=$4 done_ percent last=-30 bar
	while kill -0 "$pid" 2>/dev/null; do
		done_=$(built_steps "$log")
		percent=$((done_ * 100 / expected))
		[ $percent -lt 99 ] || percent=99 # the count is a guess: the end is when make says so
		if [ -t 2 ]; then
			printf -v bar '%*s' $((percent / 3)) ''
			printf '\r  [%-33s] %2d%%  step %d of about %d, %s ' "${bar// /#}" $percent "$done_" "$expected" "$(elapsed "$started")" >&2
		elif [ $((SECONDS - last)) -ge 30 ]; then
			say "kernel: $percent% (step $done_ of about $expected, $(elapsed "$started"))"
			last=$SECONDS
		fi
		sleep 1
	done
	[ ! -t 2 ] || printf '\r%80s\r' '' >&2
}

# collect_kernel : copies what stories need out of the build tree.
collect_kernel() {
	local build=$OUT/build module
	mkdir -p "$OUT/modules"
	cp "$build/arch/x86/boot/bzImage" "$build/vmlinux" "$build/System.map" "$OUT/"
	cp "$build/.config" "$OUT/config"
	cp "$build/include/config/kernel.release" "$OUT/release"
	while read -r module; do
		strip --strip-debug -o "$OUT/modules/$(basename "$module")" "$build/$module"
	done < <(sed 's/\.o$/.ko/' "$build/modules.order")
}

# save_environment : what a module build needs to find the same compilers and the same tree again.
save_environment() {
	{
		printf 'KMAKE=('; printf '%q ' "${KMAKE[@]}"; printf ')\n'
		printf 'export LD_LIBRARY_PATH=%q LIBCLANG_PATH=%q\n' "$LD_LIBRARY_PATH" "$LIBCLANG_PATH"
	} >"$OUT/environment"
}

# control_is_built PATCH : whether this very patch is in the cache beside its kernel.
control_is_built() {
	local stamp
	stamp=$OUT/controls/$(basename "$1" .patch)/.complete
	[ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(hash_of "$1")" ]
}

# build_control PATCH : the modules of the tree with one thing broken on purpose, into controls/NAME/.
# The patch is applied in place: kernel build trees know their source by its absolute path.
build_control() {
	local patch_file=$1 name log started=$SECONDS file module
	name=$(basename "$patch_file" .patch)
	log=$OUT/control-$name.log
	say "control $name: building"
	restore_originals
	for file in $(sed -n 's,^+++ b/\([^[:space:]]*\).*,\1,p' "$patch_file"); do
		mkdir -p "$SOURCE/.originals/$(dirname "$file")"
		cp "$SOURCE/$file" "$SOURCE/.originals/$file"
	done
	patch -d "$SOURCE" -p1 --no-backup-if-mismatch <"$patch_file" >"$log" 2>&1 || {
		restore_originals
		die "control $name does not apply to $SOURCE_PACKAGE $SOURCE_VERSION: $(tail -n 4 "$log")"
	}
	kernel_make modules >>"$log" 2>&1 || { restore_originals; die "control $name did not build: $(tail -n 15 "$log")"; }
	rm -rf "$OUT/controls/$name"
	mkdir -p "$OUT/controls/$name"
	# Only what differs from the good modules is the control.
	while read -r module; do
		strip --strip-debug -o "$OUT/controls/$name/$(basename "$module")" "$OUT/build/$module"
		! cmp -s "$OUT/controls/$name/$(basename "$module")" "$OUT/modules/$(basename "$module")" || rm "$OUT/controls/$name/$(basename "$module")"
	done < <(sed 's/\.o$/.ko/' "$OUT/build/modules.order")
	restore_originals
	kernel_make modules >>"$log" 2>&1
	[ -n "$(ls "$OUT/controls/$name")" ] || die "control $name changed no module: it proves nothing"
	hash_of "$patch_file" >"$OUT/controls/$name/.complete"
	say "control $name: $(cd "$OUT/controls/$name" && echo ./*.ko) in $(elapsed "$started")"
}
