# shellcheck shell=bash
# The kernel source: Debian's linux-source-7.x, newest of the first suite that has one.

# Tried in this order. Backports first: made for the release people run, and its kernel is a maintained stable one.
read -r -a SOURCE_SUITES <<<"${CRASHYARD_SUITES:-trixie-backports testing unstable}"

# prepare_apt : private lists of the machine's suites plus the suite the source was chosen from.
prepare_apt() { apt_private_init "$SOURCE_SUITE" || die "apt could not update its private lists (its words are above)"; }

# resolve_source : sets SOURCE_PACKAGE, SOURCE_VERSION, SOURCE_SUITE.
resolve_source() {
	local suite tried=()
	for suite in "${SOURCE_SUITES[@]}"; do
		if ! apt_private_init "$suite"; then
			say "suite $suite cannot be read on this machine's mirror"
			tried+=("$suite (unreadable)")
			continue
		fi
		SOURCE_PACKAGE=$(apt_private apt-cache search --names-only '^linux-source-7\.[0-9]+$' | awk '{print $1}' | sort -V | tail -n1)
		if [ -n "$SOURCE_PACKAGE" ]; then
			SOURCE_VERSION=$(newest_version "$SOURCE_PACKAGE")
			SOURCE_SUITE=$suite
			return
		fi
		tried+=("$suite (has only: $(apt_private apt-cache search --names-only '^linux-source-[0-9.]+$' | awk '{print $1}' | sort -V | tr '\n' ' '))")
	done
	die "no suite has a linux-source-7.x package any more. Tried:
$(printf '  %s\n' "${tried[@]}")
  Name other suites in CRASHYARD_SUITES, or adapt lib/source.sh and the control patches to the kernel that is there."
}

source_folder() { echo "$CRASHYARD_CACHE/source/$SOURCE_PACKAGE-$SOURCE_VERSION"; }

# install_source : fetches and unpacks the source, sets SOURCE.
install_source() {
	SOURCE=$(source_folder)
	if [ ! -e "$SOURCE/.complete" ]; then
		local started=$SECONDS fetched=$CRASHYARD_CACHE/fetched-source
		say "source: fetching $SOURCE_PACKAGE $SOURCE_VERSION"
		rm -rf "$SOURCE" "$fetched"
		fetch_unpack "$fetched" "$SOURCE_PACKAGE=$SOURCE_VERSION" ||
			die "$SOURCE_SUITE no longer has $SOURCE_PACKAGE $SOURCE_VERSION; run again with --update to take what it has now"
		say "source: unpacking"
		mkdir -p "$SOURCE"
		tar -C "$SOURCE" --strip-components=1 -xf "$fetched/usr/src/$SOURCE_PACKAGE.tar.xz"
		rm -rf "$fetched"
		touch "$SOURCE/.complete"
		say "source: ready after $(elapsed "$started")"
	fi
	restore_originals
}

# A control patch is applied in place for a few seconds; this undoes one that a killed build left behind.
restore_originals() {
	local saved=$SOURCE/.originals
	[ -d "$saved" ] || return 0
	(cd "$saved" && find . -type f -print0) | while IFS= read -r -d '' file; do
		cp "$saved/$file" "$SOURCE/$file" # a new time stamp, on purpose: the object built from the patched text must be rebuilt
	done
	rm -rf "$saved"
}
