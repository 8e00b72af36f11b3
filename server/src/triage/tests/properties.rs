//! What holds for every story: the order in which independent evidence arrives does not matter, a settled stage stays
//! settled, judging again from scratch gives what was judged live, and nothing makes the judge fail.

use super::story::*;
use crate::triage::console::{ConsoleReader, Intent};
use crate::triage::{ConsoleEvidence, DumpEvidence, EvidenceView, Judgement, Lease, judge};
use crashyard_protocol::agent::{DumpFailure, Report, Role};
use crashyard_protocol::api::Evidence;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{Stage, StageName, StageState, Status};
use proptest::prelude::*;

const OOPS: &str = "\
[   20.100000] BUG: unable to handle page fault for address: ffffffffffffffc8\r
[   20.100400] RIP: 0010:vmx_emergency_disable_virtualization_cpu+0x43/0x100 [kvm_intel]\r
";
const DEAD: &str = "[   22.589071] Fixing recursive fault but reboot is needed!\r\n";
const SECOND: &str = "[    1.700000] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n";

/// Stories that end in every stage.
fn stories() -> Vec<Story> {
    vec![
        Story::perfect(),
        Story::silent().power(1, "on", true),
        Story::silent().power(1, "on", false),
        Story::silent().power(1, "on", true).ends(2, "exit code 1"),
        Story::silent().console(2, FIRST_BOOT).target(6, kernel("5.10.0", None)),
        Story::booted().target(7, step("load-crash-kernel", 255, false, "Memory for crashkernel is not reserved")),
        Story::booted().ends(9, "triple fault"),
        Story::armed().target(9, triggering()).console(11, PANIC).console(15, CAPTURE_BOOT),
        Story::triggered(),
        Story::triggered()
            .console(11, "[   20.200000] Kernel panic - not syncing: Fatal exception\r\n")
            .ends(12, "off"),
        Story::panicked(),
        Story::panicked().console(12, OOPS),
        Story::panicked().console(12, OOPS).console(14, DEAD).ends(15, "triple fault"),
        Story::panicked().ends(12, "triple fault"),
        Story::panicked().console(15, CAPTURE_BOOT).console(17, SECOND).ends(18, "soft-off"),
        Story::captured().console(23, SECOND).ends(24, "soft-off"),
        Story::captured().with(22, What::DumpBytes(4 << 20)).ends(25, "soft-off"),
        Story::captured().capture(24, started(2)).capture(25, failed(DumpFailure::Network, "no route")),
        Story::captured().with(25, What::DumpMismatch("another hash".into())),
        Story::dumped().read(32, good_dump()).ends(33, "soft-off"),
        Story::triggered()
            .console(12, CAPTURE_BOOT)
            .capture(20, started(1))
            .capture(25, failed(DumpFailure::Network, "")),
        Story::triggered().console(12, CAPTURE_BOOT).console(17, SECOND).ends(18, "soft-off"),
        Story::triggered()
            .console(12, CAPTURE_BOOT)
            .capture(20, started(1))
            .with(30, What::DumpComplete(9_000_000))
            .read(32, good_dump())
            .ends(33, "soft-off"),
        Story::panicked().with(3612, What::ServerAway { seconds: 3600 }),
    ]
}

/// What a judgement says, without the times at which things arrived.
fn meaning(judgement: &Judgement) -> (String, Option<Status>, Option<StageName>, Option<String>, Option<String>) {
    let Judgement { verdict, blamed_stage, reason, signature, .. } = judgement.clone();
    (letters(judgement), verdict, blamed_stage, reason, signature)
}

/// Delays what travels through the controller: its reports on one way, the console on another, each in its own order.
/// Target and capture agent wait for an answer before they go on, so what they say is never late.
fn delayed(mut story: Story, delays: &[i64]) -> Story {
    let mut delays = delays.iter().cycle();
    let (mut console, mut reports) = (0, 0);
    for event in &mut story.events {
        let way = match event.what {
            What::Console(_) => &mut console,
            What::Says(Role::Controller, _) => &mut reports,
            _ => continue,
        };
        *way = (event.heard + delays.next().copied().unwrap_or(0)).max(*way);
        event.heard = *way;
    }
    story
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_arrival_does_not_change_the_end(
        story in prop::sample::select(stories()),
        delays in prop::collection::vec(0_i64..8_000, 1..12),
    ) {
        let expected = meaning(&story.end());
        prop_assert_eq!(meaning(&delayed(story, &delays).end()), expected);
    }

    #[test]
    fn a_good_story_is_good_in_any_order(seconds in Just((0_i64..12).collect::<Vec<_>>()).prop_shuffle()) {
        // Everything that proves a stage, arriving in any order within a few seconds. The console keeps its own.
        let mut story = Story::perfect();
        let proving = story.events.iter_mut().filter(|event| {
            !matches!(event.what, What::Console(_) | What::Released(..) | What::Says(Role::Controller, _))
        });
        for (event, second) in proving.zip(seconds.iter().cycle()) {
            event.heard = second * 1000 + 500;
        }
        let end = story.end();
        prop_assert_eq!((letters(&end), end.verdict), ("pppppppp".to_owned(), Some(Status::Pass)));
    }

    #[test]
    fn a_settled_stage_stays_as_it_was(
        story in prop::sample::select(stories()),
        delays in prop::collection::vec(0_i64..400_000, 1..12),
    ) {
        let judgements = delayed(story, &delays).live(24 * 3600 * 1000);
        for pair in judgements.windows(2) {
            for (before, after) in pair[0].stages.iter().zip(&pair[1].stages) {
                if !matches!(before.state, StageState::Pending | StageState::Active) {
                    prop_assert_eq!(before, after);
                }
            }
            if pair[0].verdict.is_some() {
                prop_assert_eq!(pair[0].verdict, pair[1].verdict);
                prop_assert_eq!(&pair[0].reason, &pair[1].reason);
            }
        }
    }

    #[test]
    fn judged_live_and_judged_from_scratch_agree_however_late_things_come(
        story in prop::sample::select(stories()),
        delays in prop::collection::vec(0_i64..400_000, 1..12),
    ) {
        // `end` asserts it.
        delayed(story, &delays).end();
    }

    #[test]
    fn no_evidence_makes_the_judge_fail_and_none_of_it_passes_by_chance(
        view in any_view(),
        now in any_time(),
        panic in prop::sample::select(vec!["", "sysrq triggered crash"]),
    ) {
        let mut story = Story::silent();
        story.scenario.expect.panic = panic.to_owned();
        let judgement = judge(&story.scenario, &story.build, &view, now);
        prop_assert_eq!(judgement.stages.iter().map(|stage| stage.name).collect::<Vec<_>>(), StageName::ALL);
        prop_assert_eq!(judgement.verdict.is_some(), judgement.judged_at.is_some());
        if judgement.verdict == Some(Status::Pass) {
            prop_assert!(judgement.stages.iter().take(7).all(|stage| stage.state == StageState::Proven));
        } else if let Some(verdict) = judgement.verdict {
            prop_assert!(judgement.blamed_stage.is_some() && judgement.reason.is_some(), "{}", verdict);
        }
        prop_assert_eq!(&judgement, &judge(&story.scenario, &story.build, &view, now));
    }
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![(0_i64..400_000).prop_map(|ms| Timestamp(START.0 + ms)), any::<i64>().prop_map(Timestamp)]
}

fn any_report() -> impl Strategy<Value = Report> {
    let words = "[a-z \\n\u{1b}é]{0,12}";
    prop_oneof![
        (prop::sample::select(vec!["on", "off", "nmi", "?"]), any::<bool>(), words)
            .prop_map(|(action, ok, detail)| Report::Power { action: action.into(), ok, detail }),
        words.prop_map(|detail| Report::MachineEnded { detail }),
        (any::<bool>(), words).prop_map(|(healthy, detail)| Report::Health { healthy, detail }),
        prop::sample::select(vec![RELEASE, "other"]).prop_map(|release| kernel(release, Some(BUILD_ID))),
        (any::<bool>(), words).prop_map(|(ok, output)| step("load-crash-kernel", 1, ok, &output)),
        any::<bool>().prop_map(armed),
        Just(triggering()),
        (0_u32..3).prop_map(started),
        prop::sample::select(DumpFailure::ALL).prop_map(|cause| failed(cause, "")),
        words.prop_map(|text| Report::Note { text }),
    ]
}

fn any_stage() -> impl Strategy<Value = Stage> {
    let state = prop::sample::select(StageState::ALL);
    let status = prop::option::of(prop::sample::select(Status::ALL));
    (prop::sample::select(StageName::ALL), state, status, prop::option::of(any_time())).prop_map(
        |(name, state, status, at)| Stage {
            name,
            state,
            status,
            started_at: at,
            deadline_at: at,
            settled_at: at,
            reason: None,
            proofs: Vec::new(),
        },
    )
}

prop_compose! {
    fn any_view()(
        reports in prop::collection::vec(
            (prop::sample::select(Role::ALL), 0_u64..6, any_report(), any_time()),
            0..12,
        ),
        console in prop::collection::vec(
            (prop::sample::select(vec![FIRST_BOOT, MARKER, PANIC, CAPTURE_BOOT, PLAIN_BOOT, OOPS, DEAD, SECOND]), any_time()),
            0..8,
        ),
        dump in prop::option::of((any::<u64>(), prop::option::of(any_time()), prop::option::of(any_time()))),
        reading in prop::option::of((any_time(), any::<bool>())),
        lease in prop_oneof![
            Just(Lease::Held),
            any_time().prop_map(|at| Lease::Lost { at }),
            (any_time(), any::<bool>()).prop_map(|(at, healthy)| Lease::Released { at, healthy, detail: String::new() }),
        ],
        away in prop::collection::vec((any_time(), any_time()), 0..3),
        stages in prop::collection::vec(any_stage(), 0..4),
    ) -> EvidenceView {
        let story = Story::silent();
        let mut view = EvidenceView::new(ATTEMPT.parse().expect("an id"), START);
        view.reports = reports
            .into_iter()
            .map(|(by, seq, report, received_at)| Evidence { by, seq, report, received_at })
            .collect();
        let mut reader = ConsoleReader::new(Intent::new(&view.attempt, &story.scenario));
        for (text, at) in console {
            reader.feed(at, reader.next_offset(), text.as_bytes());
        }
        let facts = reader.facts().clone();
        view.consoles.push(ConsoleEvidence { artifact: CONSOLE.parse().expect("an id"), facts });
        view.dump = dump.map(|(bytes, completed_at, mismatch)| DumpEvidence {
            bytes,
            completed_at,
            blake3: None,
            mismatch: mismatch.map(|at| (at, String::new())),
        });
        view.reading = reading.map(|(at, good)| {
            let facts = if good { good_dump() } else { Default::default() };
            crate::triage::DumpReading { at, outcome: Ok(facts) }
        });
        view.lease = lease;
        view.server_away = away.into_iter().map(|(from, to)| crate::triage::away::Span { from, to }).collect();
        view.stages = stages;
        view
    }
}
