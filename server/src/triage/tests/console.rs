//! What is read on consoles.

use super::story::{ATTEMPT, CAPTURE_BOOT, FIRST_BOOT, MARKER, PANIC, RELEASE};
use crate::triage::console::{ConsoleFacts, ConsoleReader, Intent, MarkKind, Phase};
use crashyard_protocol::clock::Timestamp;
use proptest::prelude::*;

fn intent() -> Intent {
    Intent { attempt: ATTEMPT.parse().expect("an id"), panic: "sysrq triggered crash".into(), oops: false }
}

fn read(text: impl AsRef<[u8]>) -> ConsoleFacts {
    let mut reader = ConsoleReader::new(intent());
    reader.feed(Timestamp(7), 0, text.as_ref());
    reader.facts().clone()
}

/// A crash in the crash path, with a trace that ends nowhere.
const NESTED: &str = "\
[   20.100000] BUG: unable to handle page fault for address: ffffffffffffffc8\r
[   20.100100] #PF: supervisor read access in kernel mode\r
[   20.100200] CPU: 0 PID: 1 Comm: init Kdump: loaded Not tainted 6.1.0 #1\r
[   20.100300] RIP: 0010:own_disable+0x43/0x100 [own]\r
[   20.100400] Call Trace:\r
[   20.100500]  own_shutdown+0x1/0x2\r
[   20.100600]  __crash_kexec+0x1/0x2\r
";

fn story() -> String {
    format!("BIOS\r\n{FIRST_BOOT}{MARKER}{PANIC}{CAPTURE_BOOT}")
}

#[test]
fn the_reader_follows_the_crash_through_its_phases() {
    let facts = read(story());
    let phases: Vec<(Phase, &MarkKind)> = facts.marks.iter().map(|mark| (mark.phase, &mark.kind)).collect();
    let banner = MarkKind::Banner { release: RELEASE.into() };
    let panic = MarkKind::Panic { message: "sysrq triggered crash".into(), intended: true, expected: true };
    assert_eq!(
        phases,
        vec![
            (Phase::Before, &banner),
            (Phase::Before, &MarkKind::CommandLine { capture: false }),
            (Phase::Before, &MarkKind::CommandLine { capture: false }),
            (Phase::Before, &MarkKind::Marker),
            (Phase::Triggered, &panic),
            (Phase::Crashed, &banner),
            (Phase::Crashed, &MarkKind::CommandLine { capture: true }),
        ]
    );
    assert_eq!(facts.lines, 10);
}

#[test]
fn where_a_controller_did_not_hear_the_console_its_own_words_prove_nothing() {
    let gap = "\r\n[crashyard: the console was not heard for 12.5 s: the other end closed it]\r\n";
    let marks = |text: String| read(text).marks.into_iter().map(|mark| (mark.phase, mark.kind)).collect::<Vec<_>>();
    let cut = format!("BIOS\r\n{FIRST_BOOT}{gap}{MARKER}{gap}{PANIC}{gap}{CAPTURE_BOOT}");
    assert_eq!(marks(cut), marks(story()));
}

#[test]
fn an_expected_message_without_the_marker_is_not_the_intended_panic() {
    let facts = read(format!("{FIRST_BOOT}{PANIC}"));
    let last = facts.marks.last().expect("a mark");
    assert!(matches!(last.kind, MarkKind::Panic { intended: false, expected: true, .. }));
    assert_eq!(last.phase, Phase::Before);
}

#[test]
fn an_agent_that_logs_what_it_is_about_to_write_does_not_prove_the_marker() {
    let marker = MARKER.trim_end().split_once("] ").expect("a time stamp").1;
    let facts = read(format!("{FIRST_BOOT}INFO report=Triggering {{ marker: \"{marker}\" }}\n"));
    assert!(facts.marks.iter().all(|mark| mark.kind != MarkKind::Marker), "{:?}", facts.marks);
}

#[test]
fn prefixes_escapes_and_prompts_do_not_hide_a_line() {
    let panic = "Kernel panic - not syncing: sysrq triggered crash";
    for line in [
        format!("[   20.000200] {panic}"),
        format!("[   20.000200][    T1] {panic}"),
        format!("<0>[   20.000200] {panic}\r"),
        format!("2026-11-23T10:00:00Z rack4 console: [   20.000200] {panic}"),
        format!("\x1b[1;31m[   20.000200] {panic}\x1b[0m\r"),
        format!("/ # [   20.000200] {panic}"),
        panic.to_owned(),
    ] {
        let facts = read(format!("{MARKER}{line}\n"));
        let last = facts.marks.last().expect("a mark");
        assert!(matches!(last.kind, MarkKind::Panic { intended: true, .. }), "{line:?} gives {last:?}");
        assert!(!last.text.contains(['\x1b', '\r']), "proofs are safe to show");
    }
}

#[test]
fn oopses_are_titled_by_what_happened_and_where() {
    for (lines, title) in [
        (
            "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000\n\
             [    1.000000] #PF: supervisor read access in kernel mode\n\
             [    1.000000] Oops: Oops: 0000 [#1] SMP\n\
             [    1.000000] RIP: 0010:vmx_disable_virtualization_cpu+0x27/0x70 [kvm_intel]\n",
            "BUG: unable to handle kernel NULL pointer dereference in vmx_disable_virtualization_cpu",
        ),
        (
            "[    1.000000] Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP\n\
             [    1.000000] RIP: 0010:do_it+0x1/0x2\n",
            "general protection fault in do_it",
        ),
        (
            "[    1.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:77]\n\
             [    1.000000] RIP: 0033:0x47b7a0\n",
            "BUG: soft lockup",
        ),
    ] {
        let facts = read(lines);
        let titles: Vec<&MarkKind> = facts.marks.iter().map(|mark| &mark.kind).collect();
        assert_eq!(titles, vec![&MarkKind::Oops { title: title.into() }]);
    }
    assert!(read("[    1.000000] WARNING: CPU: 0 PID: 1 at arch/x86/x.c:95 parse+0xaf/0xc0\n").marks.is_empty());
}

/// What the module's oops leaves on the console, when a crash kernel is loaded: no panic, the next kernel.
const OOPS: &str = "[   20.000200] BUG: kernel NULL pointer dereference, address: 0000000000000ca5\r\n\
    [   20.000210] #PF: supervisor write access in kernel mode\r\n\
    [   20.000220] Oops: Oops: 0002 [#1] SMP NOPTI\r\n\
    [   20.000230] RIP: 0010:call+0x27/0x70 [crashyard_vmx]\r\n";

#[test]
fn an_oops_is_the_intended_crash_where_the_scenario_crashes_by_one() {
    let oops = Intent { panic: "address: 0000000000000ca5".into(), oops: true, ..intent() };
    let read = |intent: &Intent, text: String| {
        let mut reader = ConsoleReader::new(intent.clone());
        reader.feed(Timestamp(7), 0, text.as_bytes());
        reader.facts().marks.iter().map(|mark| (mark.phase, mark.kind.clone())).collect::<Vec<_>>()
    };
    let header = "BUG: kernel NULL pointer dereference, address: 0000000000000ca5";
    let intended = MarkKind::Panic { message: header.into(), intended: true, expected: true };
    let marks = read(&oops, format!("{FIRST_BOOT}{MARKER}{OOPS}{CAPTURE_BOOT}"));
    assert_eq!(marks[4], (Phase::Triggered, intended));
    assert_eq!((marks[5].0, marks.len()), (Phase::Crashed, 7), "its other lines are no crash of their own: {marks:?}");
    // A second one is: in the crash path, where nobody asked for it.
    let again = read(&oops, format!("{MARKER}{OOPS}{}", OOPS.replace("20.0", "20.1")));
    assert!(matches!(again.last(), Some((Phase::Crashed, MarkKind::Oops { .. }))), "{again:?}");
    // Elsewhere an oops is what it always is: of other words, before the marker, or where a panic was asked for.
    let other = Intent { panic: "address: 0000000000000000".into(), ..oops.clone() };
    let panic = Intent { oops: false, ..oops.clone() };
    for (intent, text) in
        [(&other, format!("{MARKER}{OOPS}")), (&oops, OOPS.to_owned()), (&panic, format!("{MARKER}{OOPS}"))]
    {
        assert!(matches!(read(intent, text).last(), Some((_, MarkKind::Oops { .. }))));
    }
}

#[test]
fn a_command_line_that_may_be_cut_does_not_look_like_a_reset() {
    let long = format!("[    0.000000] Command line: {}\n", "console=ttyS0 ".repeat(70));
    let text = format!("{MARKER}{PANIC}[    0.000000] Linux version {RELEASE} (builder@lab) #1\n{long}{CAPTURE_BOOT}");
    let last = read(text).marks.pop().expect("a mark");
    assert_eq!((last.phase, last.kind), (Phase::Crashed, MarkKind::CommandLine { capture: true }));
}

#[test]
fn a_mention_of_linux_is_no_banner() {
    assert!(read("I like Linux version 6 very much\nLinux version\n").marks.is_empty());
}

#[test]
fn hostile_consoles_cost_little_memory() {
    let mut reader = ConsoleReader::new(intent());
    let endless = vec![b'A'; 1 << 20];
    for _ in 0..8 {
        reader.feed(Timestamp(1), reader.next_offset(), &endless);
    }
    let flood = "\n".to_owned() + &PANIC.repeat(10_000);
    reader.feed(Timestamp(2), reader.next_offset(), flood.as_bytes());
    assert!(reader.facts().marks.len() <= 32);
    assert_eq!(reader.facts().lines, 10_001);
    assert_eq!(reader.facts().marks[0].offset, (8 << 20) + 1);
}

#[test]
fn an_oops_gets_its_title_as_soon_as_it_says_where_it_happened() {
    let mut reader = ConsoleReader::new(intent());
    let mut said = |text: &str| {
        let news = reader.feed(Timestamp(7), reader.next_offset(), text.as_bytes());
        let titles = reader.facts().marks.iter().filter_map(|mark| match &mark.kind {
            MarkKind::Oops { title } => Some(title.clone()),
            _ => None,
        });
        (news, titles.collect::<Vec<_>>().join(", "))
    };
    let unnamed = "BUG: unable to handle kernel paging request";
    let named = format!("{unnamed} in own_step");
    assert_eq!(
        said("[    1.000000] BUG: unable to handle page fault for address: ffffffffffffffc8\n"),
        (true, unnamed.into())
    );
    assert_eq!(said("[    1.000001] #PF: supervisor read access in kernel mode\n"), (false, unnamed.into()));
    assert_eq!(said("[    1.000002] RIP: 0010:own_step+0x43/0x100 [own]\n"), (true, named.clone()));
    for line in ["Call Trace:", " <TASK>", " own_open+0x1/0x2", " own_enter+0x1/0x2", "---[ end trace 0 ]---"] {
        assert_eq!(said(&format!("[    1.000003] {line}\n")), (false, named.clone()));
    }
}

#[test]
fn the_crashed_kernels_log_is_no_news_in_a_capture_kernel_that_is_told_to_be_quiet() {
    let oops =
        "[   19.000000] BUG: kernel NULL pointer dereference, address: 0\n[   19.000001] RIP: 0010:own+0x1/0x2\n";
    let text = format!("{FIRST_BOOT}{oops}{MARKER}{PANIC}{CAPTURE_BOOT}");
    let before = read(&text);
    let after = read(format!("{text}{oops}{PANIC}[   20.000300] ---[ end Kernel panic - not syncing: x ]---\n"));
    assert_eq!(after.marks.len(), before.marks.len() + 1, "{:#?}", after.marks);
    let own = read(format!("{text}[    0.700000] Kernel panic - not syncing: no init\n"));
    assert_eq!(own.marks.len(), before.marks.len() + 1, "what it says itself is news");
}

#[test]
fn a_capture_kernel_whose_banner_was_lost_is_another_kernel_all_the_same() {
    let (_, command_line) = CAPTURE_BOOT.split_once("\r\n").expect("two lines");
    let facts = read(format!("{FIRST_BOOT}{MARKER}{PANIC}{command_line}{PANIC}"));
    let last = facts.marks.last().expect("a mark");
    assert_eq!((last.phase, &last.kind), (Phase::Crashed, &MarkKind::CommandLine { capture: true }), "no second panic");
}

proptest! {
    #[test]
    fn any_cut_and_any_repetition_gives_the_same_facts(cuts in prop::collection::vec((0_usize..1600, 0_usize..300), 0..12)) {
        let text = format!("BIOS\r\n{FIRST_BOOT}{MARKER}{PANIC}{NESTED}{CAPTURE_BOOT}");
        let bytes = text.as_bytes();
        let mut reader = ConsoleReader::new(intent());
        for (start, length) in cuts {
            let start = start.min(usize::try_from(reader.next_offset()).expect("small"));
            let end = (start + length).min(bytes.len());
            if start < end {
                reader.feed(Timestamp(7), start as u64, &bytes[start..end]);
            }
        }
        let from = usize::try_from(reader.next_offset()).expect("small");
        reader.feed(Timestamp(7), from as u64, &bytes[from..]);
        prop_assert_eq!(reader.facts(), &read(bytes));
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..4000), offset in any::<u32>()) {
        let mut reader = ConsoleReader::new(intent());
        reader.feed(Timestamp(7), u64::from(offset), &bytes);
        reader.feed(Timestamp(8), 3, &bytes);
        prop_assert_eq!(reader.facts().bytes, (u64::from(offset) + bytes.len() as u64).max(3 + bytes.len() as u64));
    }

    #[test]
    fn lines_of_a_story_in_any_order_are_read(order in Just(story()).prop_flat_map(|text| {
        let lines: Vec<String> = text.lines().map(|line| format!("{line}\n")).collect();
        prop::sample::subsequence(lines.clone(), 0..=lines.len()).prop_shuffle()
    })) {
        let facts = read(order.concat());
        prop_assert!(facts.marks.windows(2).all(|pair| pair[0].offset < pair[1].offset && pair[0].phase <= pair[1].phase));
    }
}
