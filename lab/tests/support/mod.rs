//! A headless browser and the demo as processes of a test.

use fantoccini::{Client, ClientBuilder};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// Debian's Chromium, driven by Debian's chromedriver.
pub struct Browser {
    driver: Child,
    /// The session.
    pub page: Client,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts chromedriver on a port of its own choosing and opens a window of the given size.
    pub async fn start(width: u32, height: u32) -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is not installed: apt-get install chromium-driver");
        let mut lines = BufReader::new(driver.stdout.take().expect("piped")).lines();
        let port = loop {
            let line = lines.next().expect("chromedriver ended before it listened").expect("text");
            if let Some(rest) = line.split("started successfully on port ").nth(1) {
                break rest.trim_end_matches('.').trim().to_owned();
            }
        };
        // Its later output has to go somewhere, or it stops at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().expect("a temporary directory");
        let args = [
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--no-first-run".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            format!("--user-data-dir={}", profile.path().display()),
            format!("--window-size={width},{height}"),
        ];
        let mut wanted = serde_json::Map::new();
        wanted.insert("goog:chromeOptions".into(), json!({ "args": args, "binary": "/usr/bin/chromium" }));
        wanted.insert("goog:loggingPrefs".into(), json!({ "browser": "ALL" }));
        let page = ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new())
            .capabilities(wanted)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("a browser window: apt-get install chromium chromium-driver");
        Self { driver, page, _profile: profile }
    }

    /// A picture of the page, once it was drawn. A page is loaded before the window shows it, and the driver takes a
    /// picture of the page before it then, which is gone by the time it is taken: "not attached to an active page", one time
    /// in ten, and now and then twice, which the driver reports as a timeout.
    pub async fn picture(&self) -> Vec<u8> {
        let drawn = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()));";
        self.page.execute_async(drawn, vec![]).await.expect("the page is drawn");
        self.page.screenshot().await.expect("a picture")
    }

    /// Closes the window and the driver.
    pub async fn close(mut self) {
        let _ = self.page.close().await;
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// `crashyard-lab demo` as a process.
pub struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// The dashboard.
    pub url: String,
}

impl Demo {
    /// Starts it with its data in `data`, telling the stories named or else its own choice, and waits until its
    /// dashboard is there.
    pub fn start(data: &Path, stories: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        Self::start_at(data, port, stories, &[])
    }

    /// The same at this port, with more words on its command line.
    pub fn start_at(data: &Path, port: u16, stories: &[&str], options: &[&std::ffi::OsStr]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_crashyard-lab"))
            .args(["demo", "--listen", &format!("127.0.0.1:{port}"), "--data"])
            .arg(data)
            .args(stories.iter().flat_map(|story| ["--scenario", story]))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the demo starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut this = Self { child, stdout, url: format!("http://127.0.0.1:{port}") };
        this.wait_for("Dashboard: ");
        this
    }

    /// Reads its progress until a line with `text`; panics with all of it if it ends before.
    pub fn wait_for(&mut self, text: &str) {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).expect("text") == 0 {
                let status = self.child.wait().expect("a status");
                panic!("the demo ended with {status} before {text:?}:\n{seen}");
            }
            print!("{line}");
            seen.push_str(&line);
            if line.contains(text) {
                return;
            }
        }
    }

    /// Interrupts it as Ctrl-C does and returns its exit status and the rest of what it printed.
    pub fn interrupt(mut self) -> (std::process::ExitStatus, String) {
        Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().expect("kill");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("text");
        (self.child.wait().expect("a status"), rest)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // A failed test must not leave a farm behind; the demo ends its own children when it is told to end.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}
