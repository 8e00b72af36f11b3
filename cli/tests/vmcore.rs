//! `crashyard vmcore` against a server that cuts connections, lies about bytes and says hostile things.

mod stand_in;

use stand_in::Reply;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const ATTEMPT: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
const JOB: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MG";
const DUMP: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MH";
const OTHER: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MJ";

/// What the server has, and what it was asked for.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone)]
struct Story {
    bytes: Vec<u8>,
    hash: String,
    state: &'static str,
    /// Bytes after which each answer with content is cut.
    cut: usize,
}

impl Story {
    fn of(bytes: Vec<u8>) -> Self {
        let hash = blake3::hash(&bytes).to_hex().to_string();
        Self { bytes, hash, state: "complete", cut: usize::MAX }
    }

    fn attempt(&self) -> String {
        let dropped = match self.state {
            "dropped" => serde_json::json!({ "at": 1, "reason": "too \u{1b}[31mold" }),
            _ => serde_json::Value::Null,
        };
        serde_json::json!({
            "id": ATTEMPT, "job": JOB, "run": OTHER, "number": 1, "purpose": "test", "build": "01JDB4Q1W5Z8N6K3X0V7T2R9MF", "machine": OTHER, "machine_name": "m", "controller": OTHER,
            "state": "done", "verdict": "FAIL", "reason": null, "blamed_stage": null, "started_at": 0, "finished_at": 1,
            "stages": [], "artifacts": [{ "id": DUMP, "build": null, "attempt": ATTEMPT, "name": "vmcore", "state": self.state,
                "size": self.bytes.len(), "blake3": self.hash, "created_at": 0, "dropped": dropped }],
        })
        .to_string()
    }

    fn answer(&self, path: &str, from: Option<usize>) -> Reply {
        match path {
            path if path == format!("/api/v1/attempts/{ATTEMPT}") => Reply::ok(self.attempt()),
            path if path == format!("/api/v1/artifacts/{DUMP}/content") => {
                let content = match from {
                    Some(from) => {
                        let size = self.bytes.len();
                        let headers = format!("content-range: bytes {from}-{}/{size}\r\n", size - 1);
                        Reply { headers, ..Reply::new("206 Partial Content", &self.bytes[from..]) }
                    }
                    None => Reply::ok(self.bytes.clone()),
                };
                Reply { cut: self.cut, ..content }
            }
            _ => {
                let problem = serde_json::json!({ "type": "not_found", "title": "no", "status": 404,
                    "detail": "there is no such \u{1b}]0;thing\u{7}", "next": "look \u{1b}[2Jelsewhere" });
                Reply::new("404 Not Found", problem.to_string())
            }
        }
    }
}

impl Server {
    fn start(story: Story) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let address = stand_in::serve(move |path, from| {
            seen.lock().unwrap().push(match from {
                Some(from) => format!("{path} from {from}"),
                None => path.to_owned(),
            });
            story.answer(path, from)
        });
        Self { address, asked }
    }

    fn run(&self, dir: &Path, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_crashyard"))
            .args(["vmcore", "open", "--server", &self.address, "--dir"])
            .arg(dir)
            .args(arguments)
            .env("PATH", "")
            .output()
            .unwrap()
    }

    fn downloads(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|line| line.contains("/content")).count()
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_download_that_is_cut_again_and_again_goes_on_where_it_was_and_is_the_whole_dump() {
    let story = Story { cut: 100_000, ..Story::of(noise(350_000)) };
    let server = Server::start(story.clone());
    let dir = tempfile::tempdir().unwrap();
    let output = server.run(dir.path(), &["--with", "nothing", ATTEMPT]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(std::fs::read(dir.path().join("vmcore")).unwrap() == story.bytes);
    assert_eq!(server.downloads(), 4);
    // Again: it is there, and only checked.
    assert!(server.run(dir.path(), &["--with", "nothing", ATTEMPT]).status.success());
    assert_eq!(server.downloads(), 4);
    // Somebody changed it: it is fetched again.
    std::fs::write(dir.path().join("vmcore"), noise(350_000).into_iter().rev().collect::<Vec<_>>()).unwrap();
    assert!(server.run(dir.path(), &["--with", "nothing", ATTEMPT]).status.success());
    assert!(std::fs::read(dir.path().join("vmcore")).unwrap() == story.bytes);
}

#[test]
fn what_an_earlier_run_left_is_not_fetched_again() {
    let story = Story::of(noise(200_000));
    let server = Server::start(story.clone());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vmcore.part"), &story.bytes[..150_000]).unwrap();
    assert!(server.run(dir.path(), &["--with", "nothing", ATTEMPT]).status.success());
    let asked = server.asked.lock().unwrap().clone();
    assert!(asked.last().unwrap().ends_with("from 150000"), "{asked:?}");
    assert!(std::fs::read(dir.path().join("vmcore")).unwrap() == story.bytes);
}

#[test]
fn bytes_that_are_not_the_dump_never_get_its_name() {
    let server = Server::start(Story { hash: "0".repeat(64), ..Story::of(noise(1000)) });
    let dir = tempfile::tempdir().unwrap();
    let output = server.run(dir.path(), &[ATTEMPT]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("another BLAKE3"), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_server_that_brings_nothing_more_is_given_up_on_and_what_came_is_kept() {
    let server = Server::start(Story { cut: 0, ..Story::of(noise(1000)) });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vmcore.part"), &noise(1000)[..400]).unwrap();
    let output = server.run(dir.path(), &[ATTEMPT]);
    assert!(!output.status.success());
    assert!(
        stderr(&output).contains("at byte 400 of 1000") && stderr(&output).contains("same command"),
        "{}",
        stderr(&output)
    );
    assert_eq!(std::fs::metadata(dir.path().join("vmcore.part")).unwrap().len(), 400);
}

#[test]
fn nothing_that_a_server_says_reaches_the_terminal_raw() {
    let server = Server::start(Story { state: "dropped", ..Story::of(noise(10)) });
    let dir = tempfile::tempdir().unwrap();
    for id in [ATTEMPT, JOB] {
        let output = server.run(dir.path(), &[id]);
        assert!(!output.status.success());
        let said = stderr(&output);
        assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
    }
    let said = stderr(&server.run(dir.path(), &[ATTEMPT]));
    assert!(
        said.contains("dropped")
            && said.contains("\\x1b[31mold")
            && said.contains(&blake3::hash(&noise(10)).to_string())
    );
    assert!(stderr(&server.run(dir.path(), &["nonsense"])).contains("no id"));
}
