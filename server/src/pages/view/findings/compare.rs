//! Whether the console and the dump tell of the same crash.
//!
//! The same reader goes over both texts, so titles can be compared as they are. Only what both could have seen counts: one
//! boot of the console (the capture kernel's troubles are not in the dump), and of it what was printed after the first line
//! that the dump's log still has.

use super::StoredReport;
use crate::pages::text::visible;
use crashyard_vmcore::Capsule;

/// What came out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Crash reports that both tell of.
    pub common: usize,
    /// The crash it is about, by the console; `None` if it tells of none.
    pub on_console: Option<String>,
    /// The crash it is about, by the dump.
    pub in_dump: Option<String>,
    /// Titles of reports that only the console has.
    pub console_only: Vec<String>,
    /// Titles of reports that only the dump has.
    pub dump_only: Vec<String>,
}

impl Compared {
    /// Both tell of the same crash.
    pub fn same(&self) -> bool {
        self.on_console == self.in_dump
    }

    /// What only the console has, beside the crash it is about.
    pub fn more_on_console(&self) -> impl Iterator<Item = &String> {
        self.console_only.iter().filter(|title| Some(*title) != self.on_console.as_ref())
    }

    /// What only the dump has, beside the crash it is about.
    pub fn more_in_dump(&self) -> impl Iterator<Item = &String> {
        self.dump_only.iter().filter(|title| Some(*title) != self.in_dump.as_ref())
    }

    /// Nothing is told by one alone.
    pub fn equal(&self) -> bool {
        self.same() && self.console_only.is_empty() && self.dump_only.is_empty()
    }
}

/// Compares the reports on the consoles with those in the dump's log.
pub fn compare(consoles: &[(&str, &StoredReport)], in_dump: &[(&str, &StoredReport)], capsule: &Capsule) -> Compared {
    let dump: Vec<&StoredReport> = in_dump.iter().map(|(_, report)| *report).collect();
    let known = |report: &StoredReport| dump.iter().any(|other| same_bug(report, other));
    // Console and boot with most in common: of equals the first, which is the kernel under test.
    let mut boots: Vec<(&str, u32)> = consoles.iter().map(|(source, report)| (*source, report.boot)).collect();
    boots.dedup();
    let in_boot = |boot: (&str, u32)| -> Vec<&StoredReport> {
        consoles.iter().filter(|(source, report)| (*source, report.boot) == boot).map(|(_, report)| *report).collect()
    };
    let shared = |boot: &(&str, u32)| in_boot(*boot).into_iter().filter(|report| known(report)).count();
    let best = boots.iter().copied().rev().max_by_key(shared);
    let since = capsule.dmesg.first().map_or(0.0, |line| line.ts_ns as f64 / 1e9);
    // The console prints whole microseconds.
    let kept = |report: &&StoredReport| {
        report.time.as_deref().and_then(|t| t.parse().ok()).is_none_or(|t: f64| t + 1e-6 >= since)
    };
    let console: Vec<&StoredReport> = best.into_iter().flat_map(in_boot).filter(kept).collect();
    let told = |report: &StoredReport| console.iter().any(|other| same_bug(report, other));
    let titles = |reports: Vec<&&StoredReport>| {
        let mut titles: Vec<String> = reports.into_iter().map(|report| title(report)).collect();
        titles.dedup();
        titles
    };
    Compared {
        common: console.iter().filter(|report| known(report)).count(),
        on_console: subject(&console).map(title),
        in_dump: subject(&dump).map(title),
        console_only: titles(console.iter().filter(|report| !known(report)).collect()),
        dump_only: titles(dump.iter().filter(|report| !told(report)).collect()),
    }
}

fn title(report: &StoredReport) -> String {
    visible(&report.title).into_owned()
}

/// Two reports are one bug when their titles meet.
fn same_bug(one: &StoredReport, other: &StoredReport) -> bool {
    let titles = |report: &'_ StoredReport| {
        let mut all = report.alt_titles.clone();
        all.push(report.title.clone());
        all
    };
    let theirs = titles(other);
    titles(one).iter().any(|title| theirs.contains(title))
}

/// What the crash is about: the first report that nobody asked for and that follows from no other, else what was asked for.
fn subject<'r>(reports: &[&'r StoredReport]) -> Option<&'r StoredReport> {
    let unasked = reports.iter().find(|report| report.intended == Some(false) && report.cause.is_none());
    unasked.or_else(|| reports.iter().find(|report| report.intended == Some(true))).or_else(|| reports.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(title: &str, boot: u32, time: &str, intended: bool) -> StoredReport {
        StoredReport {
            title: title.into(),
            boot,
            time: Some(time.into()),
            intended: Some(intended),
            ..StoredReport::default()
        }
    }

    fn capsule(first_ns: u64) -> Capsule {
        let text = format!(
            r#"{{"capsule_version":1,"release":"6.1","format":"elf","pages":{{"present":1,"excluded":0}},"cpus":[],"tasks":[],
            "stacks":[],"modules":[],"dmesg":[{{"ts_ns":{first_ns},"level":6,"text":"x"}}],"warnings":[]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_capture_kernels_troubles_and_what_the_log_has_forgotten_are_no_difference() {
        let early = report("WARNING in early", 0, "0.5", false);
        let panic = report("kernel panic: sysrq triggered crash", 0, "20.1", true);
        let capture = report("kernel panic: out of memory", 1, "3.0", false);
        let console = [("serial", &early), ("serial", &panic), ("serial", &capture)];
        let compared = compare(&console, &[("vmcore", &panic)], &capsule(1_000_000_000));
        assert!(compared.equal(), "{compared:?}");
        assert_eq!(compared.common, 1);
        // With the whole log there, the early one is missing from it.
        let compared = compare(&console, &[("vmcore", &panic)], &capsule(0));
        assert_eq!(compared.console_only, ["WARNING in early"]);
    }

    #[test]
    fn another_crash_in_the_dump_is_a_difference_whatever_the_console_says() {
        let asked = report("kernel panic: sysrq triggered crash", 0, "20.1", true);
        let fault = report("BUG: unable to handle kernel paging request in f", 0, "20.2", false);
        let compared = compare(&[("serial", &asked)], &[("vmcore", &asked), ("vmcore", &fault)], &capsule(0));
        assert!(!compared.same());
        assert_eq!(compared.in_dump.as_deref(), Some("BUG: unable to handle kernel paging request in f"));
        assert_eq!((compared.dump_only.len(), compared.console_only.len()), (1, 0));
        let compared = compare(&[], &[("vmcore", &asked)], &capsule(0));
        assert_eq!((compared.on_console.as_deref(), compared.same()), (None, false));
    }

    #[test]
    fn reports_are_one_bug_when_any_of_their_titles_meet() {
        let one = report("KASAN: use-after-free in f", 0, "1.0", false);
        let mut other = report("KASAN: slab-use-after-free in f", 0, "1.0", false);
        other.alt_titles = vec!["KASAN: use-after-free in f".into()];
        let compared = compare(&[("serial", &one)], &[("vmcore", &other)], &capsule(0));
        assert_eq!((compared.common, compared.console_only.len(), compared.dump_only.len()), (1, 0, 0));
    }
}
