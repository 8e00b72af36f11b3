//! Promises that hold for any input: cuts do not matter, nothing panics, time is linear, memory is bounded.

use crashyard_crashlog::{Intent, Options, Parser, parse};
use proptest::prelude::*;

/// A console with most of what makes parsing hard, made of our own words.
const CONSOLE: &str = "SeaBIOS (version 1.2)\r\n\
[    0.000000] Linux version 7.3.4-own (me@box) (gcc 12) #1 SMP\r\n\
[    0.000000] Command line: console=ttyS0 crashkernel=160M\n\
[    0.500000] Run /init as init process\n\
login: [    1.000000][  T77] crashyard: trigger job=J1 attempt=A1 scenario=sysrq\n\
[    1.100000][  T77] sysrq: Trigger a crash\r\r\n\
\x1b[31m[    1.200000][  T77] Kernel panic - not syncing: sysrq triggered crash\x1b[0m\n\
[    1.200001][    C1] BUG: unable to handle page fault for address: ffffffffffffffc8\n\
[    1.200002][  T77] CPU: 4 UID: 0 PID: 77 Comm: run.sh Kdump: loaded Tainted: G        W          7.3.4-own #1\n\
[    1.200003][    C1] #PF: error_code(0x0002) - not-present page\n\
[    1.200004][  T77] Call Trace:\n\
[    1.200005][    C1] RIP: 0010:my_crash_step+0x57/0xd0 [my_mod]\n\
[    1.200006][  T77]  dump_stack_lvl+0x5d/0x80\n\
[    1.200007][    C1] Code: 48 89 c7 90 <48> 8b 0a 48 39 d0\n\
[    1.200008][  T77]  panic+0x6b/0x70\n\
[    1.200009][    C1] Call Trace:\n\
[    1.200010][    C1]  my_shutdown+0x45/0x190\n\
[    1.200011][  T77]  my_write+0x1/0x2 [my_mod]\n\
[    1.200012][    C1]  __crash_kexec+0x61/0x130\n\
[    1.200013][    C1] ---[ end trace 0000000000000000 ]---\n\
half a li[    1.300000][   T1] WARNING: CPU: 0 PID: 1 at fs/own.c:12 own_check+0x1/0x2\n\
[    1.300001][   T1] Call Trace:\rprogress 10%\rprogress 20%\n\
[    1.300002][   T1]  own_open+0x3/0x4\n\
\0\0[    0.000000] Linux version 7.3.4-own (me@box) (gcc 12) #1 SMP again\n\
[    0.000000] Command line: elfcorehdr=0x1000 console=ttyS0\n\
[    0.900000] reboot: Power down";

fn options() -> Options {
    Options { intent: Some(Intent::new("sysrq triggered crash")) }
}

/// Any mix of whole lines, broken lines and noise.
fn console() -> impl Strategy<Value = Vec<u8>> {
    let lines: Vec<Vec<u8>> = CONSOLE.split_inclusive('\n').map(|l| l.as_bytes().to_vec()).collect();
    let piece = prop_oneof![
        6 => proptest::sample::select(lines.clone()),
        2 => (proptest::sample::select(lines), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut l, i, b)| {
            let at = i.index(l.len());
            l[at] = b;
            l
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
        1 => (any::<u8>(), 0usize..20_000).prop_map(|(b, n)| vec![b; n]),
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|p| p.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_cuts_give_the_same_outcome(bytes in console(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let whole = parse(&bytes, options());
        let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let mut parser = Parser::new(options());
        let mut from = 0;
        for to in at.into_iter().chain([bytes.len()]) {
            parser.feed(&bytes[from..to]);
            from = to;
        }
        prop_assert_eq!(parser.offset(), bytes.len() as u64);
        prop_assert_eq!(parser.finish(), whole);
    }

    #[test]
    fn a_parser_that_is_drained_hands_out_what_another_keeps(bytes in console(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let mut keeps = Parser::new(options());
        keeps.feed(&bytes);
        let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
        at.sort_unstable();
        let mut drained = Parser::new(options());
        let (mut events, mut reports) = (Vec::new(), Vec::new());
        let mut from = 0;
        for to in at.into_iter().chain([bytes.len()]) {
            drained.feed(&bytes[from..to]);
            let new = drained.drain();
            events.extend(new.events);
            reports.extend(new.reports);
            from = to;
        }
        reports.sort_by_key(|r| r.start);
        prop_assert_eq!(events, keeps.events());
        prop_assert_eq!(reports, keeps.reports());
        let names = |p: &Parser| p.open().map(|o| (o.start(), o.lines(), o.title())).collect::<Vec<_>>();
        prop_assert_eq!(names(&drained), names(&keeps));
        prop_assert_eq!(drained.line_feeds(), bytes.iter().filter(|b| **b == b'\n').count() as u64);
    }

    #[test]
    fn a_snapshot_is_what_finishing_there_would_give(bytes in console(), cut in any::<prop::sample::Index>()) {
        let at = cut.index(bytes.len() + 1);
        let mut parser = Parser::new(options());
        parser.feed(&bytes[..at]);
        prop_assert_eq!(parser.snapshot(), parse(&bytes[..at], options()));
        parser.feed(&bytes[at..]);
        prop_assert_eq!(parser.finish(), parse(&bytes, options()));
    }

    #[test]
    fn ranges_lie_in_the_input_and_in_order(bytes in console()) {
        let o = parse(&bytes, options());
        let n = bytes.len() as u64;
        for (i, r) in o.reports.iter().enumerate() {
            prop_assert!(r.start < r.end && r.end <= n);
            prop_assert!(r.cause.is_none_or(|c| c < i) && r.duplicate_of.is_none_or(|d| d < i));
            let feeds = bytes[..usize::try_from(r.start).unwrap()].iter().filter(|b| **b == b'\n').count() as u64;
            prop_assert_eq!(r.line, feeds + 1);
        }
        prop_assert!(o.reports.windows(2).all(|w| w[0].start <= w[1].start));
        prop_assert!(o.events.iter().all(|e| e.start <= e.end && e.end <= n));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
        let _ = parse(&bytes, options());
    }
}

#[test]
fn one_byte_at_a_time_is_the_same_as_all_at_once() {
    let mut parser = Parser::new(options());
    for b in CONSOLE.as_bytes() {
        parser.feed(std::slice::from_ref(b));
    }
    let got = parser.finish();
    assert_eq!(got, parse(CONSOLE.as_bytes(), options()));
    assert_eq!(got.reports.len(), 3, "{:#?}", got.reports.iter().map(|r| &r.title).collect::<Vec<_>>());
}

#[test]
fn bytes_that_nobody_has_end_the_line_before_them() {
    let mut parser = Parser::new(options());
    parser.feed(b"[    1.000000] Kernel panic - not sync");
    parser.skip_to(100);
    parser.feed(b"ing: x\n[    1.000000] Kernel panic - not syncing: y\n");
    parser.skip_to(3);
    assert_eq!(parser.offset(), 152);
    let outcome = parser.finish();
    assert_eq!(
        outcome.reports.iter().map(|r| (r.start, r.title.as_str())).collect::<Vec<_>>(),
        [(107, "kernel panic: y")]
    );
}

#[test]
fn lines_at_the_length_limit_survive_all_cuts() {
    for n in [8190, 8191, 8192, 8193, 16383, 16384, 16385] {
        let mut text = vec![b'x'; n];
        text.extend_from_slice(b"\nKernel panic - not syncing: own words\n");
        for cut in [1, 100, 8191, 8192, 8193, n] {
            let mut parser = Parser::new(options());
            parser.feed(&text[..cut]);
            parser.feed(&text[cut..]);
            assert_eq!(parser.finish(), parse(&text, options()), "{n} {cut}");
        }
        assert_eq!(parse(&text, options()).reports.len(), 1, "{n}");
    }
}

#[test]
fn a_flood_of_reports_is_counted_not_stored_without_end() {
    let one = "[    1.000000] WARNING: CPU: 0 PID: 1 at fs/own.c:12 own_check+0x1/0x2\n[    1.000001] Call Trace:\n[    1.000002]  own_open+0x3/0x4\n[    1.000003]  own_two+0x3/0x4\n";
    let mut parser = Parser::new(options());
    for _ in 0..12_000 {
        parser.feed(one.as_bytes());
    }
    let o = parser.finish();
    assert_eq!(o.reports.len(), 10_000);
    assert!(o.warnings.iter().any(|w| w.text.contains("2000 further reports")), "{:?}", o.warnings);
}
