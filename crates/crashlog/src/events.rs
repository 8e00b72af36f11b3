//! Lines that move an attempt through the crash contract: banners, the marker, panics, kexec, watchdogs, shutdowns.

use memchr::memmem::find;

use crate::model::EventKind;
use crate::template::{self, Captures};

/// Literals of the prefilter that belong to events; each event below is recognised by at least one. They begin where
/// their line has rare letters, see `scan`.
pub const LITERALS: &[&str] = &[
    "ux version ",
    "ommand line: ",
    "d: trigger ",
    "as init process",
    "Trigger a crash",
    "lkdtm: Performing direct entry",
    "hdump kernel",
    "ew kernel",
    "reboot: ",
    "dog ",
    "SeaBIOS (version",
    "ISOLINUX ",
    "GRUB ",
    "U-Boot ",
    "BdsDxe: ",
    "iPXE ",
    "OpenSBI v",
];

/// What a line with one of the literals means. `text` is a payload.
pub fn recognise(text: &[u8]) -> Option<EventKind> {
    let t = text.trim_ascii_start();
    let word = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if let Some(rest) = t.strip_prefix(b"Linux version ") {
        let release = rest.split(|b| *b == b' ').next().unwrap_or_default();
        return release
            .first()
            .is_some_and(u8::is_ascii_digit)
            .then(|| EventKind::KernelBanner { release: word(release) });
    }
    if t.starts_with(b"Command line: ") || t.starts_with(b"Kernel command line: ") {
        return Some(EventKind::CommandLine { capture: find(t, b"elfcorehdr=").is_some() });
    }
    if let Some(at) = find(t, b"crashyard: trigger ") {
        return Some(marker(&t[at..]));
    }
    if t.starts_with(b"Run ") && t.ends_with(b"as init process") {
        return Some(EventKind::InitStarted);
    }
    if (t.starts_with(b"sysrq: ") || t.starts_with(b"SysRq : ")) && find(t, b"Trigger a crash").is_some()
        || find(t, b"lkdtm: Performing direct entry").is_some()
    {
        return Some(EventKind::CrashTriggered);
    }
    if find(t, b"end Kernel panic").is_some() && t.starts_with(b"---[ ") {
        return Some(EventKind::PanicEnd);
    }
    if let Some(at) = find(t, b"Kernel panic - not syncing: ") {
        let reason = &t[at + 28..];
        let quoted = t[..at].iter().any(|b| matches!(b, b'"' | b'\'' | b'`'));
        return (!quoted && find(t, b"end Kernel panic").is_none()).then(|| EventKind::Panic { reason: word(reason) });
    }
    if find(t, b"tarting crashdump kernel").is_some() || find(t, b"Starting new kernel").is_some() {
        return Some(EventKind::Kexec);
    }
    if t.starts_with(b"reboot: ") || t.starts_with(b"kvm: exiting") {
        return Some(EventKind::Shutdown);
    }
    if find(t, b"watchdog did not stop").is_some()
        || find(t, b"atchdog timer expired").is_some()
        || find(t, b"atchdog bite").is_some()
    {
        return Some(EventKind::Watchdog);
    }
    const FIRMWARE: [&[u8]; 8] = [
        b"SeaBIOS (version",
        b"ISOLINUX ",
        b"GNU GRUB",
        b"Welcome to GRUB",
        b"U-Boot ",
        b"BdsDxe: ",
        b"iPXE ",
        b"OpenSBI v",
    ];
    FIRMWARE.iter().any(|f| t.starts_with(f)).then_some(EventKind::Firmware)
}

fn marker(text: &[u8]) -> EventKind {
    let field = |template| {
        let mut c = Captures::default();
        template::find(template, text, &mut c)?;
        c.get("x").map(|b| String::from_utf8_lossy(b).into_owned())
    };
    EventKind::Marker { job: field(" job={x:w}"), attempt: field(" attempt={x:w}"), scenario: field(" scenario={x:w}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_kernel_is_known_by_its_elfcorehdr() {
        assert_eq!(
            recognise(b"Command line: root=/dev/sda elfcorehdr=0x1000"),
            Some(EventKind::CommandLine { capture: true })
        );
        assert_eq!(recognise(b"Kernel command line: root=/dev/sda"), Some(EventKind::CommandLine { capture: false }));
    }

    #[test]
    fn the_marker_names_job_attempt_and_scenario() {
        let got = recognise(b"crashyard: trigger job=J1 attempt=A1 scenario=vmxon-sysrq");
        let want = EventKind::Marker {
            job: Some("J1".into()),
            attempt: Some("A1".into()),
            scenario: Some("vmxon-sysrq".into()),
        };
        assert_eq!(got, Some(want));
    }

    #[test]
    fn every_example_contains_a_literal_of_the_prefilter() {
        let examples: &[&[u8]] = &[
            b"Linux version 7.3.4 (me@box) #1",
            b"Command line: quiet",
            b"crashyard: trigger job=1",
            b"Run /init as init process",
            b"sysrq: Trigger a crash",
            b"reboot: Power down",
            b"---[ end Kernel panic - not syncing: x ]---",
            b"Kernel panic - not syncing: x",
            b"watchdog: watchdog0: watchdog did not stop!",
            b"SeaBIOS (version 1.16)",
            b"Starting crashdump kernel...",
            b"kexec_core: Starting new kernel",
        ];
        for e in examples {
            assert!(recognise(e).is_some(), "{}", String::from_utf8_lossy(e));
            assert!(crate::scan::next(e, 0).is_some(), "{}", String::from_utf8_lossy(e));
        }
    }

    #[test]
    fn talk_about_kernels_is_no_banner() {
        assert_eq!(recognise(b"Linux version check skipped"), None);
        assert_eq!(recognise(b"loading Linux version 6.1"), None);
    }
}
