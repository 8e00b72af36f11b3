//! The rules that every page keeps, checked with an HTML parser over sample data and over hostile data.

use super::assets;
use super::sample;
use super::view::attempt::{AttemptPage, Parts};
use super::view::beside::BesidePage;
use super::view::console::{ConsolePage, PAGE_BYTES, Pane, Piece};
use super::view::error::ErrorPage;
use super::view::findings::{ConsoleReports, FindingsPage, Found};
use super::view::machines::MachinesPage;
use super::view::run::RunPage;
use super::view::runs::RunsPage;
use super::view::scenarios::{ScenarioPage, ScenariosPage};
use super::view::signatures::{SignaturePage, SignaturesPage};
use crate::beside::{GAP, compare};
use crate::passes::glimpse::Glimpse;
use askama::Template;
use crashyard_protocol::agent::{Report, Role};
use crashyard_protocol::api::{Attempt, Dropped, Evidence, Hold, Page, Run};
use crashyard_protocol::{ArtifactState, AttemptState, Proof, RunState, StageName, StageState, Status};
use crashyard_vmcore::Capsule;
use scraper::{ElementRef, Html, Selector};
use std::collections::HashSet;

/// Text that breaks out of markup, of attributes and of terminals.
const HOSTILE: &str =
    "\"><script>alert(1)</script><img src=x onerror=alert(1)>' onmouseover='x\u{1b}[31m\u{202e}\u{0}&lt;";

fn pane(attempt: &crashyard_protocol::api::Attempt, log: &[u8]) -> Pane {
    Pane::tail(attempt, &attempt.artifacts[0], &Piece { from: 0, first_line: 1, bytes: log.to_vec() })
}

/// Every page with the sample farm.
fn pages() -> Vec<(&'static str, String)> {
    let now = sample::NOW;
    let (run, jobs, attempts) = (sample::run(), sample::jobs(), sample::attempts());
    let (events, evidence) = (sample::events(), sample::evidence());
    let (failed, running) = (sample::failed_attempt(), sample::running_attempt());
    let parts = |attempt, job| Parts { attempt, job, run: &run, events: &events, evidence: &evidence, glimpse: None };
    let empty = Page { items: Vec::<Run>::new(), next: None };
    let (reports, dump) = (found("kernel panic: sysrq triggered crash"), capsule("vmx_shutdown"));
    let both = Found { consoles: Some(&reports), in_dump: Some(&reports), capsule: Some(&dump) };
    let console = sample::console();
    let artifact = sample::console_artifact(PAGE_BYTES * 3, ArtifactState::Complete);
    let piece = Piece { from: PAGE_BYTES + 7, first_line: 1_234, bytes: console.clone() };
    [
        ("runs", RunsPage::new(&sample::runs(), true, now).render()),
        ("no runs", RunsPage::new(&empty, true, now).render()),
        ("older runs", RunsPage::new(&empty, false, now).render()),
        ("run", RunPage::new(&run, Some(&sample::build()), &jobs, &attempts, now).render()),
        ("bare run", RunPage::new(&run, None, &[], &[], now).render()),
        ("failed attempt", AttemptPage::new(parts(&failed, &jobs[1]), Some(pane(&failed, &console)), now).render()),
        ("running attempt", AttemptPage::new(parts(&running, &jobs[2]), Some(pane(&running, &console)), now).render()),
        ("attempt without console", AttemptPage::new(parts(&running, &jobs[2]), None, now).render()),
        ("console", ConsolePage::new(&failed, &artifact, PAGE_BYTES, &piece).render()),
        ("consoles beside each other", beside(&failed, "net", &"[    1.000000] one\n".repeat(2_500), 1_000).render()),
        ("equal consoles", beside(&failed, "net", "", 0).render()),
        ("findings", FindingsPage::new(&failed, both, None, now).render()),
        ("search in findings", FindingsPage::new(&failed, both, Some("vmx"), now).render()),
        ("no findings", FindingsPage::new(&failed, Found::default(), None, now).render()),
        ("scenarios", ScenariosPage::new(&sample::scenarios(), true, now).render()),
        ("no scenarios", ScenariosPage::new(&[], false, now).render()),
        ("scenario", ScenarioPage::new(&sample::scenarios()[1], now).render()),
        ("signatures", SignaturesPage::new(&sample::signatures(), (2, 2), true, None, now).render()),
        ("signature", SignaturePage::new(&sample::signatures()[0], 2, now).render()),
        ("signature of old rules", SignaturePage::new(&sample::signatures()[1], 3, now).render()),
        ("no signatures", SignaturesPage::new(&[], (1, 2), false, None, now).render()),
        ("machines", MachinesPage::new(&sample::machines(), true, None, now).render()),
        ("no machines", MachinesPage::new(&[], true, None, now).render()),
        ("not found", ErrorPage::not_found().render()),
        ("invalid", ErrorPage::invalid().render()),
        ("forbidden", ErrorPage::forbidden().render()),
        ("unauthorized", ErrorPage::unauthorized().render()),
        ("unavailable", ErrorPage::unavailable(None).render()),
        ("internal", ErrorPage::internal(Some("01JDB4Q1W5Z8N6K3X0V7T2R9MF".into())).render()),
    ]
    .into_iter()
    .map(|(name, html)| (name, html.expect("renders")))
    .collect()
}

/// Every page with every text that comes from outside replaced by [`HOSTILE`].
fn hostile_pages() -> Vec<(&'static str, String)> {
    let now = sample::NOW;
    let bad = || HOSTILE.to_owned();
    let mut run = sample::run();
    (run.name, run.plan) = (bad(), bad());
    let mut build = sample::build();
    (build.name, build.architecture, build.release) = (bad(), bad(), bad());
    (build.config_name, build.build_id) = (Some(bad()), Some(bad()));
    let mut jobs = sample::jobs();
    for job in &mut jobs {
        (job.scenario.name, job.scenario.title, job.scenario.expect.panic) = (bad(), bad(), bad());
        job.reason = Some(bad());
    }
    let mut attempts = sample::attempts();
    for attempt in &mut attempts {
        (attempt.machine_name, attempt.reason) = (bad(), Some(bad()));
        for artifact in &mut attempt.artifacts {
            artifact.name.push_str(HOSTILE);
            artifact.blake3 = Some(bad());
        }
        for stage in &mut attempt.stages {
            stage.reason = Some(bad());
            for proof in &mut stage.proofs {
                match proof {
                    Proof::Console { text, .. } | Proof::Server { text } => *text = bad(),
                    Proof::Report { by, text, .. } => (*by, *text) = (bad(), bad()),
                }
            }
        }
    }
    let said = |report| Evidence { by: Role::Target, seq: 9, report, received_at: now };
    let evidence = vec![
        said(Report::Power { action: bad(), ok: false, detail: bad() }),
        said(Report::Kernel { release: bad(), version: bad(), build_id: Some(bad()), cpus_online: 1 }),
        said(Report::Step {
            name: bad(),
            command: Some(bad()),
            code: None,
            ok: true,
            output: bad(),
            took_ms: u64::MAX,
        }),
        said(Report::Note { text: bad() }),
    ];
    let mut machines = sample::machines();
    for machine in &mut machines {
        (machine.name, machine.driver, machine.controller_name) = (bad(), bad(), bad());
        machine.reason = Some(bad());
        machine.labels = [(bad(), bad())].into();
    }
    let mut signatures = sample::signatures();
    for signature in &mut signatures {
        (signature.title, signature.kind) = (bad(), bad());
        (signature.frame, signature.module) = (Some(bad()), Some(bad()));
        signature.frames = vec![bad()];
        for seen in &mut signature.seen {
            (seen.machine_name, seen.source) = (bad(), bad());
        }
    }
    let mut scenarios = sample::scenarios();
    for stored in &mut scenarios {
        let scenario = &mut stored.scenario;
        (scenario.name, scenario.title, scenario.expect.panic) = (bad(), bad(), bad());
        (scenario.boot.cmdline, scenario.boot.crashkernel) = (bad(), bad());
    }
    let log = format!("{HOSTILE}\n{HOSTILE}\r\n").repeat(20).into_bytes();
    let (reports, dump) = (found(HOSTILE), capsule(HOSTILE));
    let other = found("another");
    let both = Found { consoles: Some(&reports), in_dump: Some(&other), capsule: Some(&dump) };
    let glimpse = Glimpse {
        release: bad(),
        panic: Some(bad()),
        cpu: Some(u32::MAX),
        task: Some(bad()),
        frames: vec![bad()],
        log: vec![bad()],
    };
    let attempt = &mut attempts[1];
    attempt.artifacts[0].held = Some(Hold { at: now, by: bad(), reason: bad() });
    attempt.artifacts[0].dropped = Some(Dropped { at: now, reason: bad() });
    let attempt = &attempts[1];
    let parts = Parts {
        attempt,
        job: &jobs[1],
        run: &run,
        events: &sample::events(),
        evidence: &evidence,
        glimpse: Some((u64::MAX, &glimpse)),
    };
    let piece = Piece { from: 0, first_line: 1, bytes: log.clone() };
    let runs = Page { items: vec![run.clone()], next: Some(bad()) };
    [
        ("runs", RunsPage::new(&runs, true, now).render()),
        ("run", RunPage::new(&run, Some(&build), &jobs, &attempts, now).render()),
        ("attempt", AttemptPage::new(parts, Some(pane(attempt, &log)), now).render()),
        ("console", ConsolePage::new(attempt, &attempt.artifacts[0], 0, &piece).render()),
        ("consoles beside each other", beside(attempt, HOSTILE, &String::from_utf8_lossy(&log), 0).render()),
        ("findings", FindingsPage::new(attempt, both, None, now).render()),
        ("search in findings", FindingsPage::new(attempt, both, Some(HOSTILE), now).render()),
        ("scenarios", ScenariosPage::new(&scenarios, false, now).render()),
        ("scenario", ScenarioPage::new(&scenarios[1], now).render()),
        ("signatures", SignaturesPage::new(&signatures, (2, 2), true, Some(&bad()), now).render()),
        ("signature", SignaturePage::new(&signatures[0], 2, now).render()),
        ("machines", MachinesPage::new(&machines, true, Some(&bad()), now).render()),
    ]
    .into_iter()
    .map(|(name, html)| (name, html.expect("renders")))
    .collect()
}

/// A console that heard nothing beside one that heard this.
fn beside(attempt: &Attempt, name: &str, heard: &str, from: usize) -> BesidePage {
    BesidePage::new(attempt, ("serial", name), &compare("", heard), from, false)
}

#[test]
fn a_page_of_two_consoles_marks_gaps_and_what_was_filled_in_and_is_bounded() {
    let serial = format!("SeaBIOS\n[    1.000000] one\n{GAP} for 2.0 s: it failed]\n[    4.000000] four\n");
    let compared = compare(&serial, "[    1.000000] one\n[    2.000000] <b>two</b>\u{1b}[31m\n");
    let attempt = &sample::attempts()[0];
    let html = |only| BesidePage::new(attempt, ("serial", "net"), &compared, 0, only).render().unwrap();
    for wanted in [
        "data-heard=\"gap\"",
        "data-heard=\"second\"",
        "&#60;b&#62;two",
        "filled in from net",
        "only serial heard it",
        "a gap in serial",
        "both heard 1, serial alone 1, net alone 1",
        "SeaBIOS",
    ] {
        assert!(html(false).contains(wanted), "{wanted} in {}", html(false));
    }
    assert!(!html(false).contains('\u{1b}'), "{}", html(false));
    assert!(!html(true).contains("SeaBIOS") && html(true).contains("id=\"L4\""), "differences keep their numbers");
    let long = beside(attempt, "net", &"[    1.000000] one\n".repeat(2_500), 5_000_000).render().unwrap();
    assert_eq!(long.matches("data-heard").count(), 500, "the last page, and no more of it");
    assert!(long.contains("page 3 of 3"));
}

/// Crash reports as they are stored, with `text` wherever a kernel could have put it.
fn found(text: &str) -> Vec<ConsoleReports> {
    let report = serde_json::json!({
        "title": text, "header": text, "intended": false, "corrupted": true, "corrupted_reason": text, "start": 7,
        "line": 3, "cpu": 1, "pid": 99, "comm": text, "cause": 0, "why": [text],
        "trace": [{ "function": text, "module": text, "reliable": false }],
    });
    let console = serde_json::json!([{ "source": text, "reports": [report] }]);
    serde_json::from_value(console).expect("stored reports")
}

/// A capsule with `text` wherever a kernel could have put it.
fn capsule(text: &str) -> Capsule {
    let task = |pid: u32| {
        serde_json::json!({ "pid": pid, "tgid": pid, "comm": text, "address": "0x10", "state": "S", "stack": 0,
        "blocked_on": { "mutex": "0x20", "owner": { "pid": 7, "comm": text } } })
    };
    let line = |level: u8, text: &str| serde_json::json!({ "ts_ns": 1_500_000, "level": level, "text": text });
    let value = serde_json::json!({
        "capsule_version": 1, "release": text, "panic_message": text, "panic_cpu": 1, "format": "elf",
        "oops_message": text, "command_line": text, "build_id": text,
        "kvm": { "guests": [], "cpus": [{ "cpu": 0, "vmxe": true, "list_error": text }] },
        "panic_task": { "pid": 9, "comm": text }, "pages": { "present": 1, "excluded": 0 },
        "cpus": [{ "cpu": 0, "idle": true }, { "cpu": 1, "pid": 9, "comm": text, "stack": 0 }],
        "tasks": (10..40).map(task).collect::<Vec<_>>(),
        "stacks": [{ "frames": [{ "pc": "0x1", "symbol": text, "module": text, "guess": true }], "end": "user" }],
        "modules": [{ "name": text, "base": "0x0", "size": 1 }],
        "dmesg": [line(6, "quiet line"), line(2, text)], "warnings": [text],
    });
    serde_json::from_value(value).expect("a stored capsule")
}

fn all<'a>(page: &'a Html, selector: &str) -> Vec<ElementRef<'a>> {
    page.select(&Selector::parse(selector).expect("a selector")).collect()
}

fn text(element: &ElementRef<'_>) -> String {
    element.text().collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_page_is_well_formed() {
    for (name, html) in pages() {
        let page = Html::parse_document(&html);
        assert!(page.errors.is_empty(), "{name}: {:?}", page.errors);
    }
}

#[test]
fn every_page_has_one_title_heading_main_and_a_way_past_the_navigation() {
    for (name, html) in pages() {
        let page = Html::parse_document(&html);
        for one in ["title", "h1", "main#main", "header", "footer", "nav[aria-label=Main]", "html[lang=en]"] {
            assert_eq!(all(&page, one).len(), 1, "{name}: {one}");
        }
        let title = text(&all(&page, "title")[0]);
        assert!(title.ends_with(" · Crashyard") && title.len() > 12, "{name}: {title:?}");
        let first = all(&page, "body a")[0];
        assert_eq!(first.value().attr("href"), Some("#main"), "{name}: the first link skips to the content");
    }
}

#[test]
fn the_title_carries_the_state() {
    let title = |wanted| {
        let (_, html) = pages().into_iter().find(|(name, _)| *name == wanted).expect("a page");
        text(&all(&Html::parse_document(&html), "title")[0])
    };
    assert_eq!(title("runs"), "1 open · Runs · Crashyard");
    assert_eq!(title("run"), "2/4 done · 7.3.4+deb13-cloud-amd64 · Crashyard");
    assert_eq!(
        title("failed attempt"),
        "FAIL: The kernel broke the contract at captured · capture-panics on vmx-crash-1 · Crashyard"
    );
    assert_eq!(title("running attempt"), "running: Waiting for dumped · capture-killed on vmx-crash-2 · Crashyard");
    assert_eq!(title("scenarios"), "2+ · Scenarios · Crashyard");
    assert_eq!(title("signatures"), "2 · Signatures · Crashyard");
    assert_eq!(title("machines"), "1 available, 1 leased, 1 reserved, 1 quarantined, 1 unknown · Machines · Crashyard");
}

#[test]
fn nothing_on_a_page_needs_more_than_the_strict_policy() {
    for (name, html) in pages().into_iter().chain(hostile_pages()) {
        let page = Html::parse_document(&html);
        assert!(all(&page, "style, iframe, object, embed, base").is_empty(), "{name}");
        assert!(all(&page, "form[action], form:not([method=get])").is_empty(), "{name}: a form only asks, and only us");
        for element in all(&page, "*") {
            for (attribute, value) in element.value().attrs() {
                assert!(!attribute.starts_with("on") && attribute != "style", "{name}: {attribute}={value}");
            }
        }
        for script in all(&page, "script") {
            assert!(script.value().attr("src").is_some_and(|src| src.starts_with("/static/")), "{name}");
            assert!(text(&script).is_empty(), "{name}: inline script");
        }
        for loaded in all(&page, "[src], link[href]") {
            let value = loaded.value();
            let url = value.attr("src").or_else(|| value.attr("href")).expect("selected by it");
            let file = url.strip_prefix(&format!("/static/{}/", assets::hash())).unwrap_or_else(|| panic!("{url}"));
            assert!(assets::find(file).is_some(), "{name}: {url}");
        }
        for link in all(&page, "a[href]") {
            let href = link.value().attr("href").expect("selected by it");
            assert!(href.starts_with(['/', '#', '?']) && !href.starts_with("//"), "{name}: {href}");
        }
    }
}

#[test]
fn text_from_outside_stays_text() {
    for (name, html) in hostile_pages() {
        let page = Html::parse_document(&html);
        assert!(page.errors.is_empty(), "{name}: {:?}", page.errors);
        assert_eq!(all(&page, "script").len(), 1, "{name}");
        assert_eq!(all(&page, "img").len(), 1, "{name}: the mark alone");
        assert!(text(&all(&page, "main")[0]).contains("<script>alert(1)</script>"), "{name}: shown as it is");
        for character in ['\u{1b}', '\u{202e}', '\u{0}'] {
            assert!(!html.contains(character), "{name}: raw {character:?}");
        }
    }
}

#[test]
fn tables_name_their_rows_and_columns() {
    for (name, html) in pages() {
        let page = Html::parse_document(&html);
        for table in all(&page, "table") {
            assert_eq!(table.value().attr("role"), Some("table"), "{name}: cards on a phone stay a table");
            assert!(table.child_elements().any(|child| child.value().name() == "caption"), "{name}: no caption");
        }
        for header in all(&page, "th") {
            let scope = header.value().attr("scope").unwrap_or_else(|| panic!("{name}: th without scope"));
            assert!(["col", "row", "rowgroup"].contains(&scope), "{name}: {scope}");
        }
        for row in all(&page, "table:not(.list) tbody tr, table.list tbody tr:not(.day)") {
            let columns = row.child_elements().count();
            let table = row.ancestors().filter_map(ElementRef::wrap).find(|one| one.value().name() == "table");
            let heads = table.expect("inside a table").select(&Selector::parse("thead th").expect("valid")).count();
            assert_eq!(columns, heads, "{name}");
        }
    }
}

#[test]
fn state_is_a_word_and_never_colour_alone() {
    for (name, html) in pages() {
        let page = Html::parse_document(&html);
        for toned in all(&page, ".chip, .count") {
            assert!(toned.value().attr("data-tone").is_some() && !text(&toned).is_empty(), "{name}");
        }
        for cell in all(&page, "td[data-stage], li[data-stage]") {
            let state = cell.value().attr("data-state").expect("a state");
            assert!(state.parse::<StageState>().is_ok(), "{name}: {state}");
            assert!(text(&cell).contains(state), "{name}: {:?} does not say {state}", text(&cell));
        }
    }
}

#[test]
fn times_are_machine_readable_and_utc() {
    for (name, html) in pages() {
        for time in all(&Html::parse_document(&html), "time") {
            let datetime = time.value().attr("datetime").unwrap_or_else(|| panic!("{name}: no datetime"));
            assert!(datetime.ends_with('Z') || datetime.len() == "2026-11-23".len(), "{name}: {datetime}");
        }
    }
}

#[test]
fn ids_are_unique_and_links_inside_a_page_lead_somewhere() {
    for (name, html) in pages() {
        let page = Html::parse_document(&html);
        let ids: Vec<_> = all(&page, "[id]").iter().map(|one| one.value().attr("id").expect("selected")).collect();
        let unique: HashSet<_> = ids.iter().copied().collect();
        assert_eq!(ids.len(), unique.len(), "{name}: an id is used twice");
        for link in all(&page, "a[href^='#']") {
            let target = &link.value().attr("href").expect("selected")[1..];
            // A proof in the console that has no byte yet leads to the page of the log instead.
            assert!(unique.contains(target), "{name}: #{target} is not on the page");
        }
        for labelled in all(&page, "[aria-labelledby]") {
            let id = labelled.value().attr("aria-labelledby").expect("selected");
            assert!(unique.contains(id), "{name}: {id}");
        }
    }
}

#[test]
fn a_console_is_a_quiet_log_with_numbered_lines() {
    let (_, html) = pages().into_iter().find(|(name, _)| *name == "failed attempt").expect("a page");
    let page = Html::parse_document(&html);
    let log = &all(&page, "#log")[0];
    let attributes = ["role", "aria-live", "tabindex", "data-live"].map(|name| log.value().attr(name));
    assert_eq!(attributes, [Some("log"), Some("off"), Some("0"), Some("false")]);
    let panic = &all(&page, "#L68")[0];
    assert!(text(panic).contains("Kernel panic - not syncing: sysrq triggered crash panicked"), "{}", text(panic));
    let red = all(&page, "#L78 b[data-state=failed]");
    assert_eq!(text(&red[0]), "captured", "the line that blames the kernel says which stage it disproves");
    assert!(!html.contains('\u{1b}'));
}

#[test]
fn a_live_console_goes_on_at_the_start_of_its_unfinished_line() {
    let attempt = sample::running_attempt();
    let log = sample::console();
    let (number, offset) = sample::find_line(&log, "---[ end Kernel panic");
    let shown = pane(&attempt, &log);
    assert_eq!((shown.live, shown.resume_line, shown.resume_at), (true, number, offset));
    let whole = [log.as_slice(), b"\n"].concat();
    let shown = pane(&attempt, &whole);
    assert_eq!((shown.resume_line, shown.resume_at), (number + 1, whole.len() as u64));
}

fn findings(found: Found<'_>, q: Option<&str>) -> Html {
    let page = FindingsPage::new(&sample::failed_attempt(), found, q, sample::NOW).render().expect("renders");
    Html::parse_document(&page)
}

#[test]
fn a_search_keeps_what_it_finds_in_every_part_and_says_how_much() {
    let (reports, dump) = (found("kernel panic: x"), capsule("kvm_reboot"));
    let both = Found { consoles: Some(&reports), in_dump: Some(&reports), capsule: Some(&dump) };
    let page = findings(both, Some(" KVM_Reboot "));
    assert_eq!(
        all(&page, "[data-hits]")[0].value().attr("data-hits"),
        Some("5"),
        "a CPU, its VMX, a group, a module, a line"
    );
    assert!(all(&page, "[data-report]").is_empty());
    assert_eq!(all(&page, "details[open]").len(), 3);
    assert_eq!(text(&all(&page, "#dmesg pre")[0]), "[ 0.001500] kvm_reboot");
    assert_eq!(all(&page, "input[name=q]")[0].value().attr("value"), Some(" KVM_Reboot "));
    assert_eq!(all(&findings(both, Some("quiet")), "[data-hits]")[0].value().attr("data-hits"), Some("1"));
    assert_eq!(all(&findings(both, Some("no such thing")), "[data-hits]")[0].value().attr("data-hits"), Some("0"));
    assert!(all(&findings(both, Some("  ")), "[data-hits]").is_empty(), "looking for nothing shows everything");
}

#[test]
fn lines_of_crash_reports_are_marked_in_the_log() {
    let dump = capsule("the crash");
    let first = dump.dmesg[0].stamped().len() + 1;
    let report = serde_json::json!({ "title": "BUG in f", "start": first, "end": first + 10 });
    let reports: Vec<ConsoleReports> =
        serde_json::from_value(serde_json::json!([{ "source": "vmcore", "reports": [report] }])).expect("reports");
    let page = findings(Found { consoles: None, in_dump: Some(&reports), capsule: Some(&dump) }, None);
    assert_eq!(all(&page, "#dmesg mark").iter().map(text).collect::<Vec<_>>(), ["BUG in f"]);
    let to =
        all(&page, "#dump > p a[href^='#D']").iter().map(|a| (text(a), a.value().attr("href"))).collect::<Vec<_>>();
    assert_eq!(to, [("BUG in f".to_owned(), Some("#D2"))], "and found without opening the log first");
    assert_eq!(all(&page, "#dmesg mark")[0].value().attr("id"), Some("D2"));
    assert_eq!(all(&page, "#dmesg .crash").iter().map(text).collect::<Vec<_>>(), ["[ 0.001500] the crash"]);
    assert!(all(&page, "[data-compared]").is_empty(), "without a console there is nothing to compare");
}

#[test]
fn a_difference_between_console_and_dump_names_both() {
    let (one, other, dump) = (found("BUG in f"), found("BUG in g"), capsule("x"));
    let page = findings(Found { consoles: Some(&one), in_dump: Some(&other), capsule: Some(&dump) }, None);
    assert_eq!(all(&page, "[data-compared]")[0].value().attr("data-compared"), Some("different"));
    let words =
        |one: &ElementRef| one.text().map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let told: Vec<_> = all(&page, ".head .facts div").iter().map(words).collect();
    assert_eq!(told, ["On the console BUG in f", "In the dump BUG in g"], "said once");
    let page = findings(Found { consoles: Some(&one), in_dump: Some(&one), capsule: Some(&dump) }, None);
    assert_eq!(all(&page, "[data-compared]")[0].value().attr("data-compared"), Some("equal"));
}

#[test]
fn a_dropped_dump_says_why_and_is_no_download() {
    let mut attempt = sample::failed_attempt();
    let last = attempt.artifacts.len() - 1;
    attempt.artifacts[last].state = ArtifactState::Dropped;
    attempt.artifacts[last].dropped = Some(Dropped { at: sample::NOW, reason: "it is older than 90 days".into() });
    let (run, jobs) = (sample::run(), sample::jobs());
    let parts = Parts { attempt: &attempt, job: &jobs[1], run: &run, events: &[], evidence: &[], glimpse: None };
    let page = Html::parse_document(&AttemptPage::new(parts, None, sample::NOW).render().expect("renders"));
    let row = &all(&page, "[data-artifact][data-state=dropped]")[0];
    assert!(text(row).contains("it is older than 90 days"), "{}", text(row));
    assert!(row.select(&Selector::parse("a[download]").expect("valid")).next().is_none());
    assert!(row.select(&Selector::parse(".hash[title]").expect("valid")).next().is_some(), "the hash stays");
}

#[test]
fn a_proof_outside_the_shown_lines_links_to_its_piece_of_the_log() {
    let attempt = sample::failed_attempt();
    let (run, jobs) = (sample::run(), sample::jobs());
    let piece = Piece { from: 5_000_000, first_line: 90_000, bytes: b"the end\n".to_vec() };
    let mut artifact = attempt.artifacts[0].clone();
    artifact.size = 5_000_008;
    let pane = Pane::tail(&attempt, &artifact, &piece);
    let parts = Parts { attempt: &attempt, job: &jobs[1], run: &run, events: &[], evidence: &[], glimpse: None };
    let html = AttemptPage::new(parts, Some(pane), sample::NOW).render().expect("renders");
    let page = Html::parse_document(&html);
    let (line, offset) = sample::find_line(&sample::console(), "crashyard: trigger");
    let wanted = format!("/attempts/{}/console/serial?at={offset}#L{line}", attempt.id);
    assert!(all(&page, "#stage-triggered a").iter().any(|link| link.value().attr("href") == Some(&wanted)));
}

#[test]
fn the_grid_keeps_a_cell_for_each_stage_of_each_job() {
    let (_, html) = pages().into_iter().find(|(name, _)| *name == "run").expect("a page");
    let page = Html::parse_document(&html);
    let rows = all(&page, "#grid tbody tr[data-job]");
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(row.select(&Selector::parse("td[data-stage]").expect("valid")).count(), 8);
    }
    let failed = &all(&page, "#grid td[data-stage=captured][data-state=failed]")[0];
    assert_eq!(text(failed), "failed 4.4s");
    let active = &all(&page, "#grid td[data-state=active] [data-since]")[0];
    assert!(active.value().attr("data-since").is_some_and(|since| since.parse::<i64>().is_ok()));
}

#[test]
fn a_judged_job_whose_machine_is_not_back_says_what_its_attempt_showed() {
    let mut attempts = sample::attempts();
    attempts[2].state = AttemptState::Collecting;
    (attempts[2].verdict, attempts[2].blamed_stage) = (Status::Error, Some(StageName::Dumped));
    let page = RunPage::new(&sample::run(), None, &sample::jobs(), &attempts, sample::NOW).render().expect("renders");
    let page = Html::parse_document(&page);
    let results: Vec<_> = all(&page, "#grid .at").iter().map(text).collect();
    assert_eq!(results, ["at captured", "ERROR at dumped, machine not back yet"]);
}

#[test]
fn a_run_is_open_until_every_job_has_its_verdict() {
    let mut run = sample::run();
    let render = |run: &Run| RunPage::new(run, None, &sample::jobs(), &[], sample::NOW).render().expect("renders");
    assert!(render(&run).contains("data-open=\"true\""));
    assert!(render(&run).contains("2 owed"), "what is owed is not called a result");
    (run.state, run.finished_at) = (RunState::Done, Some(sample::NOW));
    let html = render(&run);
    assert!(html.contains("data-open=\"false\"") && html.contains("2 MISS"), "what never came reads MISS");
}

#[test]
fn the_catalogue_is_ordered_by_vmx_state_and_each_scenario_says_what_it_does_and_expects() {
    let page = Html::parse_document(&ScenariosPage::new(&sample::scenarios(), false, sample::NOW).render().unwrap());
    let states: Vec<&str> =
        all(&page, "section[data-vmx]").iter().filter_map(|one| one.value().attr("data-vmx")).collect();
    assert_eq!(states, ["none", "list-add-cut"]);
    let page = Html::parse_document(&ScenarioPage::new(&sample::scenarios()[1], sample::NOW).render().unwrap());
    let does = text(&all(&page, "ol[data-does]")[0]);
    assert!(does.contains("stop after 1 of 4 pointer writes") && does.contains("on CPU 1"), "{does}");
    let expects = text(&all(&page, "ul[data-expects]")[0]);
    assert!(expects.contains("The oops whose header says \"address: 0000000000000ca5\""), "{expects}");
    assert!(expects.contains("being added does not show up"), "{expects}");
}

#[test]
fn scripts_stay_small_and_never_make_markup_from_text() {
    let scripts: Vec<_> = assets::ASSETS
        .iter()
        .filter(|asset| asset.name.ends_with(".js"))
        .map(|asset| (asset.name, std::str::from_utf8(asset.bytes).expect("text")))
        .collect();
    assert!(scripts.iter().map(|(_, text)| text.lines().count()).sum::<usize>() <= 400);
    for (name, text) in scripts {
        for way in ["innerHTML", "outerHTML = ", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!text.contains(way), "{name} uses {way}");
        }
    }
}
