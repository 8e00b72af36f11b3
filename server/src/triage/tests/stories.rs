//! The table of stories. Each line of eight letters is a row of the contract: `p` proven, `M` `E` `F` failed as MISS,
//! ERROR, FAIL, `-` skipped, `?` waited for.

use super::story::*;
use crate::triage::DumpFacts;
use crate::triage::dump::Unreadable;
use crashyard_protocol::agent::{Directive, DumpFailure, Report};
use crashyard_protocol::{Proof, StageName, Status, VmxState};

const SEED_BUG: &str = "\
[   20.100000] BUG: unable to handle page fault for address: ffffffffffffffc8\r
[   20.100100] #PF: supervisor read access in kernel mode\r
[   20.100200] Oops: Oops: 0000 [#1] SMP\r
[   20.100300] CPU: 0 PID: 1 Comm: init Kdump: loaded Not tainted 6.1.0 #1\r
[   20.100400] RIP: 0010:vmx_emergency_disable_virtualization_cpu+0x43/0x100 [kvm_intel]\r
";
const SEED_TITLE: &str = "BUG: unable to handle kernel paging request in vmx_emergency_disable_virtualization_cpu";

#[test]
fn everything_goes_well() {
    let end = Story::perfect().ends_as("pppppppp", Status::Pass, 32, "");
    assert_eq!((end.blamed_stage, end.signature, end.quarantine, end.check_at), (None, None, None, None));
    assert_eq!(end.controller, Directive::Collect);
    assert_eq!(end.capture, Directive::Continue, "it powers the machine off by itself");
    for stage in &end.stages {
        assert!(!stage.proofs.is_empty(), "{} points to what proves it", stage.name);
        assert!(stage.reason.is_some() && stage.started_at <= stage.settled_at);
    }
}

#[test]
fn proofs_point_at_the_bytes_of_the_console() {
    let end = Story::perfect().end();
    let panicked = end.stages.iter().find(|stage| stage.name == StageName::Panicked).expect("there");
    let Some(Proof::Console { offset, length, line, text, .. }) = panicked.proofs.first() else {
        panic!("a console proof: {panicked:?}")
    };
    let console = format!("{FIRST_BOOT}{MARKER}{PANIC}");
    let start = usize::try_from(*offset).expect("small");
    let bytes = &console[start..start + usize::try_from(*length).expect("small")];
    assert_eq!(bytes.trim_end(), text);
    assert!(text.ends_with("Kernel panic - not syncing: sysrq triggered crash"));
    assert_eq!(usize::try_from(*line), Ok(console[..start].lines().count() + 1));
}

#[test]
fn directives_follow_the_stages() {
    let story = Story::perfect();
    let targets: Vec<(i64, Directive)> =
        [5, 7, 8, 9, 10].into_iter().map(|second| (second, story.judged_at(second).target)).collect();
    let expected = vec![
        (5, Directive::Continue),
        (7, Directive::Continue),
        (8, Directive::Trigger),
        (9, Directive::Trigger),
        (10, Directive::Continue),
    ];
    assert_eq!(targets, expected);
    assert_eq!(story.judged_at(31).controller, Directive::Continue, "the dump is not verified yet");
    assert_eq!(story.judged_at(32).controller, Directive::Collect);
    assert!(matches!(story.judged_at(32).target, Directive::Stop { .. }));
}

#[test]
fn an_open_contract_has_no_verdict() {
    for second in 0..32 {
        let judgement = Story::perfect().judged_at(second);
        assert_eq!((judgement.verdict, judgement.blamed_stage), (None, None), "second {second}");
        assert!(judgement.check_at.is_some(), "somebody looks again");
    }
}

#[test]
fn a_machine_that_never_answers_is_the_labs_fault() {
    let end = Story::silent().power(1, "on", true).ends_as("M------M", Status::Miss, 300, "Nothing came");
    assert_eq!(end.blamed_stage, Some(StageName::Provisioned));
    assert!(matches!(end.target, Directive::Stop { .. }) && matches!(end.capture, Directive::Stop { .. }));
}

#[test]
fn a_machine_that_cannot_be_powered_is_told_at_once() {
    Story::silent().power(1, "on", false).ends_as("M------M", Status::Miss, 1, "could not be powered (on)");
}

#[test]
fn a_machine_that_ends_before_anything_is_told_after_a_moment() {
    Story::silent().power(1, "on", true).ends(2, "exit code 1").ends_as("M------M", Status::Miss, 12, "exit code 1");
}

#[test]
fn the_wrong_kernel_is_told_apart_by_release_and_by_build_id() {
    let wrong = Story::silent().console(2, FIRST_BOOT).target(6, kernel("5.10.0-1-amd64", None));
    wrong.ends_as("M------M", Status::Miss, 6, "The wrong kernel booted: 5.10.0-1-amd64 runs instead of");
    let other = Story::silent().console(2, FIRST_BOOT).target(6, kernel(RELEASE, Some("00ff")));
    other.ends_as("M------M", Status::Miss, 6, "Another build of kernel");
}

#[test]
fn a_banner_alone_and_a_call_alone_prove_nothing() {
    let banner = Story::silent().console(2, FIRST_BOOT);
    banner.ends_as("M------M", Status::Miss, 300, "but its agent did not call");
    let call = Story::silent().target(6, kernel(RELEASE, Some(BUILD_ID)));
    call.ends_as("M------M", Status::Miss, 300, "banner is not on the console");
}

#[test]
fn a_kernel_that_panics_while_it_boots_has_a_signature() {
    let panic = "[    1.500000] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";
    let end = Story::silent().console(2, FIRST_BOOT).console(3, panic).ends_as("M------M", Status::Miss, 13, "VFS");
    assert_eq!(end.signature.as_deref(), Some("Kernel panic: VFS: Unable to mount root fs"));
}

#[test]
fn a_crash_kernel_that_is_not_loaded_names_the_command_and_the_cure() {
    let output = "Memory for crashkernel is not reserved\nPlease reserve memory";
    let story = Story::booted().target(7, step("load-crash-kernel", 255, false, output));
    let end = story.clone().scenario(|scenario| scenario.boot.crashkernel.clear()).ends_as(
        "pE-----M",
        Status::Error,
        7,
        "kexec -p returned 255: Memory for crashkernel is not reserved. ",
    );
    assert!(end.reason.is_some_and(|reason| reason.contains("Boot with `crashkernel=192M`")));
    story.ends_as("pE-----M", Status::Error, 7, "booted with `crashkernel=192M`");
    Story::booted().target(8, armed(false)).ends_as("pE-----M", Status::Error, 8, "kexec_crash_loaded reads 0");
}

#[test]
fn a_kernel_that_refuses_its_crash_kernel_fails() {
    let refused = step("load-crash-kernel", 255, false, "kexec_load failed: Cannot assign requested address");
    Story::booted().target(7, refused).ends_as("pF-----M", Status::Fail, 7, "The kernel refused the crash kernel");
    let broken = step("load-crash-kernel", 1, false, "Cannot open `/boot/kernel'");
    Story::booted().target(7, broken).ends_as("pE-----M", Status::Error, 7, "can be loaded by kexec-tools");
}

#[test]
fn a_vmx_state_that_is_not_reached_does_not_count_as_armed() {
    let story = Story::armed().scenario(|scenario| scenario.vmx = VmxState::KvmRunning);
    story.ends_as("pE-----M", Status::Error, 8, "VMX state `none` was reached instead of `kvm-running`");
}

#[test]
fn a_kernel_that_crashes_while_it_is_armed_fails() {
    let panic = "[   10.000000] Kernel panic - not syncing: Fatal exception\r\n";
    let end = Story::booted().console(7, SEED_BUG).console(8, panic).ends_as("pF-----M", Status::Fail, 18, "armed");
    assert_eq!(end.signature.as_deref(), Some(SEED_TITLE));
    Story::booted().console(7, SEED_BUG).ends_as("pF-----M", Status::Fail, 126, "The kernel oopsed meanwhile");
    Story::booted().ends(9, "triple fault").ends_as("pF-----M", Status::Fail, 19, "triple fault");
    Story::booted().ends(9, "exit code 1").ends_as("pE-----M", Status::Error, 19, "exit code 1");
    Story::booted().ends_as("pE-----M", Status::Error, 126, "no step was reported");
}

#[test]
fn a_missing_marker_is_the_agents_fault() {
    Story::armed().ends_as("ppE----M", Status::Error, 38, "was told to trigger and did not");
    Story::armed().target(9, triggering()).ends_as("ppE----M", Status::Error, 38, "/dev/kmsg");
    let unmarked = Story::armed().target(9, triggering()).console(11, PANIC).console(15, CAPTURE_BOOT);
    unmarked.ends_as("ppE----M", Status::Error, 21, "marker is not on the console before it");
}

#[test]
fn the_marker_of_another_attempt_is_no_marker() {
    let other = MARKER.replace(ATTEMPT, "01JDB4Q1W5Z8N6K3X0V7T2R9MZ");
    Story::armed().target(9, triggering()).console(10, &other).ends_as("ppE----M", Status::Error, 38, "not on the");
}

#[test]
fn no_panic_after_the_trigger_fails_at_the_deadline() {
    let end = Story::triggered().ends_as("pppF---M", Status::Fail, 40, "No panic with \"sysrq triggered crash\"");
    assert_eq!(end.signature, None);
    Story::triggered().ends(11, "soft-off").ends_as("pppF---M", Status::Fail, 21, "without a panic: soft-off");
    let reset = Story::triggered().console(12, PLAIN_BOOT);
    reset.ends_as("pppF---M", Status::Fail, 12, "went through reset without a panic");
}

#[test]
fn a_panic_that_the_console_has_not_is_read_in_the_dump() {
    let story = unannounced().read(32, good_dump());
    assert_eq!(letters(&story.judged_at(31)), "ppp?....", "nothing is proven before the dump is read");
    let end = story.clone().ends_as("pppppppM", Status::Pass, 32, "");
    let panicked = &end.stages[3];
    let reason = panicked.reason.as_deref().unwrap_or_default();
    assert!(reason.contains("read in the log of the dump, and not on the console"), "{reason}");
    assert!(matches!(&panicked.proofs[0], Proof::Console { text, .. } if text.contains("elfcorehdr=")));
    assert!(
        matches!(&panicked.proofs[2], Proof::Server { text } if text.contains("the panic \"sysrq triggered crash\""))
    );
    // Once the dump is here, neither machine nor controller is needed any more.
    story.clone().with(31, What::LeaseLost).ends_as("pppppppM", Status::Pass, 32, "");
    story.ends(31, "soft-off").ends_as("pppppppM", Status::Pass, 32, "");
    let by_disk = Story::triggered().by_disk().console(12, CAPTURE_BOOT).ends(20, "soft-off");
    let by_disk = by_disk.with(90, What::DumpComplete(9_000_000)).read(92, good_dump());
    by_disk.ends_as("pppppppM", Status::Pass, 92, "");
    // A dump that shows the panic and is wrong otherwise is not `panicked`'s to blame.
    let short = DumpFacts { cpus_saved: 1, ..good_dump() };
    unannounced().read(32, short).ends_as("ppppppFM", Status::Fail, 32, "1 of 2 online CPUs");
}

#[test]
fn a_capture_kernel_without_a_panic_on_the_console_or_in_the_dump_proves_none() {
    let read = |change: fn(&mut DumpFacts)| {
        let mut facts = good_dump();
        change(&mut facts);
        unannounced().read(32, facts)
    };
    for (story, verdict, reason) in [
        (read(|facts| facts.panic = None), Status::Fail, "no dump shows it. The dump is wrong (panic)"),
        (read(|facts| facts.panic = Some("Fatal exception".into())), Status::Fail, "the panic \"Fatal exception\""),
        (read(|facts| facts.marker = None), Status::Fail, "it is of another crash"),
        (read(|facts| facts.log_lines = 0), Status::Error, "could not be read"),
    ] {
        let letters = if verdict == Status::Fail { "pppF---M" } else { "pppE---M" };
        story.ends_as(letters, verdict, 32, reason);
    }
    let unreadable = |broken| What::Read(Err(Unreadable { broken, why: "the dump is truncated".into() }));
    unannounced().with(32, unreadable(true)).ends_as("pppF---M", Status::Fail, 32, "The dump is broken");
    unannounced().with(32, unreadable(false)).ends_as("pppE---M", Status::Error, 32, "does not know its kind");
}

#[test]
fn a_panic_is_waited_for_as_long_as_a_dump_may_show_it() {
    let quiet = Story::triggered().console(12, CAPTURE_BOOT);
    quiet.clone().ends_as("pppF---M", Status::Fail, 220, "its agent never called");
    let called = quiet.clone().capture(20, started(1));
    called.clone().ends_as("pppF---M", Status::Fail, 1120, "0 bytes are here");
    unannounced().ends_as("pppE---M", Status::Error, 1240, "The dump was not read in time");
    called.clone().ends(25, "soft-off").ends_as("pppF---M", Status::Fail, 35, "The dump is cut");
    called.clone().capture(25, failed(DumpFailure::Network, "no route")).ends_as(
        "pppE---M",
        Status::Error,
        25,
        "is not on the console before it, and no dump shows it. The capture agent gave up",
    );
    called.with(25, What::LeaseLost).ends_as("pppM---M", Status::Miss, 25, "The lease ran out");
    let panic = "[    1.700000] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";
    let end = quiet.console(14, panic).ends_as("pppF---M", Status::Fail, 14, "The capture kernel died");
    assert_eq!(end.signature.as_deref(), Some("Kernel panic: VFS: Unable to mount root fs"));
    // What the dump says counts from when the capture kernel is heard of: a controller may have to catch up.
    let late = Story::triggered().capture(20, started(1)).with(25, What::DumpComplete(9_000_000)).read(27, good_dump());
    late.clone().console(30, CAPTURE_BOOT).ends_as("pppppppM", Status::Pass, 30, "");
    late.console(41, CAPTURE_BOOT).ends_as("pppF---M", Status::Fail, 40, "No panic with");
    let gave_up = Story::triggered().capture(20, started(1)).capture(25, failed(DumpFailure::Network, "no route"));
    gave_up.console(41, CAPTURE_BOOT).ends_as("pppF---M", Status::Fail, 40, "No panic with");
    // A capture kernel that comes too late has nothing to add.
    Story::triggered().console(41, CAPTURE_BOOT).ends_as("pppF---M", Status::Fail, 40, "No panic with");
}

#[test]
fn a_second_console_that_has_the_panic_proves_it_whenever_it_comes() {
    let with = |story: Story, second| story.with(second, What::Beside(format!("{MARKER}{PANIC}")));
    let first = with(unannounced(), 11).read(32, good_dump()).ends_as("pppppppM", Status::Pass, 32, "");
    assert!(first.stages[3].reason.as_deref().is_some_and(|why| why.contains("is on console line")), "{first:?}");
    // Before the dump was read, and after it; what was settled meanwhile is settled from scratch as well.
    with(unannounced(), 25).read(50, good_dump()).ends_as("pppppppM", Status::Pass, 50, "");
    let late = with(unannounced().read(32, good_dump()), 70).ends_as("pppppppM", Status::Pass, 32, "");
    assert!(late.stages[3].reason.as_deref().is_some_and(|why| why.contains("in the log of the dump")), "{late:?}");
}

/// A crash of which the console shows nothing but the capture kernel, with its dump.
fn unannounced() -> Story {
    let quiet = Story::triggered().console(12, CAPTURE_BOOT).capture(20, started(1));
    quiet.with(22, What::DumpBytes(4 << 20)).with(30, What::DumpComplete(9_000_000))
}

#[test]
fn the_wrong_panic_fails_at_once_and_is_named() {
    let wrong = "[   20.2] x\r\n[   20.200000] Kernel panic - not syncing: Attempted to kill init!\r\n";
    let end = Story::triggered().console(11, wrong).ends_as("pppF---M", Status::Fail, 11, "The wrong panic came");
    assert_eq!(end.signature.as_deref(), Some("Kernel panic: Attempted to kill init!"));
    // What the scenario asks for decides, and nothing else.
    let other = Story::panicked().scenario(|scenario| scenario.expect.panic = "NMI: Not continuing".into());
    other.ends_as("pppF---M", Status::Fail, 11, "instead of one with \"NMI: Not continuing\"");
    let nothing = Story::panicked().scenario(|scenario| scenario.expect.panic.clear());
    assert_ne!(nothing.end().verdict, Some(Status::Pass), "no expectation is met by nothing");
}

#[test]
fn an_nmi_that_was_not_delivered_is_the_labs_fault() {
    Story::triggered().power(11, "nmi", false).ends_as("pppM---M", Status::Miss, 11, "was not delivered");
    let refused = Report::Power { action: "nmi".into(), ok: false, detail: "the BMC refuses".into() };
    let story = Story::triggered().target(11, refused.clone());
    story.ends_as("pppM---M", Status::Miss, 11, "was not delivered: the BMC refuses. Check the machine's BMC.");
    // Everything else that is said of power is the controller's to say.
    let powered = |action: &str| Report::Power { action: action.into(), ok: false, detail: String::new() };
    Story::silent().target(1, powered("on")).ends_as("M------M", Status::Miss, 300, "Nothing came from the machine");
}

#[test]
fn the_bug_of_the_seed_is_found_in_the_crash_path() {
    let hung = Story::panicked().console(12, SEED_BUG).ends_as("ppppF--M", Status::Fail, 191, SEED_TITLE);
    assert_eq!(hung.signature.as_deref(), Some(SEED_TITLE));
    let registers = |r12: &str, r13: &str| format!("Exc:000000000000000d\r\nr12:{r12}\r\nr13:{r13}\r\n");
    let leaked = Story::panicked().console(12, &registers("0000000000372630", "0000000000000020"));
    leaked.ends_as("ppppF--M", Status::Fail, 12, "CR4.VMXE was set");
    let other = Story::panicked().console(12, &registers("0000000000370630", "0000000000000020"));
    other.ends_as("ppppF--M", Status::Fail, 12, "died of exception 13 (console line");
    let again = "[   20.3] x\r\n[   20.400000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x9\r\n";
    let nested = Story::panicked().console(12, SEED_BUG).console(13, again);
    nested.ends_as("ppppF--M", Status::Fail, 43, "panicked again inside the crash path");
    let parked = "[   22.589071] Fixing recursive fault but reboot is needed!\r\n";
    let end = nested.console(14, parked).ends_as("ppppF--M", Status::Fail, 14, "stopped for good");
    assert_eq!(end.signature.as_deref(), Some(SEED_TITLE), "the first crash is the cause, not the last");
    let fault = Story::panicked().console(12, SEED_BUG).ends(13, "triple fault");
    fault.ends_as("ppppF--M", Status::Fail, 23, SEED_TITLE);
}

#[test]
fn a_crash_path_that_survives_an_oops_may_still_capture() {
    let story = Story::panicked().console(12, SEED_BUG).console(15, CAPTURE_BOOT).capture(20, started(1));
    let end = story.with(30, What::DumpComplete(9_000_000)).read(32, good_dump()).end();
    assert_eq!((letters(&end).as_str(), end.verdict), ("pppppppM", Some(Status::Pass)));
}

#[test]
fn a_kernel_without_a_crash_kernel_says_so_and_fails_at_once() {
    let end = "[   20.300000] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n";
    Story::panicked().console(12, end).ends_as("ppppF--M", Status::Fail, 12, "instead of starting the capture kernel");
}

#[test]
fn a_triple_fault_in_the_crash_path_shows_as_an_end_or_as_a_reset() {
    Story::panicked().ends(12, "triple fault").ends_as("ppppF--M", Status::Fail, 22, "without a capture kernel");
    Story::panicked().console(14, PLAIN_BOOT).ends_as("ppppF--M", Status::Fail, 14, "is no capture kernel");
}

#[test]
fn a_silent_capture_kernel_fails_at_the_deadline() {
    Story::panicked().ends_as("ppppF--M", Status::Fail, 191, "the console is silent");
    Story::panicked().console(15, CAPTURE_BOOT).ends_as("ppppF--M", Status::Fail, 191, "its agent never called");
}

#[test]
fn a_capture_kernel_that_nobody_can_see_is_an_error_and_no_red() {
    Story::panicked().capture(20, started(1)).ends_as("ppppE--M", Status::Error, 191, "Check that `console=`");
}

#[test]
fn a_capture_kernel_that_panics_fails_at_once() {
    let panic = "[    1.700000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n";
    let story = Story::panicked().console(15, CAPTURE_BOOT).console(17, panic);
    let end = story.ends_as("ppppF--M", Status::Fail, 17, "The capture kernel died: Kernel panic: VFS");
    assert_eq!(end.signature.as_deref(), Some("Kernel panic: VFS: Unable to mount root fs on unknown-block(0,0)"));
    Story::captured().console(23, panic).ends_as("pppppF-M", Status::Fail, 23, "The capture kernel died with 0 bytes");
}

#[test]
fn a_crashed_kernels_log_printed_again_is_no_second_panic() {
    let story = Story::captured().console(21, MARKER).console(22, PANIC).console(23, SEED_BUG);
    let end = story.with(30, What::DumpComplete(9_000_000)).read(32, good_dump()).end();
    assert_eq!(end.verdict, Some(Status::Pass));
}

#[test]
fn a_cut_dump_fails_when_the_machine_ends_or_time_is_up() {
    let cut = Story::captured().with(22, What::DumpBytes(4 << 20));
    cut.clone().ends(25, "soft-off").ends_as("pppppF-M", Status::Fail, 35, "cut: the machine ended with 4194304 bytes");
    cut.ends_as("pppppF-M", Status::Fail, 920, "4194304 bytes are here, and the rest did not come");
}

#[test]
fn a_dump_that_failed_is_blamed_by_cause() {
    for (cause, verdict, letters) in [
        (DumpFailure::Makedumpfile, Status::Fail, "pppppF-M"),
        (DumpFailure::Network, Status::Error, "pppppE-M"),
        (DumpFailure::Disk, Status::Error, "pppppE-M"),
    ] {
        let said = Story::captured().capture(25, failed(cause, "exit code 1\nmore"));
        said.ends_as(letters, verdict, 25, "gave up after 0 bytes: exit code 1. ");
        let printed = Story::captured().console(25, &format!("crashyard: dump failed cause={cause} eth0 is down\n"));
        printed.ends_as(letters, verdict, 25, "says on console line");
    }
}

#[test]
fn a_wrong_hash_is_an_error() {
    let story = Story::captured().with(25, What::DumpMismatch("announced ab…, received cd…".into()));
    story.ends_as("pppppE-M", Status::Error, 25, "announced ab…, received cd…");
}

#[test]
fn an_agents_word_that_the_dump_is_complete_proves_nothing() {
    let word = Report::DumpFinished { bytes: 5, blake3: "00".into(), sent_bytes: 5, skipped_bytes: 0 };
    Story::captured().capture(25, word).ends_as("pppppF-M", Status::Fail, 920, "0 bytes are here");
}

#[test]
fn a_capture_agent_that_is_started_again_goes_on() {
    let story = Story::captured().with(22, What::DumpBytes(4 << 20)).capture(24, started(2));
    let story = story.with(30, What::DumpComplete(9_000_000)).read(32, good_dump());
    assert_eq!(story.end().verdict, Some(Status::Pass));
}

#[test]
fn a_dump_on_a_disk_needs_no_network_and_may_come_after_the_machine_ended() {
    let story = Story::panicked().by_disk().console(15, CAPTURE_BOOT).ends(40, "soft-off");
    let good = story.clone().with(90, What::DumpComplete(9_000_000)).read(92, good_dump());
    assert_eq!((letters(&good.end()).as_str(), good.end().verdict), ("pppppppM", Some(Status::Pass)));
    story.ends_as("ppppF--M", Status::Fail, 191, "its agent never called");
    let called = Story::captured().by_disk().ends(40, "soft-off").with(90, What::DumpComplete(9_000_000));
    assert_eq!(called.read(92, good_dump()).end().verdict, Some(Status::Pass));
    Story::panicked().by_disk().ends(40, "soft-off").ends_as("ppppF--M", Status::Fail, 50, "without a capture kernel");
}

#[test]
fn every_oracle_of_the_dump_counts() {
    type Change = fn(&mut crate::triage::DumpFacts);
    let table: &[(Change, Status, &str)] = &[
        (|facts| facts.release = "5.10".into(), Status::Fail, "(release)"),
        (|facts| facts.build_id = Some("00".into()), Status::Fail, "(build-id)"),
        (|facts| facts.build_id = None, Status::Error, "(build-id)"),
        (|facts| facts.marker = None, Status::Fail, "(marker)"),
        (|facts| facts.panic = None, Status::Fail, "(panic)"),
        (|facts| facts.panic = Some("Fatal exception".into()), Status::Fail, "(panic)"),
        (|facts| facts.cpus_saved = 1, Status::Fail, "1 of 2 online CPUs have saved registers"),
        (|facts| facts.cpus_online = None, Status::Error, "(registers)"),
        (|facts| facts.cpus_online = Some(0), Status::Error, "(registers)"),
        (|facts| facts.log_lines = 0, Status::Error, "could not be read"),
    ];
    for (change, verdict, reason) in table {
        let mut facts = good_dump();
        change(&mut facts);
        let letters = if *verdict == Status::Fail { "ppppppFM" } else { "ppppppEM" };
        Story::dumped().read(32, facts).ends_as(letters, *verdict, 32, reason);
    }
}

#[test]
fn a_broken_dump_fails_and_an_unread_one_is_our_error() {
    let unreadable = |broken| What::Read(Err(Unreadable { broken, why: "the dump is truncated".into() }));
    Story::dumped().with(32, unreadable(true)).ends_as("ppppppFM", Status::Fail, 32, "The dump is broken");
    Story::dumped().with(32, unreadable(false)).ends_as("ppppppEM", Status::Error, 32, "does not know its kind");
    Story::dumped().ends_as("ppppppEM", Status::Error, 150, "not read in time");
}

#[test]
fn the_build_id_is_taken_from_the_running_kernel_where_the_build_has_none() {
    let mut story = Story::dumped();
    story.build.build_id = None;
    let mut other = good_dump();
    other.build_id = Some("00".into());
    story.clone().read(32, other).ends_as("ppppppFM", Status::Fail, 32, "(build-id)");
    assert_eq!(story.read(32, good_dump()).end().verdict, Some(Status::Pass));
}

#[test]
fn a_machine_that_does_not_come_back_changes_nothing_about_the_verdict() {
    let passed = Story::dumped().read(32, good_dump());
    let end = passed.clone().ends_as("pppppppM", Status::Pass, 32, "");
    assert!(end.quarantine.is_some_and(|why| why.contains("not handed back in time")));
    assert_eq!(end.blamed_stage, None);
    let ill = passed.clone().with(50, What::Released(false, "no ping".into()));
    assert!(ill.ends_as("pppppppM", Status::Pass, 32, "").quarantine.is_some_and(|why| why.contains("no ping")));
    let checked = passed.clone().controller(45, Report::Health { healthy: false, detail: "disk is gone".into() });
    assert!(checked.end().quarantine.is_some_and(|why| why.contains("disk is gone")));
    let lost = passed.with(60, What::LeaseLost);
    assert!(lost.ends_as("pppppppM", Status::Pass, 32, "").quarantine.is_some_and(|why| why.contains("lease ran out")));
}

#[test]
fn a_lost_lease_reads_miss_wherever_it_happens() {
    let letters = ["M------M", "pM-----M", "ppM----M", "pppM---M", "ppppM--M", "pppppM-M"];
    let stories =
        [Story::silent(), Story::booted(), Story::armed(), Story::triggered(), Story::panicked(), Story::captured()];
    for (story, letters) in stories.into_iter().zip(letters) {
        story.clone().with(25, What::LeaseLost).ends_as(letters, Status::Miss, 25, "The lease ran out while");
        let released = story.with(25, What::Released(true, "operator asked".into()));
        let letters = format!("{}p", &letters[..7]);
        released.ends_as(&letters, Status::Miss, 25, "handed the machine back while");
    }
    let complete = Story::dumped().with(31, What::LeaseLost).read(32, good_dump());
    complete.ends_as("pppppppM", Status::Pass, 32, "");
}

#[test]
fn an_hour_without_the_server_costs_nobody_a_deadline() {
    // The server goes away at second 12, right after the panic, and is back an hour later.
    let away = What::ServerAway { seconds: 3600 };
    let story = Story::panicked().with(3612, away.clone()).console(3620, CAPTURE_BOOT).capture(3621, started(1));
    let good = story.with(3630, What::DumpComplete(9_000_000)).read(3632, good_dump());
    assert_eq!(good.end().verdict, Some(Status::Pass));
    // Somebody who stays silent is blamed all the same, an hour and the time to reconnect later.
    let silent = Story::panicked().with(3612, away);
    silent.ends_as("ppppF--M", Status::Fail, 191 + 3600 + 30, "the console is silent");
}

#[test]
fn evidence_that_comes_late_changes_nothing() {
    let late = Story::panicked().console(200, CAPTURE_BOOT).capture(201, started(1));
    let late = late.with(210, What::DumpComplete(9_000_000)).read(212, good_dump());
    late.ends_as("ppppF--M", Status::Fail, 191, "the console is silent");
    // Not even when it comes at the very moment.
    let sharp = Story::panicked().console(15, CAPTURE_BOOT).capture(191, started(1));
    sharp.ends_as("ppppF--M", Status::Fail, 191, "never called");
}

#[test]
fn reports_that_are_repeated_or_come_from_the_wrong_agent_change_nothing() {
    let story = Story::perfect();
    let mut view = story.view(41_000);
    let again: Vec<_> = view
        .reports
        .iter()
        .cloned()
        .map(|mut said| {
            said.received_at.0 += 500;
            said
        })
        .collect();
    view.reports.extend(again);
    view.reports.reverse();
    let now = crashyard_protocol::clock::Timestamp(START.0 + 50_000);
    let judged = crate::triage::judge(&story.scenario, &story.build, &view, now);
    assert_eq!(judged, story.judged_at(50));

    let forged = Story::booted().capture(8, armed(true)).controller(9, triggering()).target(10, started(1));
    forged.ends_as("pE-----M", Status::Error, 126, "no step was reported");
}

#[test]
fn what_was_settled_before_is_never_judged_again() {
    let judged = Story::panicked().end();
    let mut view = Story::perfect().view(41_000);
    view.stages = judged.stages.clone();
    let story = Story::perfect();
    let now = crashyard_protocol::clock::Timestamp(START.0 + 100_000_000);
    let again = crate::triage::judge(&story.scenario, &story.build, &view, now);
    assert_eq!((again.verdict, again.reason), (Some(Status::Fail), judged.reason));
    assert_eq!(again.stages, judged.stages);
}
