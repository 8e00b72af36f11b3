//! Golden logs: `tests/golden/NAME.log` and the outcome the engine owes for it, `NAME.json`.
//!
//! `UPDATE_EXPECT=1 cargo test -p crashyard-crashlog --test golden` rewrites the expectations; the difference is then
//! read in review. The scenario's expectation may stand in `NAME.expect`. The logs are consoles of the project's own machines:
//!
//! - `lkdtm-*`, `sysrq-*`: the lab's kernel in QEMU, made again by `lab/golden`;
//! - `farm-*`: attempts of the demo (`crashyard-lab demo`), Debian's kernel in QEMU, one of them healthy;
//! - `vmx-*`: stories of the VMX module in Bochs (`CRASHYARD_KEEP=FOLDER vmx-module/test STORY`);
//! - `crash-path-fault`: written by hand, after what a fault in the crash path looks like.

use std::path::Path;

use crashyard_crashlog::{Intent, Options, parse};

#[test]
fn golden_logs_give_the_expected_outcome() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut seen = 0;
    let mut wrong = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    for log in files.iter().filter(|p| p.extension().is_some_and(|x| x == "log")) {
        seen += 1;
        let intent = std::fs::read_to_string(log.with_extension("expect")).ok().map(|e| Intent::new(e.trim()));
        let outcome = parse(&std::fs::read(log).unwrap(), Options { intent });
        let got = serde_json::to_string_pretty(&outcome).unwrap() + "\n";
        let expectation = log.with_extension("json");
        if update {
            std::fs::write(&expectation, &got).unwrap();
        } else if std::fs::read_to_string(&expectation).ok().as_deref() != Some(got.as_str()) {
            wrong.push(log.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert!(seen > 0, "no golden logs in {}", dir.display());
    assert!(wrong.is_empty(), "other outcome than expected for {wrong:?}; UPDATE_EXPECT=1 shows the difference in git");
}
