//! What `crashyard vmcore open` starts, and what source lines come from: with stand-ins for drgn, crash and debuginfod, and a
//! vmlinux that a compiler made.

#[path = "../../crates/vmcore/tests/synthetic/mod.rs"]
#[expect(dead_code, reason = "each test binary uses a part of the shared fixture")]
mod synthetic;

mod stand_in;

use stand_in::Reply;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use synthetic::{PANIC, PLAIN, Shape, dump, world};

const ATTEMPT: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MF";
const DUMP: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MH";
const OTHER: &str = "01JDB4Q1W5Z8N6K3X0V7T2R9MJ";
/// Build id of the made-up kernel.
const BUILD_ID: &str = "00ff00ff";

/// Answers every path with these bytes, or with 404.
fn serve(answer: impl Fn(&str) -> Option<Vec<u8>> + Send + 'static) -> String {
    stand_in::serve(move |path, _| answer(path).map_or_else(|| Reply::new("404 Not Found", ""), Reply::ok))
}

/// A farm with one attempt, which left this dump.
fn farm(bytes: Vec<u8>) -> String {
    let attempt = serde_json::json!({
        "id": ATTEMPT, "job": OTHER, "run": OTHER, "number": 1, "purpose": "test", "build": OTHER, "machine": OTHER,
        "machine_name": "m", "controller": OTHER, "state": "done", "verdict": "FAIL", "reason": null, "blamed_stage": null,
        "started_at": 0, "finished_at": 1, "stages": [], "artifacts": [{ "id": DUMP, "build": null, "attempt": ATTEMPT,
            "name": "vmcore", "state": "complete", "size": bytes.len(), "blake3": blake3::hash(&bytes).to_hex().to_string(),
            "created_at": 0, "dropped": null }],
    });
    serve(move |path| {
        if path == format!("/api/v1/attempts/{ATTEMPT}") {
            Some(attempt.to_string().into_bytes())
        } else {
            (path == format!("/api/v1/artifacts/{DUMP}/content")).then(|| bytes.clone())
        }
    })
}

/// A vmlinux of the made-up kernel: `panic` with a function inlined into it, where the kernel has it.
fn vmlinux(dir: &Path) -> PathBuf {
    let (source, out) = (dir.join("kernel/panic.c"), dir.join("vmlinux"));
    std::fs::create_dir_all(dir.join("kernel")).unwrap();
    let code = "static inline __attribute__((always_inline)) void stop_the_others(void)\n\
        {\n    __asm__ volatile(\".skip 64, 0x90\");\n}\n\
        void panic(void)\n{\n    stop_the_others();\n}\n";
    std::fs::write(&source, code).unwrap();
    let done = Command::new("gcc")
        .args(["-g", "-O2", "-nostdlib", "-static", "-mcmodel=kernel", "-fno-pie", "-no-pie", "-fcf-protection=none"])
        .args(["-Wl,-e,panic", &format!("-Wl,-Ttext={PANIC:#x}"), &format!("-Wl,--build-id=0x{BUILD_ID}"), "-o"])
        .args([&out, &source])
        .output()
        .expect("gcc is installed (lab/packages.txt)");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    out
}

/// A program of this name that writes its arguments down and ends with `status`.
fn program(dir: &Path, name: &str, status: i32) {
    program_that(dir, name, &format!("exit {status}"));
}

/// A program of this name that writes its arguments down and does this.
fn program_that(dir: &Path, name: &str, what: &str) {
    let program = dir.join(name);
    let script = format!("#!/bin/sh\nfor word; do echo \"$word\"; done >'{}/{name}.said'\n{what}\n", dir.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn said(dir: &Path, name: &str) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(dir.join(format!("{name}.said"))).ok()?;
    Some(text.lines().map(str::to_owned).collect())
}

/// Runs the program with nothing else in `PATH` than these tools.
fn run(dir: &Path, arguments: &[&str], debuginfod: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crashyard"));
    command.args(arguments).env("PATH", dir).env("XDG_CACHE_HOME", dir.join("cache"));
    match debuginfod {
        Some(servers) => command.env("DEBUGINFOD_URLS", servers),
        None => command.env_remove("DEBUGINFOD_URLS"),
    };
    command.output().unwrap()
}

fn open(dir: &Path, server: &str, more: &[&str], debuginfod: Option<&str>) -> Output {
    let to = dir.join("dump");
    let fixed = ["vmcore", "open", "--server", server, "--dir", to.to_str().unwrap(), ATTEMPT];
    run(dir, &[&fixed[..], more].concat(), debuginfod)
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_right_debugger_is_started_with_the_dump_and_the_vmlinux_of_its_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let server = farm(dump::elf(&world(PLAIN).contents, false));
    let vmlinux = vmlinux(dir.path());
    let (vmlinux, file) = (vmlinux.to_str().unwrap(), dir.path().join("dump/vmcore"));
    let file = file.to_str().unwrap();
    program(dir.path(), "crash", 0);
    let done = open(dir.path(), &server, &["--vmlinux", vmlinux], None);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(said(dir.path(), "crash").unwrap(), [vmlinux, file], "the only one there is");
    std::fs::remove_file(dir.path().join("crash.said")).unwrap();

    program(dir.path(), "drgn", 0);
    assert!(open(dir.path(), &server, &["--vmlinux", vmlinux], None).status.success());
    assert_eq!(
        said(dir.path(), "drgn").unwrap(),
        ["-c", file, "-s", vmlinux],
        "preferred, because it knows more kernels"
    );
    assert_eq!(said(dir.path(), "crash"), None);
    assert!(open(dir.path(), &server, &["--vmlinux", vmlinux, "--with", "crash"], None).status.success());
    assert_eq!(said(dir.path(), "crash").unwrap(), [vmlinux, file]);

    program(dir.path(), "crash", 3);
    let done = open(dir.path(), &server, &["--vmlinux", vmlinux, "--with", "crash"], None);
    assert!(!done.status.success());
    assert!(stderr(&done).contains("may not know this kernel"), "{}", stderr(&done));
}

#[test]
fn an_interrupt_from_the_terminal_is_the_debuggers() {
    let dir = tempfile::tempdir().unwrap();
    let server = farm(dump::elf(&world(PLAIN).contents, false));
    let vmlinux = vmlinux(dir.path());
    // A terminal sends it to both; the debugger stays, and with it the program that waits for it.
    program_that(dir.path(), "drgn", "kill -INT $PPID && echo still here");
    let done = open(dir.path(), &server, &["--vmlinux", vmlinux.to_str().unwrap()], None);
    assert!(done.status.success(), "{:?} {}", done.status, stderr(&done));
    assert_eq!(String::from_utf8_lossy(&done.stdout), "still here\n");
}

#[test]
fn of_the_debuggers_only_those_that_were_asked_for_are_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let server = farm(dump::elf(&world(PLAIN).contents, false));
    let vmlinux = vmlinux(dir.path());
    let missing = |more: &[&str]| {
        let done = open(dir.path(), &server, &[&["--vmlinux", vmlinux.to_str().unwrap()], more].concat(), None);
        (done.status.success(), stderr(&done))
    };
    let (opened, said) = missing(&[]);
    assert!(opened && said.contains("drgn and crash are not installed"), "{said}");
    program(dir.path(), "crash", 0);
    let (opened, said) = missing(&["--with", "drgn"]);
    assert!(!opened && said.contains("drgn is not installed: pip install drgn") && !said.contains("crash"), "{said}");
}

#[test]
fn a_flattened_dump_is_put_together_for_tools_that_cannot_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dump::kdump(&world(PLAIN).contents, dump::Packing::Zlib, None);
    let server = farm(dump::flatten(&plain));
    let vmlinux = vmlinux(dir.path());
    program(dir.path(), "drgn", 0);
    let done = open(dir.path(), &server, &["--vmlinux", vmlinux.to_str().unwrap()], None);
    assert!(done.status.success(), "{}", stderr(&done));
    let file = &said(dir.path(), "drgn").unwrap()[1];
    assert!(file.ends_with("vmcore.plain"), "{file}");
    assert_eq!(std::fs::read(file).unwrap(), plain);
}

#[test]
fn without_a_vmlinux_the_triage_is_printed_and_what_to_do_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let server = farm(dump::elf(&world(PLAIN).contents, false));
    program(dir.path(), "drgn", 0);
    let done = open(dir.path(), &server, &[], None);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(said(dir.path(), "drgn"), None, "it is of no use without");
    assert!(String::from_utf8_lossy(&done.stdout).contains("panic+0x20"));
    let advice = stderr(&done);
    assert!(advice.contains("linux-image-9.9.9-synthetic-dbg") && advice.contains("DEBUGINFOD_URLS"), "{advice}");
}

#[test]
fn a_debuginfod_server_is_asked_once_and_believed_only_with_the_right_build_id() {
    let dir = tempfile::tempdir().unwrap();
    let server = farm(dump::elf(&world(PLAIN).contents, false));
    let vmlinux = std::fs::read(vmlinux(dir.path())).unwrap();
    std::fs::remove_file(dir.path().join("vmlinux")).unwrap();
    program(dir.path(), "drgn", 0);
    // One knows nothing, one lies, one has it.
    let (empty, liar) = (serve(|_| None), serve(|_| Some(b"\x7fELF no such thing".to_vec())));
    let address = format!("/buildid/{BUILD_ID}/debuginfo");
    let honest = serve(move |path| (path == address).then(|| vmlinux.clone()));
    let done = open(dir.path(), &server, &[], Some(&format!("{empty} {liar}")));
    assert!(done.status.success() && stderr(&done).contains("thrown away"), "{}", stderr(&done));
    assert_eq!(said(dir.path(), "drgn"), None);
    assert!(open(dir.path(), &server, &[], Some(&format!("{empty} {liar}/ {honest}"))).status.success());
    let kept = format!("cache/crashyard/debuginfo/{BUILD_ID}/vmlinux");
    let kept = dir.path().join(kept);
    assert_eq!(said(dir.path(), "drgn").unwrap()[3], kept.to_str().unwrap());
    // It is there now, whoever answers.
    std::fs::remove_file(dir.path().join("drgn.said")).unwrap();
    assert!(open(dir.path(), &server, &[], Some(&empty)).status.success());
    assert_eq!(said(dir.path(), "drgn").unwrap()[3], kept.to_str().unwrap());
}

/// A dump in the parts that `makedumpfile --split` writes, one of them flattened.
fn parts(dir: &Path) -> Vec<PathBuf> {
    let contents = world(PLAIN).contents;
    let (first, last) = (*contents.pages.keys().next().unwrap(), *contents.pages.keys().last().unwrap());
    let middle = first + (last - first) / 2;
    let ranges = [0..middle, middle..last, last..last + 1];
    let write = |(number, range)| {
        let bytes = dump::kdump(&contents, dump::Packing::Zstd, Some(range));
        let file = dir.join(format!("part{number}"));
        std::fs::write(&file, if number == 1 { dump::flatten(&bytes) } else { bytes }).unwrap();
        file
    };
    ranges.into_iter().enumerate().map(write).collect()
}

#[test]
fn the_parts_of_a_split_dump_are_read_together_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    std::fs::write(&whole, dump::kdump(&world(PLAIN).contents, dump::Packing::Zstd, None)).unwrap();
    let parts = parts(dir.path());
    let parts: Vec<&str> = parts.iter().map(|part| part.to_str().unwrap()).collect();
    let whole = whole.to_str().unwrap();
    for what in [&["--json"][..], &["--tasks"], &["--dmesg"], &["--cpu", "1"], &["--type", "task_struct", "init_task"]]
    {
        let read = |files: &[&str]| {
            let done = run(dir.path(), &[&["triage", "vmcore"], files, what].concat(), None);
            assert!(done.status.success(), "{what:?}: {}", stderr(&done));
            String::from_utf8(done.stdout).unwrap().replace("flattened_kdump", "kdump")
        };
        assert_eq!(read(&[parts[2], parts[0], parts[1]]), read(&[whole]), "{what:?}");
    }
}

#[test]
fn parts_that_are_not_all_there_or_not_of_one_dump_are_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let parts = parts(dir.path());
    let other = dir.path().join("other");
    std::fs::write(
        &other,
        dump::kdump(&world(Shape { kaslr: 0x0b80_0000, ..PLAIN }).contents, dump::Packing::Raw, None),
    )
    .unwrap();
    let read = |files: &[&Path]| {
        let files = files.iter().map(|file| file.to_str().unwrap());
        run(dir.path(), &["triage", "vmcore"].into_iter().chain(files).collect::<Vec<_>>(), None)
    };
    for files in [&[&*parts[0], &*parts[2]][..], &[&parts[0], &parts[0]], &[&parts[1]]] {
        let said = String::from_utf8(read(files).stdout).unwrap();
        assert!(said.contains("pages are in other parts of this split dump"), "{files:?}: {said}");
    }
    let done = read(&[&parts[0], &other]);
    assert!(!done.status.success() && stderr(&done).contains("not parts of one split"), "{}", stderr(&done));
}

#[test]
fn source_lines_and_inlined_functions_are_added_wherever_kaslr_put_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let vmlinux = vmlinux(dir.path());
    for kaslr in [0, 0x0b80_0000] {
        let file = dir.path().join("vmcore");
        std::fs::write(&file, dump::elf(&world(Shape { kaslr, ..PLAIN }).contents, false)).unwrap();
        let arguments = ["triage", "vmcore", file.to_str().unwrap(), "--vmlinux", vmlinux.to_str().unwrap()];
        let done = run(dir.path(), &[&arguments[..], &["--json"]].concat(), None);
        assert!(done.status.success(), "{}", stderr(&done));
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        let frames = json["cpus"][0]["frames"].as_array().unwrap();
        let frame = frames.iter().find(|frame| frame["symbol"] == "panic+0x20").unwrap();
        let expected = serde_json::json!([
            { "function": "stop_the_others", "file": "kernel/panic.c", "line": 3 },
            { "function": "panic", "file": "kernel/panic.c", "line": 7 },
        ]);
        assert_eq!(frame["source"], expected);
        assert_eq!(frames.iter().filter(|frame| frame.get("source").is_some()).count(), 1, "nothing is made up");
        let text = String::from_utf8(run(dir.path(), &arguments, None).stdout).unwrap();
        assert!(text.contains("stop_the_others at kernel/panic.c:3\n"), "{text}");
    }
    let file = dir.path().join("vmcore");
    let done = run(dir.path(), &["triage", "vmcore", file.to_str().unwrap(), "--lines"], None);
    assert!(!done.status.success() && stderr(&done).contains("DEBUGINFOD_URLS"), "{}", stderr(&done));
}
