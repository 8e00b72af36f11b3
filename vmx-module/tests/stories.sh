# shellcheck shell=bash
# The stories: what each does, what must be seen. A story that passes where it should fail is a failed story.

declare -A PROVES
QUICK=() ALL=()

# story WHEN NAME PROVES : WHEN is quick (part of `make test`) or full.
story() {
	PROVES[$2]=$3
	ALL+=("$2")
	[ "$1" != quick ] || QUICK+=("$2")
}

# Steps before any crash: capture kernel loaded once the records' addresses are known.
load=kexec
oops_panics=sysctl+panic_on_oops+1

story quick refusal "without VMX the module refuses to load with one clear line, and nothing else happens"
story_refusal() {
	in_qemu "insmod+crashyard_vmx.ko,off"
	expect 'crashyard_vmx: this CPU has no VMX \(CPUID\.1:ECX\.5 is clear\), not loading'
	expect 'TEST insmod crashyard_vmx.ko rc=1'
	expect 'TEST off'
	quiet
}

story quick states "KUnit suites pass; every state is reached on two CPUs and left clean; a faulting VMXON is survived"
story_states() {
	in_bochs 2 "insmod+crashyard_vmx.ko,do+vmxon-fault,do+list-test,do+vmxon,do+vmcs-loaded+3,show,do+vmcs-launched,show,do+list-add-cut+2,do+list-del-cut+1+cpu=1,show,do+nonsense,do+vmcs-loaded+65,do+vmxon+cpu=7,do+off,show,do+vmxon,rmmod+crashyard_vmx,insmod+crashyard_vmx.ko,kvm,do+vmxon,rmmod+crashyard_vmx,kvm-once,off"
	ended poweroff
	local suite
	for suite in list:7 command:4; do
		expect "# crashyard_vmx_${suite%:*}: pass:${suite#*:} fail:0 skip:0 total:${suite#*:}"
	done
	expect 'VMXON faulted: survived true'
	local command
	for command in vmxon-fault list-test vmxon 'vmcs-loaded 3' vmcs-launched 'list-add-cut 2' 'list-del-cut 1 cpu=1' off; do
		expect "TEST do \[$command\] rc=0 answer=\[ok $command\]"
	done
	expect 'TEST status cpu1 state=vmcs-launched listed=1'
	expect 'TEST status cpu1 state=list-del-cut listed=3'
	expect 'TEST do \[nonsense\] rc=1 answer=\[error -22: nonsense\]'
	expect 'TEST do \[vmcs-loaded 65\] rc=1 answer=\[error -34: vmcs-loaded 65\]'
	expect 'TEST do \[vmxon cpu=7\] rc=1 answer=\[error -19: vmxon cpu=7\]'
	expect 'crashyard_vmx: unloaded: VMX off on every cpu, callback free, no page left'
	# With kvm_intel in, VMX belongs to it: the module keeps its hands off, and KVM works afterwards. That KVM could take the
	# callback's one slot without a warning (quiet, below) shows that the module had given it back.
	expect 'crashyard_vmx: unloaded: VMX left on for its other owner, callback not ours, no page left'
	expect 'VMX is in use by another owner'
	expect 'TEST do \[vmxon\] rc=1 answer=\[error -16: vmxon\]'
	expect 'TEST kvm-guest: ran'
	# The thread's own lines, in the thread's order.
	local lines
	lines=$({ grep -ao 'KVM: .*' "$LOG" || true; } | tr -d '\r' | tr '\n' ';')
	[ "$lines" = "KVM: testing NMI in list_add();KVM: testing NMI in list_del();KVM: found e3;KVM: found e2;KVM: found e1;KVM: found e3;KVM: found e1;" ] ||
		wrong "the list test printed: $lines"
	quiet
}

story full loaded "a crash with three VMCSes loaded on each of two CPUs is captured, and each was VMCLEARed and VMX turned off"
story_loaded() {
	in_bochs 2 "insmod+crashyard_vmx.ko,do+vmcs-loaded+3,$load,sysrq-c"
	captured
	oracles_hold 2
}

story quick launched "a crash that finds both CPUs running a guest is captured, and the VMCSes are clear in the dump itself"
story_launched() {
	in_bochs 2 "insmod+crashyard_vmx.ko,do+vmcs-launched,$load,sysrq-c"
	captured
	oracles_hold 2
	# Bochs keeps the launch state in the third 32-bit word of the VMCS: 0 is clear. Real CPUs have their own places.
	[ "$(grep -acE '^TEST vmcs .* 0 +[0-9a-f]{16} +[0-9a-f]{8}00000000' "$LOG")" = 2 ] || wrong "a VMCS is not clear in the dump"
}

story full cut "a crash in the middle of list_add() and list_del() clears exactly the VMCSes it should"
story_cut() {
	in_bochs 2 "insmod+crashyard_vmx.ko,do+list-add-cut+3+cpu=0,do+list-del-cut+1+cpu=1,$load,sysrq-c+1"
	captured
	oracles_hold 2
}

story full kvm_loaded "kvm_intel loaded and never used: a crash is captured (the good twin of seed_bug)"
story_kvm_loaded() {
	in_bochs 1 "kvm,$load,sysrq-c"
	expect 'TEST kvm-loaded'
	captured
}

story full kvm_running "a KVM guest spinning on the other CPU: a crash is captured"
story_kvm_running() {
	in_bochs 2 "kvm,kvm-spin+1,$load,sysrq-c"
	expect 'TEST kvm-guest: spinning'
	captured
}

story quick seed_bug "the thread's regression is seen: page fault at ffffffffffffffc8 in the crash path, no capture kernel"
story_seed_bug() {
	# The oops kills the process that asked for the crash, the old kernel goes on to the next step: proof that no capture
	# kernel came. What is left of it cannot power off any more.
	in_bochs 1 "kvm+kvm-intel-seed-bug,$load,sysrq-c" --stop-at 'TEST steps-done|TEST captured'
	ended stopped
	expect 'Kernel panic - not syncing: sysrq triggered crash'
	expect 'BUG: unable to handle page fault for address: ffffffffffffffc8'
	expect 'RIP: .*vmx_emergency_disable_virtualization_cpu.*\[kvm_intel\]'
	forbid 'TEST captured'
}

story full seed_bug_used "the same regression hides once a guest has run on the CPU: the trigger is exactly 'loaded and never used'"
story_seed_bug_used() {
	in_bochs 1 "kvm+kvm-intel-seed-bug,kvm-once,$load,sysrq-c"
	expect 'TEST kvm-guest: ran'
	captured
}

story full vmxon_leak "VMX left on across the crash: general protection fault when the jump clears CR4.VMXE, no capture kernel"
story_vmxon_leak() {
	in_bochs 1 "insmod+crashyard_vmx.ko,do+vmcs-loaded+1,insmod+crashyard_vmxon_leak.ko,$load,sysrq-c" --stop-at '^cr2:[0-9a-f]{16}|TEST captured'
	ended stopped
	expect 'crashyard_vmxon_leak: VMX left on at machine_kexec: done'
	# Since 6.15 the jump has exception handlers of its own. r12 holds CR4 as it was, r13 as it should become: bit 13 is VMXE.
	expect '^Exc:000000000000000d'
	expect '^r12:[0-9a-f]{12}[2367abef][0-9a-f]{3}'
	expect '^r13:[0-9a-f]{12}[014589cd][0-9a-f]{3}'
	forbid 'TEST captured'
}

story quick skip_vmclear "a module that forgets VMCLEAR: the dump is fine, and the oracle says FAIL"
story_skip_vmclear() {
	in_bochs 2 "insmod+skip-vmclear.ko,do+vmcs-launched,$load,sysrq-c"
	captured
	oracles_catch 2
}

story full wrong_order "an insertion in the wrong order is caught by the list test and by KUnit"
story_wrong_order() {
	in_bochs 1 "insmod+wrong-order.ko,do+list-test,off"
	ended poweroff
	expect 'TEST do \[list-test\] rc=1 answer=\[error -5: list-test\]'
	expect 'KVM: kaboom'
	expect '# crashyard_vmx_list: pass:[0-9]+ fail:[1-9]'
}

story full left_behind "what unloading leaves behind is found: a module that gives VMX and a page not back says so itself"
story_left_behind() {
	in_bochs 2 "insmod+leave-behind.ko,do+vmxon,rmmod+crashyard_vmx,off"
	ended poweroff
	expect 'cpu0: not clean after off: list empty true, CR4 0x[0-9a-f]*[2367abef][0-9a-f]{3}'
	expect 'unload: cpu1: CR4 is 0x'
	expect 'crashyard_vmx: unloaded, leaving 2 page allocations and [1-9] other things behind'
}

# The triggers: each crashes the CPU it is told to, with VMCSes loaded, and is captured with all of them cleared.
trigger_story() {
	in_bochs 2 "insmod+crashyard_vmx.ko,$oops_panics,sysctl+hardlockup_panic+1,sysctl+watchdog_thresh+2,do+vmcs-loaded+2,$load,do+$1+cpu=1"
	expect "$2"
	captured
	oracles_hold 2
}
story full trigger_panic "trigger panic"
story_trigger_panic() { trigger_story panic 'Kernel panic - not syncing: crashyard: panic on cpu 1'; }
story full trigger_oops "trigger oops"
story_trigger_oops() { trigger_story oops 'BUG: kernel NULL pointer dereference, address: 0000000000000ca5'; }
story full trigger_irq_panic "trigger irq-panic"
story_trigger_irq_panic() { trigger_story irq-panic 'Kernel panic - not syncing: crashyard: irq-panic on cpu 1'; }
story full trigger_nmi_panic "trigger nmi-panic"
story_trigger_nmi_panic() { trigger_story nmi-panic 'Kernel panic - not syncing: crashyard: nmi-panic'; }
story full trigger_hardlockup "trigger hardlockup"
story_trigger_hardlockup() { trigger_story hardlockup 'Kernel panic - not syncing: Hard LOCKUP'; }

story full display "while a machine runs, nothing new listens on this host: the emulator's display is out of reach"
story_display() {
	local before during
	before=$(listeners)
	in_bochs 1 "off" &
	# The machine's own end is not of interest here; that it ran is.
	while [ ! -s "$RUN/display.log" ] && kill -0 $! 2>/dev/null; do sleep 0.1; done
	during=$(listeners)
	wait $!
	LOG=$RUN/display.log END=end=observed
	expect 'Linux version'
	[ "$before" = "$during" ] || wrong "new listeners: $(comm -13 <(echo "$before") <(echo "$during") | tr '\n' ' ')"
}
# Listening TCP ports of this namespace, of the range a display would take (5900 to 5999).
listeners() { awk '$4 == "0A" && $2 ~ /:17(0[C-F]|[1-6][0-9A-F])$/ { print $2 }' /proc/net/tcp /proc/net/tcp6 | sort -u; }
