# shellcheck shell=bash
# For the stories: one initramfs for all, a machine per story, judgement on its console.

# pack FOLDER FILE : an uncompressed initramfs.
pack() { (cd "$1" && find . -print0 | sort -z | cpio -0 -o -H newc --quiet) >"$2"; }

# add_program FOLDER FILE : a dynamically linked program with its libraries.
add_program() {
	local library
	install -D "$2" "$1/sbin/$(basename "$2")"
	for library in $(ldd "$2" | grep -o '/[^ )]*'); do [ -e "$1$library" ] || install -D "$library" "$1$library"; done
}

# prepare : builds what is not in the cache, then KERNEL and INITRAMFS in the folder $RUN.
prepare() {
	local out good skipping wrong leaving leaking control
	out=$("$root/lab/kernel/build") && good=$("$here/build") && skipping=$("$here/build" skip-vmclear) || exit 1
	wrong=$("$here/build" wrong-order) && leaving=$("$here/build" leave-behind) && leaking=$("$here/build" vmxon-leak) || exit 1
	KERNEL=$out/bzImage
	INITRAMFS=$RUN/initramfs
	local inner=$RUN/inner outer=$RUN/outer folder
	for folder in "$inner" "$outer"; do
		mkdir -p "$folder"/{bin,sbin,proc,sys,dev,tmp}
		cp "$(command -v busybox)" "$folder/bin/busybox"
		install "$here/tests/init" "$folder/init"
	done
	mkdir -p "$outer"/{modules,crash}
	pack "$inner" "$outer/crash/initramfs"
	cp "$KERNEL" "$outer/crash/vmlinuz"
	echo "$CMDLINE irqpoll nr_cpus=1 reset_devices" >"$outer/crash/cmdline"
	add_program "$outer" "$(command -v kexec)"
	gcc -static -O2 -Wall -Werror -o "$outer/bin/kvm-guest" "$here/tests/kvm-guest.c"
	cp "$out"/modules/{irqbypass,kvm,kvm-intel}.ko "$good/crashyard_vmx.ko" "$leaking/crashyard_vmxon_leak.ko" "$outer/modules/"
	cp "$skipping/crashyard_vmx.ko" "$outer/modules/skip-vmclear.ko"
	cp "$wrong/crashyard_vmx.ko" "$outer/modules/wrong-order.ko"
	cp "$leaving/crashyard_vmx.ko" "$outer/modules/leave-behind.ko"
	for control in "$out"/controls/*/kvm-intel.ko; do
		cp "$control" "$outer/modules/kvm-intel-$(basename "$(dirname "$control")").ko"
	done
	pack "$outer" "$INITRAMFS"
	rm -rf "$inner" "$outer"
}

# in_bochs CPUS STEPS [run options] : runs the machine; sets LOG and END (the recipe's last line). TIMEOUT seconds of wall
# clock (420) are ten times what an idle host needs.
in_bochs() {
	local cpus=$1 steps=$2
	shift 2
	LOG=$RUN/$STORY.log
	END=$("$root/lab/bochs/run" --kernel "$KERNEL" --initramfs "$INITRAMFS" --cmdline "$CMDLINE crashkernel=160M steps=$steps" \
		--console "$LOG" --cpus "$cpus" --timeout "${TIMEOUT:-420}" "$@") || true
}

# in_qemu STEPS : the same machine where there is no VMX.
in_qemu() {
	LOG=$RUN/$STORY.log
	timeout 180 qemu-system-x86_64 -accel tcg -cpu max,la57=off -smp 2 -m 512 -nodefaults -display none -no-reboot \
		-serial "file:$LOG" -kernel "$KERNEL" -initrd "$INITRAMFS" -append "$CMDLINE steps=$1" >"$LOG.emulator" 2>&1 &&
		END=end=poweroff || END="end=failed($?)"
}

wrong() { FAILED+=("$*"); }
expect() { grep -aqE -- "$1" "$LOG" || wrong "not on the console: $1"; }
forbid() { ! grep -aqE -- "$1" "$LOG" || wrong "on the console: $(grep -aE -m1 -- "$1" "$LOG" | tr -d '\r')"; }
ended() { [[ $END == "end=$1"* ]] || wrong "the machine ended as '${END:-nothing}', not $1"; }
# Nothing the kernel complains about.
quiet() { forbid 'BUG:|WARNING:|Oops|general protection|Call Trace|rcu: INFO'; }
captured() { expect 'TEST captured' && expect 'TEST capture-done' && ended poweroff; }

# Fields of a record (docs/VMX.md) out of its 64-bit words.
low() { echo $((16#${1:8:8})); }
high() { echo $((16#${1:0:8})); }

# oracles : judges every crash record on the console. Prints one line a CPU; sets VIOLATED to the number of violations.
oracles() {
	local line word slot state cleared number expected
	VIOLATED=0 RECORDS=0
	while read -r -a word; do
		word=("${word[@]:3}")
		RECORDS=$((RECORDS + 1))
		[ "${word[0]}" = 555043584d565943 ] || { violated "a record without its magic: ${word[0]}"; continue; }
		line="cpu$(low "${word[2]}") state=$(high "${word[2]}") listed=$(high "${word[4]}") visited=$(low "${word[10]}") vmclears=$(high "${word[10]}") faults=$(high "${word[11]}") vmxoff=$(low "${word[17]}")"
		echo "    $line"
		[ "$(high "${word[9]}")" = 1 ] || violated "$line: the walk did not come back to the head"
		[ "$(low "${word[17]}")" = 1 ] || violated "$line: VMXOFF was not seen"
		expected=0
		for number in {0..3}; do
			slot=("${word[@]:32 + number * 6:6}")
			state=$(low "${slot[3]}") cleared=$(high "${slot[3]}")
			case $state in
			2 | 3) expected=$((expected + 1)); [ "$cleared" = 1 ] || violated "$line: slot $number is loaded and was not VMCLEARed ($cleared)" ;;
			4) [ "$cleared" = 0 ] || violated "$line: slot $number was only being added, and was seen" ;;
			5) expected=$((expected + 1)); [ "$cleared" = 1 ] || violated "$line: slot $number was still being deleted, and was not seen" ;;
			esac
		done
		[ "$(low "${word[10]}")" = $expected ] || violated "$line: visited $(low "${word[10]}"), expected $expected"
	done < <(grep -a '^TEST record' "$LOG" | tr -d '\r')
}
violated() { VIOLATED=$((VIOLATED + 1)); echo "    violated: $*"; }
oracles_hold() { oracles; [ $VIOLATED = 0 ] || wrong "$VIOLATED oracle(s) violated"; [ $RECORDS = "$1" ] || wrong "$RECORDS records, expected $1"; }
oracles_catch() { oracles; [ $VIOLATED -gt 0 ] || wrong "no oracle noticed"; [ $RECORDS = "$1" ] || wrong "$RECORDS records, expected $1"; }
