//! Full disks and databases that go away: a clear answer, nothing half-registered, and it goes on by itself.

use crate::harness::{Call, Server, note};
use crashyard_protocol::agent::{Claim, ConsoleAck, ReportsReply, Role, Upload};
use crashyard_protocol::api::Artifact;
use crashyard_protocol::problem::kind;
use crashyard_server::blobs::Blobs;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A store that says what a full file system says.
#[derive(Debug, Default)]
struct Disk {
    inner: InMemory,
    full: AtomicBool,
}

impl std::fmt::Display for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Disk {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if self.full.load(Ordering::SeqCst) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(object_store::Error::Generic { store: "Disk", source: source.into() });
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, path: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_full_disk_is_said_clearly_registers_nothing_and_is_recovered_from() {
    let disk = Arc::new(Disk::default());
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let server = Server::over(dir, Blobs::over(disk.clone(), ""), |_| {}).await;
    let claim = server.claimed().await;
    server.put_console(&claim, 0, "before\n").await.ok::<ConsoleAck>();
    disk.full.store(true, Ordering::SeqCst);

    // Few bytes are no object, and need no store of them.
    server.put_console(&claim, 7, "line\n").await.ok::<ConsoleAck>();
    let during = "during\n".repeat(2000);
    let answer = server.put_console(&claim, 12, during.clone()).await;
    let problem = answer.problem(503, kind::UNAVAILABLE);
    assert!(problem.next.contains("try again"), "{}", problem.next);
    assert_eq!(answer.header("retry-after"), "5");
    server.put_chunk(&claim, "vmcore", 0, &[1; 10_000]).await.problem(503, kind::UNAVAILABLE);
    server.get("/readyz").await.problem(503, kind::UNAVAILABLE);
    // What needs no disk goes on.
    server.report(&claim, Role::Target, 0, note("alive")).await.ok::<ReportsReply>();
    let artifacts: Vec<Artifact> = server.get(format!("/api/v1/attempts/{}/artifacts", claim.attempt)).await.ok();
    let sizes: Vec<_> = artifacts.iter().map(|artifact| (artifact.name.as_str(), artifact.size)).collect();
    assert_eq!(sizes, [("console-serial0", 12), ("vmcore", 0)]);
    let path = format!("/agent/v1/attempts/{}/artifacts/vmcore", claim.attempt);
    assert!(server.call(Call::get(path).by_agent(&claim)).await.ok::<Upload>().chunks.is_empty());

    disk.full.store(false, Ordering::SeqCst);
    assert_eq!(server.put_console(&claim, 12, during.clone()).await.ok::<ConsoleAck>().next_offset, 14_012);
    server.put_chunk(&claim, "vmcore", 0, &[1; 10_000]).await.no_content();
    assert_eq!(server.get("/readyz").await.status, 200);
}

/// The way to a database, which can be cut and mended.
struct Way {
    dir: tempfile::TempDir,
    real: std::path::PathBuf,
    open: tokio::task::JoinSet<()>,
}

impl Way {
    /// A way to the socket that a database URL of the test kit names.
    fn to(url: &str) -> (Self, String) {
        let host = url.split('@').nth(1).unwrap().split('/').next().unwrap().replace("%2F", "/");
        let dir = tempfile::tempdir().unwrap();
        let through = url.replace(&host.replace('/', "%2F"), &dir.path().to_str().unwrap().replace('/', "%2F"));
        let real = std::path::Path::new(&host).join(".s.PGSQL.5432");
        let mut way = Self { dir, real, open: tokio::task::JoinSet::new() };
        way.mend();
        (way, through)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }

    fn mend(&mut self) {
        let listener = tokio::net::UnixListener::bind(self.socket()).unwrap();
        let real = self.real.clone();
        self.open.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let real = real.clone();
                connections.spawn(async move {
                    let mut server = tokio::net::UnixStream::connect(real).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
    }

    /// Every connection breaks, and no new one can be made.
    async fn cut(&mut self) {
        self.open.shutdown().await;
        std::fs::remove_file(self.socket()).unwrap();
    }
}

#[tokio::test]
async fn a_postgresql_that_goes_away_is_said_clearly_and_its_return_is_noticed() {
    let postgres = crashyard_testkit::Postgres::start().unwrap();
    let (mut way, url) = Way::to(&postgres.database("farm").unwrap());
    let server = Server::with(|config| config.database_url = url).await;
    let claim: Claim = server.claimed().await;
    server.put_console(&claim, 0, "before\n").await.ok::<ConsoleAck>();
    way.cut().await;
    server.put_console(&claim, 7, "during\n").await.problem(503, kind::UNAVAILABLE);
    server.report(&claim, Role::Target, 0, note("x")).await.problem(503, kind::UNAVAILABLE);
    server.get("/readyz").await.problem(503, kind::UNAVAILABLE);
    assert_eq!(server.get("/healthz").await.status, 200, "the process itself is well");
    way.mend();
    assert_eq!(server.put_console(&claim, 7, "during\n").await.ok::<ConsoleAck>().next_offset, 14);
    server.report(&claim, Role::Target, 0, note("x")).await.ok::<ReportsReply>();
    assert_eq!(server.get("/readyz").await.status, 200);
    server.state.db.close().await;
}
