# shellcheck shell=bash
# Shared by the scripts of lab/: where the cache is, how to speak, how to stop.
#
# Scripts print their *result* (a path) on stdout and everything meant for a person on stderr, so that
# `out=$(lab/kernel/build)` works while the person still sees progress.

set -euo pipefail

# Where Debian keeps kexec and depmod; an ordinary user's PATH lacks it.
PATH=$PATH:/usr/sbin:/sbin

# Everything big lives here and may be deleted at any time; nothing big lives in the repository.
CRASHYARD_CACHE=${CRASHYARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/crashyard}
mkdir -p "$CRASHYARD_CACHE"
# Physical, because kernel build trees know their place by it: a symbolic link to a cache must not look like another one.
CRASHYARD_CACHE=$(cd "$CRASHYARD_CACHE" && pwd -P)

say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# hash_of WORD... : 16 hex digits over its arguments and, for arguments that are files, their contents.
hash_of() {
	local word
	for word; do
		if [ -f "$word" ]; then sha256sum <"$word"; else printf '%s\n' "$word"; fi
	done | sha256sum | cut -c1-16
}

# require_commands FILE COMMAND... : stop with the apt line a person can paste when a command is missing.
require_commands() {
	local list=$1 missing=() c
	shift
	for c; do command -v "$c" >/dev/null 2>&1 || [ -e "$c" ] || missing+=("$c"); done
	[ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]}
  install the packages of $list:  apt-get install --no-install-recommends \$(grep -v '^#' $list)"
}

# elapsed START : seconds since START (a value of $SECONDS) as 3m07s.
elapsed() { local s=$((SECONDS - $1)); printf '%dm%02ds' $((s / 60)) $((s % 60)); }
