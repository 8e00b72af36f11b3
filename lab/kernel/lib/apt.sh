# shellcheck shell=bash
# A private apt: reads the machine's own Debian source, adds the suite we need, installs nothing.
#
# Why private: linux-source-7.x is in another suite than most machines run, and adding that suite to the machine's
# configuration would change what its next upgrade does. Here lists, cache and sources are our own folder, and the
# only verbs used are `update` and `download`. Signatures are checked by apt with the Debian archive keyring, as ever;
# no option that weakens this may appear below. Mirror names are read from the machine, never written down in the repository.

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# debian_uris : "URI CODENAME" of every Debian binary source of this machine, one a line.
debian_uris() {
	# shellcheck disable=SC2016  # these are apt's own variables
	apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(REPO_URI)|$(CODENAME)' 'Created-By: Packages' |
		awk -F'|' '$1 == "Debian" && $2 == "main" && !seen[$3 $4]++ { print $3, $4 }'
}

# apt_private_init SUITE... : (re)makes the private configuration with the machine's own suites plus SUITE....
apt_private_init() {
	APT_DIR=$CRASHYARD_CACHE/apt
	mkdir -p "$APT_DIR/lists/partial" "$APT_DIR/cache/archives/partial" "$APT_DIR/empty"
	[ -r "$KEYRING" ] || die "no $KEYRING: install debian-archive-keyring"
	local uris main
	uris=$(debian_uris)
	[ -n "$uris" ] || die "apt on this machine lists no Debian source (run apt-get update once); the lab kernel needs one to fetch its source from"
	# The main archive is the source of the machine's release itself: the one whose codename has no -security or -updates.
	main=$(awk '$2 !~ /-/ { print $1; exit }' <<<"$uris")
	[ -n "$main" ] || die "apt on this machine has no plain Debian release among its sources: $(awk '{print $2}' <<<"$uris" | tr '\n' ' ')"
	{
		awk -v k="$KEYRING" '{ print "deb [signed-by=" k "] " $1 " " $2 " main" }' <<<"$uris"
		local suite
		for suite; do echo "deb [signed-by=$KEYRING] $main $suite main"; done
	} >"$APT_DIR/sources.list"
	APT_OPTIONS=(
		-o "Dir::Etc::sourcelist=$APT_DIR/sources.list" -o "Dir::Etc::sourceparts=$APT_DIR/empty"
		-o "Dir::Etc::preferencesparts=$APT_DIR/empty" -o Dir::Etc::preferences=/dev/null
		-o "Dir::State::lists=$APT_DIR/lists" -o "Dir::Cache=$APT_DIR/cache"
		-o Acquire::Languages=none -o APT::Get::List-Cleanup=1
		-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
		-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false
	)
	[ "$(id -u)" -ne 0 ] || APT_OPTIONS+=(-o APT::Sandbox::User=root)
	apt-get "${APT_OPTIONS[@]}" -qq update >&2 || return 1
}

apt_private() { local verb=$1; shift; "$verb" "${APT_OPTIONS[@]}" "$@"; }

# newest_version PACKAGE : version apt would take from all suites of the private configuration, empty when there is none.
newest_version() {
	apt_private apt-cache madison "$1" | awk -F' *[|] *' 'NR == 1 { print $2 }'
}

# depends_of PACKAGE PATTERN : direct dependencies of PACKAGE whose names match the extended regex PATTERN.
depends_of() {
	apt_private apt-cache depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$1" |
		awk '$1 == "Depends:" { print $2 }' | grep -E "$2" || true
}

# fetch_unpack DIR PACKAGE=VERSION... : downloads (apt checks hashes and signatures) and unpacks without installing.
fetch_unpack() {
	local dir=$1 tmp deb
	shift
	tmp=$(mktemp -d "$CRASHYARD_CACHE/fetch.XXXXXX")
	(cd "$tmp" && apt_private apt-get -q download "$@" >&2) || { rm -rf "$tmp"; return 1; }
	mkdir -p "$dir"
	for deb in "$tmp"/*.deb; do dpkg-deb -x "$deb" "$dir" || { rm -rf "$tmp"; return 1; }; done
	rm -rf "$tmp"
}
