//! What every handler and pass works with.

use crate::blobs::Blobs;
use crate::config::Config;
use crate::consoles::Consoles;
use crate::credentials::Credentials;
use crate::db::Db;
use crate::group::Group;
use crate::ids::Ids;
use crate::judging::Judging;
use crate::ledger_writer::LedgerWriter;
use crate::metrics::Metrics;
use crate::opener::Opener;
use crate::passes::aside::Aside;
use crate::placer::Placer;
use crate::receiver::Receiver;
use crate::renewer::Renewer;
use crate::terms::KnownTerms;
use crate::wake::Wake;
use crashyard_protocol::clock::{Clock, Timestamp};
use crashyard_protocol::{ArtifactId, AttemptId};
use crashyard_vmcore::TableCache;
use rand::Rng;
use std::collections::BTreeSet;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// Tables of three or four kernels.
const TABLES_BYTES: usize = 48 << 20;

/// The parts of a running server. Nothing here would be missed after a `kill -9`.
pub struct App {
    /// The ledger.
    pub db: Db,
    /// Where bytes are.
    pub blobs: Blobs,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Fresh ids and secrets.
    pub ids: Ids,
    /// Who waits for what.
    pub wake: Wake,
    /// What the operator set.
    pub config: Config,
    /// What live attempts are to show: a cache over the ledger.
    pub terms: Arc<KnownTerms>,
    /// Readers of live consoles: a cache over the recorded bytes.
    pub consoles: Arc<Consoles>,
    /// Attempts with evidence that could not be judged when it came. Lost with the process and then not needed: a
    /// server that starts judges every live attempt.
    pub unjudged: Mutex<BTreeSet<AttemptId>>,
    /// Attempts whose evidence could not be read.
    pub unreadable: Aside<AttemptId>,
    /// Consoles that could not be put together.
    pub unmerged: Aside<ArtifactId>,
    /// When it was last looked whether anything is owed. Lost with the process, which looks after a start anyway.
    pub reconciled_at: Mutex<Option<Timestamp>>,
    /// Decoded tables of kernels whose dumps were read: a cache, made again from the next dump.
    pub tables: Arc<TableCache>,
    /// Groups evidence writes into commits.
    pub writer: Group<LedgerWriter>,
    /// Groups claims into commits.
    pub placer: Group<Placer>,
    /// Renews leases.
    pub renewer: Group<Renewer>,
    /// Opens files and consoles.
    pub opener: Group<Opener>,
    /// Registers chunks of uploads.
    pub receiver: Group<Receiver>,
    /// Records what agents hand in, judges attempts, and settles the jobs of those that have ended.
    pub judging: Group<Judging>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server is to stop.
    pub stop: CancellationToken,
    /// When this server started.
    pub started_at: Timestamp,
    /// Tokens that were used a moment ago.
    pub credentials: Credentials,
    /// This start of this server.
    pub instance: String,
}

/// A shared handle to the server.
#[derive(Clone)]
pub struct AppState(Arc<App>);

impl Deref for AppState {
    type Target = App;

    fn deref(&self) -> &App {
        &self.0
    }
}

impl AppState {
    /// Puts a server together. Nothing runs yet but what groups writes, which ends with the last handle.
    #[must_use]
    pub fn new(db: Db, blobs: Blobs, clock: Arc<dyn Clock>, random: Box<dyn Rng + Send>, config: Config) -> Self {
        let ids = Ids::new(clock.clone(), random);
        let instance = ids.next().to_string();
        let (consoles, metrics, wake) = (Arc::<Consoles>::default(), Arc::<Metrics>::default(), Wake::default());
        let care = config.care();
        let terms = Arc::<KnownTerms>::default();
        let judging = Judging {
            terms: terms.clone(),
            consoles: consoles.clone(),
            wake: wake.clone(),
            metrics: metrics.clone(),
            care,
        };
        Self(Arc::new(App {
            writer: Group::start(db.clone(), LedgerWriter),
            placer: Group::start(db.clone(), Placer::default()),
            renewer: Group::start(db.clone(), Renewer),
            opener: Group::start(db.clone(), Opener),
            receiver: Group::start(db.clone(), Receiver),
            judging: Group::start(db.clone(), judging),
            db,
            blobs,
            started_at: clock.now(),
            clock,
            ids,
            wake,
            config,
            terms,
            consoles,
            unjudged: Mutex::default(),
            unreadable: Aside::default(),
            unmerged: Aside::default(),
            reconciled_at: Mutex::default(),
            tables: Arc::new(TableCache::new(TABLES_BYTES)),
            metrics,
            stop: CancellationToken::new(),
            credentials: Credentials::default(),
            instance,
        }))
    }

    /// The current time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl std::fmt::Debug for AppState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppState").field("instance", &self.instance).finish_non_exhaustive()
    }
}
