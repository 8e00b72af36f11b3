//! Runs the tools of the system this needs, and says which package has them when they are missing.

use anyhow::{Context as _, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs a command and returns what it printed; fails with what it complained.
pub fn output(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> anyhow::Result<Vec<u8>> {
    run(Command::new(program).args(arguments), program)
}

/// The same in a directory.
pub fn output_in(directory: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    run(Command::new(program).args(arguments).current_dir(directory), program)
}

/// Pipes bytes through a command. A command may stop reading early; what it printed counts.
pub fn filter(program: &str, arguments: &[&str], input: &[u8]) -> anyhow::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| missing(program))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            use std::io::Write as _;
            // A reader that has enough closes the pipe.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output()
    })?;
    Ok((output.status.success(), output.stdout))
}

/// Runs a script of this project that prints a path, and what it is doing on standard error.
pub fn script(path: &Path, arguments: &[&str]) -> anyhow::Result<PathBuf> {
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start {}", path.display()))?;
    if !output.status.success() {
        bail!("{}: {}", path.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// Finds a program in the places where Debian puts it, `sbin` included.
pub fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .with_context(|| missing(program))
}

fn run(command: &mut Command, program: &str) -> anyhow::Result<Vec<u8>> {
    command.env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| missing(program))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    Ok(output.stdout)
}

fn missing(program: &str) -> String {
    let package = match program {
        "makedumpfile" => "makedumpfile",
        "kexec" => "kexec-tools",
        "busybox" => "busybox-static",
        "depmod" | "modprobe" => "kmod",
        "dpkg-deb" => "dpkg",
        "apt-get" | "apt-cache" => "apt",
        "xz" => "xz-utils",
        "lz4" => "lz4",
        "ldd" => "libc-bin",
        "cargo" => return "start cargo (install a Rust toolchain)".into(),
        _ => return format!("start {program}"),
    };
    format!("start {program} (Debian package {package})")
}
