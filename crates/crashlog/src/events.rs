//! Lines that move an attempt through the crash contract: banners, the marker, panics, kexec, watchdogs, shutdowns.

use memchr::memmem::find;

use crate::model::EventKind;
use crate::template::{self, Captures};
use crate::trace;

/// Literals of the prefilter that belong to events; each event below is recognised by at least one. They begin where
/// their line has rare letters, see `scan`.
pub const LITERALS: &[&str] = &[
    "ux version ",
    "ommand line: ",
    "yard: ",
    "Exc:",
    "r12:",
    "r13:",
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

/// Registers that say why a jump to another kernel died.
const JUMP: [&str; 3] = ["Exc:", "r12:", "r13:"];

/// What one line of a kernel says about the course of a crash, if anything. `text` has no prefix in front of it.
#[must_use]
pub fn recognise(text: &[u8]) -> Option<EventKind> {
    let t = text.trim_ascii_start();
    let word = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if let Some(at) = find(t, b"Linux version ") {
        let rest = &t[at + 14..];
        let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
        // Behind what firmware left on the line it must go on as a banner does, with who built it.
        let sound = rest.first().is_some_and(u8::is_ascii_digit) && (at == 0 || rest[end..].starts_with(b" ("));
        return sound.then(|| EventKind::KernelBanner { release: word(&rest[..end]) });
    }
    if t.starts_with(b"Command line: ") || t.starts_with(b"Kernel command line: ") {
        let capture = t.split(|b| *b == b' ').any(|w| w.starts_with(b"elfcorehdr="));
        return Some(EventKind::CommandLine { capture });
    }
    // What the farm's module panics with also begins with its name.
    if let Some(said) = find(t, b"crashyard: ").and_then(|at| ours(t, at)) {
        return Some(said);
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
    if find(t, b"Fixing recursive fault but reboot is needed").is_some() {
        return Some(EventKind::RecursiveFault);
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
    if let Some(register) = JUMP.iter().find(|r| t.starts_with(r.as_bytes())) {
        let (value, digits) = trace::hex(&t[register.len()..])?;
        let name = register.trim_end_matches(':').to_owned();
        return (digits == 16 && t.len() == register.len() + 16)
            .then_some(EventKind::JumpDied { register: name, value });
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

/// A line of the farm's own agents, whose words begin at `at`. They are a message of their own: an agent that logs what
/// it is about to say quotes them.
fn ours(text: &[u8], at: usize) -> Option<EventKind> {
    let begins = text[..at].last().is_none_or(|b| b.is_ascii_whitespace() || matches!(b, b']' | b'>'));
    let words = &text[at + "crashyard: ".len()..];
    if !begins {
        return None;
    }
    if words.starts_with(b"trigger ") {
        return Some(marker(&text[at..]));
    }
    let cause = words.strip_prefix(b"dump failed cause=")?;
    let end = cause.iter().position(|b| !b.is_ascii_lowercase()).unwrap_or(cause.len());
    Some(EventKind::DumpFailed { cause: String::from_utf8_lossy(&cause[..end]).into_owned() })
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
    fn words_of_the_farm_that_are_quoted_are_no_event() {
        assert_eq!(
            recognise(b"INFO report=Triggering { marker: \"crashyard: trigger job=J attempt=A scenario=S\" }"),
            None
        );
        assert!(recognise(b"# crashyard: trigger job=J attempt=A scenario=S").is_some());
        let failed = recognise(b"crashyard: dump failed cause=disk, see above");
        assert_eq!(failed, Some(EventKind::DumpFailed { cause: "disk".into() }));
    }

    #[test]
    fn a_panic_of_the_farms_module_is_a_panic() {
        let got = recognise(b"Kernel panic - not syncing: crashyard: panic on cpu 1");
        assert_eq!(got, Some(EventKind::Panic { reason: "crashyard: panic on cpu 1".into() }));
        assert_eq!(recognise(b"crashyard: says something else"), None);
    }

    #[test]
    fn registers_of_a_jump_that_died_are_read_and_others_are_not() {
        let got = recognise(b"Exc:000000000000000d");
        assert_eq!(got, Some(EventKind::JumpDied { register: "Exc".into(), value: 13 }));
        assert_eq!(recognise(b"r12: 00000000 r11: 00000000"), None);
        assert_eq!(recognise(b"r12:0000000000000000 r13:0000000000000000"), None);
    }

    #[test]
    fn every_example_contains_a_literal_of_the_prefilter() {
        let examples: &[&[u8]] = &[
            b"Linux version 7.3.4 (me@box) #1",
            b"Command line: quiet",
            b"crashyard: trigger job=1",
            b"crashyard: dump failed cause=network: no route",
            b"Fixing recursive fault but reboot is needed!",
            b"Exc:000000000000000d",
            b"r12:00000000003726f0",
            b"r13:00000000000006f0",
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
