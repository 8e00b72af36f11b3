use super::command::{ByCommand, Commands};
use super::*;
use crashyard_protocol::check::Seen;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// A machine whose power is a file, switched by a real program.
fn switched(directory: &Path, nmi: bool) -> Arc<ByCommand> {
    let script = directory.join("switch");
    let state = directory.join("power");
    let text = format!(
        "#!/bin/sh\ncase $2 in status) cat {0} 2>/dev/null || echo off;; *) echo \"$1 $2\" >>{0}.log; echo $2 >{0};; esac\n",
        state.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let words = |action: &str| vec![script.display().to_string(), "{machine}".into(), action.into()];
    let commands = Commands {
        on: words("on"),
        off: words("off"),
        status: words("status"),
        reset: Vec::new(),
        nmi: if nmi { words("on") } else { Vec::new() },
        network_boot: Vec::new(),
    };
    Arc::new(ByCommand { machine: "m 1;x".into(), commands })
}

fn plan() -> BootPlan {
    BootPlan { kernel: "/k".into(), initrd: "/i".into(), cmdline: "quiet".into(), cpus: 1, memory_mib: 1 }
}

#[tokio::test]
async fn a_machine_that_runs_is_off_before_it_boots_and_a_restart_of_the_controller_finds_it_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let chassis = switched(dir.path(), false);
    chassis.power(true).await.unwrap();
    let attempt = dir.path().join("attempt");
    std::fs::create_dir(&attempt).unwrap();
    let power = || MetalPower { machine: "m1".into(), chassis: chassis.clone(), directory: attempt.clone() };
    assert_eq!(power().status().await.unwrap(), PowerStatus::NeverOn, "whatever runs there is not this attempt's");
    assert!(power().off().await.unwrap().contains("left as it is"));
    assert!(chassis.is_on().await.unwrap(), "what this attempt did not start, it does not end");
    power().on(&plan()).await.unwrap();
    assert_eq!(power().status().await.unwrap(), PowerStatus::On);
    power().off().await.unwrap();
    assert_eq!(power().status().await.unwrap(), PowerStatus::Ended("its power is off".into()));
    let log = std::fs::read_to_string(dir.path().join("power.log")).unwrap();
    assert_eq!(log, "m 1;x on\nm 1;x off\nm 1;x on\nm 1;x off\n", "and no shell read the machine's name");
    assert!(power().off().await.unwrap().contains("already"), "again is harmless");
}

#[tokio::test]
async fn what_commands_cannot_do_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let without = switched(dir.path(), false);
    assert!(without.nmi().await.unwrap_err().to_string().contains("no nmi command"));
    assert!(switched(dir.path(), true).nmi().await.is_ok());
    assert!(without.reset().await.unwrap().contains("off and on"));
    let mut broken = switched(dir.path(), false);
    Arc::get_mut(&mut broken).unwrap().commands.status = vec!["/bin/echo".into(), "who knows".into()];
    assert!(format!("{:#}", broken.is_on().await.unwrap_err()).contains("neither on nor off"));
    Arc::get_mut(&mut broken).unwrap().commands.status = vec!["/does/not/exist".into()];
    assert!(format!("{:#}", broken.is_on().await.unwrap_err()).contains("start /does/not/exist"));
}

/// A chassis whose event log a test writes.
struct Logged(std::sync::Mutex<Vec<String>>, AtomicBool);

#[async_trait]
impl Chassis for Logged {
    fn what(&self) -> String {
        "a test".into()
    }
    fn who(&self) -> &'static str {
        "a test"
    }
    async fn is_on(&self) -> anyhow::Result<bool> {
        Ok(self.1.load(Ordering::SeqCst))
    }
    async fn switch(&self, on: bool) -> anyhow::Result<()> {
        self.1.store(on, Ordering::SeqCst);
        Ok(())
    }
    async fn reset(&self) -> anyhow::Result<String> {
        bail!("not here")
    }
    async fn nmi(&self) -> anyhow::Result<String> {
        bail!("not here")
    }
    async fn boot_from_network_once(&self) -> anyhow::Result<String> {
        Ok(String::new())
    }
    async fn events(&self) -> anyhow::Result<Option<Vec<String>>> {
        Ok(Some(self.0.lock().unwrap().clone()))
    }
    async fn can_nmi(&self) -> anyhow::Result<String> {
        bail!("not here")
    }
}

#[tokio::test]
async fn of_the_event_log_what_came_during_the_attempt_is_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let chassis = Arc::new(Logged(std::sync::Mutex::new(vec!["old".into()]), AtomicBool::new(false)));
    let power = MetalPower { machine: "m1".into(), chassis: chassis.clone(), directory: dir.path().into() };
    let kept = || std::fs::read_to_string(dir.path().join(EVENTS));
    power.on(&plan()).await.unwrap();
    power.off().await.unwrap();
    assert!(kept().is_err(), "nothing happened");
    chassis.0.lock().unwrap().push("thermal trip".into());
    power.off().await.unwrap();
    assert_eq!(kept().unwrap(), "thermal trip\n");
    *chassis.0.lock().unwrap() = Vec::new();
    chassis.0.lock().unwrap().clear();
    power.off().await.unwrap();
    assert_eq!(kept().unwrap(), "thermal trip\n", "a log that was cleared takes nothing back");
}

#[tokio::test]
async fn between_attempts_a_machine_is_powered_off_whoever_left_it_on_and_can_be_looked_at() {
    let chassis = Arc::new(Logged(std::sync::Mutex::new(Vec::new()), AtomicBool::new(true)));
    let metal = Metal {
        machine: "m1".into(),
        chassis: chassis.clone(),
        bmc: None,
        consoles: Vec::new(),
        server: String::new(),
        watcher: Watcher::start().unwrap(),
    };
    for left in [true, false] {
        chassis.1.store(left, Ordering::SeqCst);
        metal.off().await.unwrap();
        assert!(!chassis.is_on().await.unwrap());
    }
    chassis.1.store(true, Ordering::SeqCst);
    let seen = |report: Report| report.findings.into_iter().map(|one| (one.capability, one.seen)).collect::<Vec<_>>();
    let looked = seen(metal.look(false).await.unwrap());
    assert!(looked.contains(&("power state".into(), Seen::Works)), "{looked:?}");
    assert!(looked.contains(&("power off and on".into(), Seen::Unknown)), "{looked:?}");
    assert!(chassis.is_on().await.unwrap(), "nothing is done to it unless that was asked for");
    let cycled = seen(metal.look(true).await.unwrap());
    assert!(cycled.contains(&("power off again".into(), Seen::Works)), "{cycled:?}");
    assert!(!chassis.is_on().await.unwrap());
}

#[test]
fn new_events_are_found_in_a_log_that_is_full_cleared_or_repeats_itself() {
    let log = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(new_events(&log("a b c"), log("b c d")), log("d"), "a full log dropped one for the new one");
    assert_eq!(new_events(&log("a b c"), log("cleared d")), log("cleared d"));
    assert_eq!(new_events(&log("a a"), log("a a a")), log("a"), "the same words once more are one more event");
    assert_eq!(new_events(&log("a b"), log("a b")), log(""));
}
