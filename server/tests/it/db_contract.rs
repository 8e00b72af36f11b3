//! The ledger's contract, on SQLite and on a PostgreSQL of the test's own: every function of `db`, with real NULLs,
//! repeated writes and two writers at once.
//!
//! One list of checks, run on both. A check that is not on the list is no promise.

use crashyard_protocol::agent::{CHUNK_BYTES, Report, Role};
use crashyard_protocol::api::{EventBody, Policy};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::*;
use crashyard_server::db::artifact::{self, Append, AppendOutcome, Owner, SegmentRow};
use crashyard_server::db::build::{self, BuildRow};
use crashyard_server::db::chunk::{self, Arrived, ChunkOutcome};
use crashyard_server::db::event::{self, About};
use crashyard_server::db::judgement::{self, Judged, Verdict};
use crashyard_server::db::lease::{self, End, Renewal};
use crashyard_server::db::life;
use crashyard_server::db::machine::{self, ControllerRow, Idle, MachineRow};
use crashyard_server::db::plan::{self, PlanBody, PlanRow, ScenarioRow};
use crashyard_server::db::queue::{self, Ask, Leased, NewLease};
use crashyard_server::db::report::{self, ReportRow};
use crashyard_server::db::run::{self, JobChange, JobRow, RunRow};
use crashyard_server::db::settle::{self, Care, Settled};
use crashyard_server::db::signature::{self, NewPlace, NewSignature};
use crashyard_server::db::token::{self, TokenRow};
use crashyard_server::db::tree::{self, CheckoutRow, TreeRow};
use crashyard_server::db::{Db, DbError, DbResult, Pool, Tx, attempt, flow, presence};
use crashyard_server::selector::Selector;
use crashyard_server::trust::Rule;
use sqlx::types::Json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_000_000);

const CARE: Care = Care { tries: 2, rule: Rule { failures: 0, window: 5, probation: Duration::from_secs(600) } };

fn ulid() -> ulid::Ulid {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    ulid::Ulid::from_parts(1_000_000, u128::from(DRAWN.fetch_add(1, Ordering::SeqCst)))
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp(NOW.0 + seconds * 1000)
}

async fn begin(db: &Db) -> Tx {
    db.begin().await.unwrap()
}

/// Runs a write in a transaction of its own.
macro_rules! write {
    ($db:expr, |$tx:ident| $body:expr) => {{
        let mut tx = begin($db).await;
        let $tx = &mut tx;
        let done = $body.await.unwrap();
        tx.commit().await.unwrap();
        done
    }};
}

/// Ends one attempt.
async fn end_one(
    tx: &mut Tx,
    id: &AttemptId,
    end: &End<'_>,
    rule: &Rule,
    now: Timestamp,
) -> DbResult<Option<attempt::AttemptRow>> {
    Ok(lease::end(tx, &[(id, end.clone())], rule, now).await?.pop())
}

// After the macro, which they use.
mod dumps;
mod fleet;
mod share;
mod together;

#[tokio::test]
async fn the_ledger_keeps_its_contract_on_sqlite() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&format!("sqlite:{}", dir.path().join("farm.db").display()), 4).await.unwrap();
    every_check(&db).await;
    db.close().await;
}

#[tokio::test]
async fn the_ledger_keeps_its_contract_on_postgresql() {
    let postgres = crashyard_testkit::Postgres::start().unwrap();
    let db = Db::open(&postgres.database("farm").unwrap(), 8).await.unwrap();
    every_check(&db).await;
    db.close().await;
}

#[tokio::test]
async fn postgresql_compiles_no_statement_whatever_it_expects_of_a_long_queue() {
    let postgres = crashyard_testkit::Postgres::start().unwrap();
    let db = Db::open(&postgres.database("farm").unwrap(), 8).await.unwrap();
    let Pool::Postgres(lender) = db.read() else { panic!("this is PostgreSQL") };
    let jit: String = sqlx::query_scalar("SHOW jit").fetch_one(&mut *lender.lend().await.unwrap()).await.unwrap();
    assert_eq!(jit, "off");
    db.close().await;
}

async fn every_check(db: &Db) {
    trees_and_checkouts(db).await;
    builds(db).await;
    scenarios_and_plans(db).await;
    tokens(db).await;
    machines_and_selectors(db).await;
    queue_and_leases(db).await;
    two_claimants(db).await;
    Box::pin(share::fair_share(db)).await;
    Box::pin(fleet::fleet(db)).await;
    judgements(db).await;
    judged_together(db).await;
    reports_and_events(db).await;
    uploads(db).await;
    whole_files(db).await;
    dumps::dumps(db).await;
    dumps::unread(db).await;
    consoles(db).await;
    compaction(db).await;
    runs(db).await;
    endings(db).await;
    together::together(db).await;
    presence(db).await;
    signatures(db).await;
    rolled_back(db).await;
}

async fn trees_and_checkouts(db: &Db) {
    let row = |name: &str, url: Option<&str>| TreeRow {
        id: TreeId::from_ulid(ulid()),
        name: name.into(),
        git_url: url.map(str::to_owned),
        created_at: NOW,
    };
    let first = write!(db, |tx| tree::create_tree(tx, &row("next", None)));
    assert_eq!(first.git_url, None, "a real NULL");
    let named = write!(db, |tx| tree::create_tree(tx, &row("next", Some("https://x"))));
    let kept = write!(db, |tx| tree::create_tree(tx, &row("next", None)));
    assert_eq!((named.id, kept.git_url.as_deref()), (first.id.clone(), Some("https://x")));
    assert_eq!(tree::tree_by_name(db, "next").await.unwrap().id, first.id);
    assert_eq!(tree::tree(db, &first.id).await.unwrap().name, "next");
    assert!(matches!(tree::tree(db, &TreeId::from_ulid(ulid())).await, Err(DbError::NotFound)));
    let second = write!(db, |tx| tree::create_tree(tx, &row("stable", None)));
    let page = tree::list_trees(db, None, 1).await.unwrap();
    assert_eq!(page[0].id, second.id, "newest first");
    assert_eq!(tree::list_trees(db, Some(second.id.as_str()), 10).await.unwrap().len(), 1);

    let row = |branch: Option<&str>| CheckoutRow {
        id: CheckoutId::from_ulid(ulid()),
        tree_id: first.id.clone(),
        git_commit_hash: "a".repeat(40),
        git_repository_branch: branch.map(str::to_owned),
        git_commit_name: None,
        created_at: NOW,
    };
    let one = write!(db, |tx| tree::create_checkout(tx, &row(None)));
    let two = write!(db, |tx| tree::create_checkout(tx, &row(Some("master"))));
    assert_eq!((one.id.clone(), two.git_repository_branch.as_deref()), (two.id, Some("master")));
    assert_eq!(tree::checkout(db, &one.id).await.unwrap().git_commit_name, None);
    assert_eq!(tree::list_checkouts(db, None, 10).await.unwrap().len(), 1);
    let orphan = CheckoutRow { tree_id: TreeId::from_ulid(ulid()), git_commit_hash: "b".repeat(40), ..row(None) };
    let mut tx = begin(db).await;
    assert!(tree::create_checkout(&mut tx, &orphan).await.is_err(), "foreign keys hold");
}

fn build_row(key: Option<&str>) -> BuildRow {
    BuildRow {
        id: BuildId::from_ulid(ulid()),
        checkout_id: None,
        idempotency_key: key.map(str::to_owned),
        name: "linux".into(),
        architecture: "x86_64".into(),
        release: "6.1".into(),
        build_id: None,
        config_name: None,
        cmdline: String::new(),
        created_at: NOW,
    }
}

async fn builds(db: &Db) {
    let one = write!(db, |tx| build::create(tx, &build_row(Some("k"))));
    let two = write!(db, |tx| build::create(tx, &build_row(Some("k"))));
    assert_eq!(one, two);
    let three = write!(db, |tx| build::create(tx, &build_row(None)));
    let four = write!(db, |tx| build::create(tx, &build_row(None)));
    assert_ne!(three.id, four.id, "without a key each is its own");
    assert_eq!(build::get(db, &three.id).await.unwrap(), three);
    assert_eq!(build::list(db, None, 2).await.unwrap().len(), 2);
}

fn scenario() -> Scenario {
    serde_json::from_value(crate::harness::scenario("sysrq")).unwrap()
}

async fn scenarios_and_plans(db: &Db) {
    let row = |title: &str, seconds| ScenarioRow {
        id: ScenarioId::from_ulid(ulid()),
        name: "sysrq".into(),
        body: Json(Scenario { title: title.into(), ..scenario() }),
        updated_at: at(seconds),
    };
    let first = write!(db, |tx| plan::put_scenario(tx, &row("one", 0)));
    let same = write!(db, |tx| plan::put_scenario(tx, &row("one", 5)));
    assert_eq!((&same.id, same.updated_at), (&first.id, NOW), "equal content is no change");
    let changed = write!(db, |tx| plan::put_scenario(tx, &row("two", 6)));
    assert_eq!((&changed.id, changed.updated_at), (&first.id, at(6)));
    assert_eq!(plan::scenario(db, "sysrq").await.unwrap().body.title, "two");
    assert!(matches!(plan::scenario(db, "nope").await, Err(DbError::NotFound)));
    assert_eq!(plan::list_scenarios(db, None, 10).await.unwrap().len(), 1);

    let row = |repetitions, seconds| PlanRow {
        id: PlanId::from_ulid(ulid()),
        name: "smoke".into(),
        body: Json(PlanBody {
            scenarios: vec!["sysrq".into()],
            selector: [].into(),
            requires: Vec::new(),
            repetitions,
            policy: Policy::default(),
        }),
        updated_at: at(seconds),
    };
    write!(db, |tx| plan::put_plan(tx, &row(1, 0)));
    assert_eq!(write!(db, |tx| plan::put_plan(tx, &row(1, 5))).updated_at, NOW);
    assert_eq!(write!(db, |tx| plan::put_plan(tx, &row(2, 6))).updated_at, at(6));
    assert_eq!(plan::plan(db, "smoke").await.unwrap().body.repetitions, 2);
    assert_eq!(plan::list_plans(db, None, 10).await.unwrap().len(), 1);
}

fn token_row(scope: Scope) -> TokenRow {
    TokenRow {
        id: TokenId::from_ulid(ulid()),
        name: "t".into(),
        scope,
        attempt_id: None,
        created_at: NOW,
        expires_at: None,
        revoked_at: None,
    }
}

async fn tokens(db: &Db) {
    assert!(!token::any_admin(db).await.unwrap());
    let row = token_row(Scope::Admin);
    write!(db, |tx| token::create(tx, &row, "hash-1"));
    assert!(token::any_admin(db).await.unwrap());
    let found = token::by_secret_hash(db, "hash-1").await.unwrap().unwrap();
    assert_eq!(
        (found.id, found.scope, found.attempt_state, found.expires_at),
        (row.id.clone(), Scope::Admin, None, None)
    );
    assert!(token::by_secret_hash(db, "hash-2").await.unwrap().is_none());
    let mut tx = begin(db).await;
    let twice = token::create(&mut tx, &token_row(Scope::Submit), "hash-1").await;
    assert!(matches!(twice, Err(DbError::Conflict(_))), "{twice:?}");
    drop(tx);
    let revoked = write!(db, |tx| token::revoke(tx, &row.id, at(1)));
    let again = write!(db, |tx| token::revoke(tx, &row.id, at(9)));
    assert_eq!((revoked.revoked_at, again.revoked_at), (Some(at(1)), Some(at(1))));
    assert!(!token::any_admin(db).await.unwrap());
    assert_eq!(token::list(db, None, 10).await.unwrap().len(), 1);
}

fn machine_row(name: &str, controller: &ControllerId) -> MachineRow {
    MachineRow {
        id: MachineId::from_ulid(ulid()),
        name: name.into(),
        driver: "fake".into(),
        controller_id: controller.clone(),
        labels: Json([("arch".to_owned(), "x86_64".to_owned())].into()),
        announced: true,
        state: MachineState::Enrolled,
        reason: None,
        state_since: NOW,
        attempt_id: None,
        lease_epoch: 0,
        last_seen_at: NOW,
        created_at: NOW,
        quarantined_until: None,
        probation: 0,
        seen_labels: Json([].into()),
        differs: None,
        errand_owed: false,
    }
}

async fn controller(db: &Db, name: &str) -> ControllerRow {
    let row = ControllerRow {
        id: ControllerId::from_ulid(ulid()),
        name: name.into(),
        version: "1".into(),
        created_at: NOW,
        last_seen_at: NOW,
    };
    write!(db, |tx| machine::put_controller(tx, &row))
}

async fn machine(db: &Db, name: &str, controller: &ControllerId) -> MachineRow {
    let row = machine_row(name, controller);
    let put = write!(db, |tx| machine::put_machine(tx, &row));
    write!(db, |tx| machine::match_machine(tx, &put));
    put
}

async fn selector(db: &Db, labels: &[(&str, &str)]) -> SelectorId {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let id = SelectorId::from_ulid(ulid());
    let selector = Selector::new(&labels, &[]).unwrap();
    write!(db, |tx| machine::put_selector(tx, &id, &selector))
}

async fn machines_and_selectors(db: &Db) {
    let one = controller(db, "c-machines").await;
    assert_eq!(controller(db, "c-machines").await.id, one.id);
    assert!(machine::controller_exists(db, &one.id).await.unwrap());
    assert!(!machine::controller_exists(db, &ControllerId::from_ulid(ulid())).await.unwrap());
    let m1 = machine(db, "mm1", &one.id).await;
    let m2 = machine(db, "mm2", &one.id).await;
    assert_eq!(machine(db, "mm1", &one.id).await.id, m1.id, "enrolling again keeps the id");
    // A selector that is older than a machine, and one that is younger, both find it.
    let by_name = selector(db, &[("name", "mm1")]).await;
    let by_label = selector(db, &[("arch", "x86_64"), ("driver", "fake")]).await;
    assert_eq!(selector(db, &[("driver", "fake"), ("arch", "x86_64")]).await, by_label, "one row for equal labels");
    let m3 = machine(db, "mm3", &one.id).await;
    assert_eq!(queue::idle_machines(db, &by_name).await.unwrap(), std::slice::from_ref(&m1.id));
    let mut idle = queue::idle_machines(db, &by_label).await.unwrap();
    idle.sort();
    assert_eq!(idle, [m1.id.clone(), m2.id.clone(), m3.id.clone()]);

    let other = controller(db, "c-other").await;
    let mut tx = begin(db).await;
    let taken = machine::put_machine(&mut tx, &machine_row("mm1", &other.id)).await;
    assert!(matches!(taken, Err(DbError::Conflict(_))), "{taken:?}");
    drop(tx);
    // Waits for what was rolled back; a machine that somebody is writing is not marked as seen.
    write!(db, |tx| machine::put_machine(tx, &machine_row("mm1", &one.id)));
    let idle = [Idle { controller: one.id.clone(), machine: m1.id.clone() }];
    write!(db, |tx| machine::seen(tx, &[&one.id].into(), &idle, at(3)));
    let seen = machine::get(db, &m1.id).await.unwrap();
    assert_eq!(
        (seen.machine.state, seen.machine.state_since, seen.controller_name.as_str()),
        (MachineState::Available, at(3), "c-machines")
    );
    let away = write!(db, |tx| life::decide(tx, &m1.id, MachineState::Quarantined, Some("mine"), "token:me", at(4)));
    assert_eq!(away.unwrap().reason.as_deref(), Some("mine"));
    write!(db, |tx| machine::seen(tx, &[&one.id].into(), &idle, at(9)));
    assert_eq!(machine::get(db, &m1.id).await.unwrap().machine.state, MachineState::Quarantined, "a person says so");
    assert_eq!(machine::by_name(db, "mm1").await.unwrap().machine.id, m1.id);
    write!(db, |tx| machine::withdraw_machines(tx, &one.id));
    assert!(machine::announced(db, &one.id, std::slice::from_ref(&m1.id)).await.unwrap().is_empty());
    assert!(queue::idle_machines(db, &by_label).await.unwrap().is_empty());
    assert_eq!(machine::list(db, None, 2).await.unwrap().len(), 2);
    let moved = write!(db, |tx| machine::put_machine(tx, &machine_row("mm1", &other.id)));
    assert_eq!((moved.id, moved.controller_id), (m1.id, other.id));
}

async fn flow(db: &Db, selector: &SelectorId, submitter: &str, priority: Priority) -> FlowId {
    let (id, flow) = (SubmitterId::from_ulid(ulid()), FlowId::from_ulid(ulid()));
    let submitter = write!(db, |tx| flow::put_submitter(tx, &id, submitter, NOW));
    write!(db, |tx| flow::put_flow(tx, &flow, selector, &submitter, priority))
}

/// A farm of its own: a controller with machines that only its runs select.
struct Farm {
    name: String,
    controller: ControllerId,
    machines: Vec<MachineRow>,
    selector: SelectorId,
    flow: FlowId,
    build: BuildRow,
}

async fn farm(db: &Db, name: &str, machines: usize) -> Farm {
    let controller = controller(db, name).await.id;
    let mut rows = Vec::new();
    for index in 0..machines {
        let row = MachineRow {
            labels: Json([("farm".to_owned(), name.to_owned())].into()),
            ..machine_row(&format!("{name}-{index}"), &controller)
        };
        let put = write!(db, |tx| machine::put_machine(tx, &row));
        write!(db, |tx| machine::match_machine(tx, &put));
        rows.push(put);
    }
    let selector = selector(db, &[("farm", name)]).await;
    let build = write!(db, |tx| build::create(tx, &build_row(None)));
    let flow = flow(db, &selector, name, Priority::Normal).await;
    Farm { name: name.into(), controller, machines: rows, selector, flow, build }
}

fn run_row(farm: &Farm, key: Option<&str>) -> RunRow {
    RunRow {
        id: RunId::from_ulid(ulid()),
        build_id: farm.build.id.clone(),
        name: farm.name.clone(),
        plan: "smoke".into(),
        idempotency_key: key.map(str::to_owned),
        state: RunState::Open,
        status: Status::Miss,
        created_at: NOW,
        finished_at: None,
        last_event: 0,
    }
}

fn job_row(farm: &Farm, run: &RunId, ordinal: i64) -> JobRow {
    JobRow {
        id: JobId::from_ulid(ulid()),
        run_id: run.clone(),
        ordinal,
        scenario: Json(scenario()),
        selector_id: farm.selector.clone(),
        flow_id: farm.flow.clone(),
        deadline_at: None,
        rank: NOW.0 + ordinal,
        state: JobState::Queued,
        status: Status::Miss,
        reason: None,
        blamed_stage: None,
        attempt_count: 0,
        created_at: NOW,
        finished_at: None,
        policy: Json(Policy::default()),
        purpose: Purpose::Test,
        only_machine_id: None,
        not_machine_id: None,
    }
}

async fn submit(db: &Db, farm: &Farm, jobs: i64) -> (RunRow, Vec<JobRow>) {
    let run = run_row(farm, None);
    let jobs: Vec<_> = (0..jobs).map(|ordinal| job_row(farm, &run.id, ordinal)).collect();
    let (run, made) = write!(db, |tx| run::create(tx, &run, &jobs));
    assert!(made);
    (run, jobs)
}

fn new_lease(farm: &Farm, now: Timestamp) -> NewLease {
    NewLease {
        attempt: AttemptId::from_ulid(ulid()),
        secret_hash: "secret".into(),
        controller: farm.controller.clone(),
        now,
        expires_at: now.plus(Duration::from_secs(60)),
    }
}

async fn lease(db: &Db, farm: &Farm, machine: usize) -> Option<Leased> {
    lease_until(db, farm, machine, None).await
}

/// The same for an attempt that the judge wants to look at first at `check_at`.
async fn lease_until(db: &Db, farm: &Farm, machine: usize, check_at: Option<Timestamp>) -> Option<Leased> {
    let machine = farm.machines[machine].id.clone();
    let new = new_lease(farm, NOW);
    let mut tx = begin(db).await;
    let leased = lease_next(&mut tx, &machine, &new, check_at).await.unwrap();
    tx.commit().await.unwrap();
    leased
}

/// Gives the machine the job that is its turn, as a claim for it alone does.
async fn lease_next(
    tx: &mut Tx,
    machine: &MachineId,
    new: &NewLease,
    check_at: Option<Timestamp>,
) -> DbResult<Option<Leased>> {
    let mut batch = queue::take(tx, &[Ask { lease: new.clone(), machines: vec![machine.clone()] }]).await?;
    for taken in batch.taken.iter_mut().flatten() {
        taken.check_at = check_at;
    }
    queue::open(tx, &batch).await?;
    Ok(queue::record(tx, batch).await?.pop().flatten())
}

async fn queue_and_leases(db: &Db) {
    let farm = farm(db, "f-queue", 2).await;
    let machine = &farm.machines[0].id;
    assert!(!queue::with_work(db, std::slice::from_ref(machine)).await.unwrap().jobs.contains(machine));
    assert!(lease(db, &farm, 0).await.is_none());
    let (run, jobs) = submit(db, &farm, 3).await;
    assert!(queue::with_work(db, std::slice::from_ref(machine)).await.unwrap().jobs.contains(machine));
    assert_eq!(queue::waiting_for(db, machine).await.unwrap(), [(farm.selector.clone(), 3)]);
    let first = lease(db, &farm, 0).await.unwrap();
    assert_eq!((first.job.id.clone(), first.attempt.number, first.attempt.epoch), (jobs[0].id.clone(), 1, 1));
    let row = machine::get(db, machine).await.unwrap().machine;
    assert_eq!(
        (row.state, row.attempt_id.as_ref(), row.lease_epoch),
        (MachineState::Leased, Some(&first.attempt.id), 1)
    );
    assert!(lease(db, &farm, 0).await.is_none(), "a machine has at most one lease");
    assert_eq!(lease(db, &farm, 1).await.unwrap().job.id, jobs[1].id);
    let builds = build::of_runs(&mut begin(db).await, &[&run.id].into()).await.unwrap();
    assert_eq!((builds[&run.id].release.as_str(), &builds[&run.id].build_id), ("6.1", &None));

    let id = &first.attempt.id;
    let full = attempt::full(db, id).await.unwrap();
    let terms = attempt::terms(db, &full.attempt.id).await.unwrap();
    assert_eq!(
        (full.machine_name.as_str(), terms.build_id.as_deref(), full.attempt.judged_at),
        ("f-queue-0", None, None)
    );
    assert_eq!(attempt::get_in(&mut begin(db).await, id).await.unwrap(), first.attempt);
    assert_eq!(attempt::of_run(db, &run.id).await.unwrap().len(), 2);
    assert_eq!(attempt::of_machine(db, machine, 5).await.unwrap().len(), 1);
    assert_eq!(run::attempts_by_job(db, &run.id).await.unwrap()[0], (jobs[0].id.clone(), id.clone()));
    assert_eq!(run::attempts_of(db, &jobs[0].id).await.unwrap(), std::slice::from_ref(id));
    assert!(attempt::live(db).await.unwrap().contains(id));

    let renewal = |attempt: &AttemptId, epoch, until| Renewal { attempt: attempt.clone(), epoch, until };
    let unknown = AttemptId::from_ulid(ulid());
    let all = [renewal(id, 1, at(100)), renewal(&unknown, 1, at(100))];
    let renewed = write!(db, |tx| lease::renew(tx, &all));
    assert_eq!(renewed[0].as_ref().unwrap().state, AttemptState::Running);
    assert!(matches!(renewed[1], Err(DbError::NotFound)), "one that is unknown spoils nothing");
    assert_eq!(attempt::get(db, id).await.unwrap().lease_expires_at, at(100));
    let stale = write!(db, |tx| lease::renew(tx, &[renewal(id, 2, at(200))]));
    assert!(matches!(stale[0], Err(DbError::LeaseLost(_))));
    assert_eq!(attempt::get(db, id).await.unwrap().lease_expires_at, at(100));
    assert_eq!(lease::standing(db, id, 1).await.unwrap().id, *id);
    assert!(matches!(lease::standing(db, id, 2).await, Err(DbError::LeaseLost(_))));
    assert!(lease::next_expiry(db).await.unwrap().is_some());

    // An answer that was lost on the way: the same attempt under a new epoch, as long as nothing came of it.
    write!(db, |tx| attempt::replace_secret(tx, id, "attempt-1"));
    let before = TokenRow { attempt_id: Some(id.clone()), ..token_row(Scope::Attempt) };
    write!(db, |tx| token::create(tx, &before, "of a server before"));
    let credential = token::by_secret_hash(db, "of a server before").await.unwrap().unwrap();
    assert_eq!((credential.attempt_id, credential.attempt_state), (Some(id.clone()), Some(AttemptState::Running)));
    let again = write!(db, |tx| lease::hand_out_again(tx, machine, &farm.controller, at(60))).unwrap();
    assert_eq!((again.id.clone(), again.epoch), (id.clone(), 2));
    write!(db, |tx| attempt::replace_secret(tx, id, "attempt-2"));
    assert!(attempt::credential(db, id, "attempt-1").await.unwrap().is_none());
    assert!(token::by_secret_hash(db, "of a server before").await.unwrap().is_none());
    let credential = attempt::credential(db, id, "attempt-2").await.unwrap().unwrap();
    assert_eq!(credential.scope, Scope::Attempt);
    assert_eq!((credential.attempt_id, credential.attempt_state), (Some(id.clone()), Some(AttemptState::Running)));
    record(db, id, Role::Controller, 0, "power").await;
    assert!(write!(db, |tx| report::anything_came(tx, id)));
    assert!(write!(db, |tx| lease::hand_out_again(tx, machine, &farm.controller, at(60))).is_none());
}

/// Two claimants at once, on different machines and on the same one: never two leases of one job or one machine.
async fn two_claimants(db: &Db) {
    let farm = farm(db, "f-race", 8).await;
    let (_, jobs) = submit(db, &farm, 5).await;
    let claims = (0..16).map(|index| {
        let (db, machine, new) = (db.clone(), farm.machines[index % 8].id.clone(), new_lease(&farm, NOW));
        tokio::spawn(async move {
            let mut tx = db.begin().await.unwrap();
            match lease_next(&mut tx, &machine, &new, None).await {
                Ok(Some(leased)) => tx.commit().await.map(|()| leased).ok(),
                Ok(None) | Err(DbError::Conflict(_) | DbError::Unavailable(_)) => None,
                Err(error) => panic!("{error}"),
            }
        })
    });
    let mut leased: Vec<Leased> = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        leased.extend(claim.await.unwrap());
    }
    // Whoever lost a race asks again.
    for index in 0..8 {
        leased.extend(lease(db, &farm, index).await);
    }
    let mut given: Vec<_> = leased.iter().map(|leased| leased.job.id.clone()).collect();
    given.sort();
    assert_eq!(given, jobs.iter().map(|job| job.id.clone()).collect::<Vec<_>>(), "every job once");
    let mut used: Vec<_> = leased.iter().map(|leased| leased.machine.id.clone()).collect();
    used.sort();
    used.dedup();
    assert_eq!(used.len(), 5, "every machine once");
}

fn stages(settled: usize) -> Vec<Stage> {
    StageName::ALL
        .iter()
        .enumerate()
        .map(|(index, name)| Stage {
            name: *name,
            state: if index < settled { StageState::Proven } else { StageState::Pending },
            status: (index < settled).then_some(Status::Pass),
            started_at: None,
            deadline_at: None,
            settled_at: None,
            reason: None,
            proofs: Vec::new(),
        })
        .collect()
}

fn verdict(settled: usize, verdict: Option<Status>) -> Verdict {
    Verdict {
        stages: stages(settled),
        verdict: verdict.map(|verdict| (verdict, Some(StageName::Captured), Some("why".into()))),
        signature: verdict.map(|_| "BUG: x".into()),
        collecting: verdict.is_some(),
        check_at: verdict.is_none().then_some(at(50)),
    }
}

/// Whether the judgement changed anything.
async fn judge(
    db: &Db,
    before: &attempt::AttemptRow,
    stages_before: &[Stage],
    verdict: &Verdict,
    at: Timestamp,
) -> bool {
    let judged = [Judged { before, stages: stages_before, verdict }];
    write!(db, |tx| judge_all(tx, &judged, at)) == [true]
}

/// Writes judgements and tells of them, as the server does it.
async fn judge_all(tx: &mut Tx, judged: &[Judged<'_>], at: Timestamp) -> DbResult<Vec<bool>> {
    let changed = judgement::write_all(tx, judged, at).await?;
    let mut told = BTreeMap::new();
    judgement::tell(judged, &mut told);
    event::append_all(tx, at, &told).await?;
    Ok(changed)
}

/// Settles the jobs of attempts that have ended, as the server does it.
async fn settle(db: &Db, ended: &[&attempt::AttemptRow], care: &Care, at: Timestamp) -> Vec<Settled> {
    let mut tx = begin(db).await;
    let settling = settle::settle(&mut tx, ended, care, at).await.unwrap();
    let mut told = BTreeMap::new();
    settling.tell(ended, &mut told);
    event::append_all(&mut tx, at, &told).await.unwrap();
    settle::follow(&mut tx, &settling, at).await.unwrap();
    tx.commit().await.unwrap();
    settling.settled
}

async fn judgements(db: &Db) {
    let farm = farm(db, "f-judge", 1).await;
    let (run, jobs) = submit(db, &farm, 1).await;
    let leased = lease_until(db, &farm, 0, Some(at(40))).await.unwrap();
    let id = &leased.attempt.id;
    write!(db, |tx| judgement::open_all(tx, &[(id.clone(), stages(0))]));
    assert_eq!(attempt::stages(db, id).await.unwrap(), stages(0));
    assert_eq!(attempt::stages_of_run(db, &run.id).await.unwrap().get(id), Some(&stages(0)));
    assert!(!attempt::due(db, at(39), 100).await.unwrap().contains(id));
    assert!(attempt::due(db, at(40), 100).await.unwrap().contains(id));
    assert!(attempt::next_due(db).await.unwrap().is_some());

    let before = attempt::get(db, id).await.unwrap();
    assert!(judge(db, &before, &stages(0), &verdict(2, None), at(1)).await);
    assert_eq!(attempt::stages(db, id).await.unwrap(), stages(2));
    let before = attempt::get(db, id).await.unwrap();
    assert!(!judge(db, &before, &stages(2), &verdict(2, None), at(3)).await, "the same again changes nothing");

    assert!(judge(db, &before, &stages(2), &verdict(4, Some(Status::Fail)), at(4)).await);
    let judged = attempt::get(db, id).await.unwrap();
    assert_eq!((judged.state, judged.verdict, judged.judged_at), (AttemptState::Collecting, Status::Fail, Some(at(4))));
    assert_eq!(
        (judged.signature.as_deref(), judged.check_at, judged.blamed_stage),
        (Some("BUG: x"), None, Some(StageName::Captured))
    );
    let job = run::job(db, &jobs[0].id).await.unwrap().job;
    assert_eq!((job.state, job.status, job.reason.as_deref()), (JobState::Leased, Status::Fail, Some("why")));
    assert!(judge(db, &judged, &stages(4), &verdict(8, Some(Status::Pass)), at(5)).await);
    assert_eq!(attempt::get(db, id).await.unwrap().verdict, Status::Fail, "a verdict is given once");

    let facts = serde_json::json!({ "release": "6.1" });
    write!(db, |tx| attempt::set_dump_facts(tx, &[(id, &facts)]));
    write!(db, |tx| attempt::set_dump_facts(tx, &[(id, &serde_json::json!({}))]));
    assert_eq!(attempt::get(db, id).await.unwrap().dump_facts.unwrap().0, facts, "the first reading stays");
    let every = Duration::from_millis(500);
    for (later, may) in [(0, true), (499, false), (500, true)] {
        let now = Timestamp(at(1).0 + later);
        let told = write!(db, |tx| attempt::may_tell_progress(tx, &[id], now, every));
        assert_eq!(told.contains(id), may, "after {later} ms");
    }
}

/// Several attempts in one transaction, each on top of what is locked.
async fn judged_together(db: &Db) {
    let farm = farm(db, "f-judge-all", 3).await;
    let (run, jobs) = submit(db, &farm, 3).await;
    let mut ids = Vec::new();
    for machine in 0..3 {
        let leased = lease_until(db, &farm, machine, Some(at(40))).await.unwrap();
        write!(db, |tx| judgement::open_all(tx, &[(leased.attempt.id.clone(), stages(0))]));
        ids.push(leased.attempt.id);
    }
    let nobody = AttemptId::from_ulid(ulid());
    let asked: Vec<&AttemptId> = ids.iter().chain([&nobody]).collect();
    let mut tx = begin(db).await;
    let locked = attempt::lock(&mut tx, &asked).await.unwrap();
    assert_eq!(locked.len(), 3, "who is not there is left out");
    let of = attempt::stages_of(&mut tx, &asked).await.unwrap();
    assert!(ids.iter().all(|id| of.get(id).is_some_and(|stages| stages.len() == 8)));
    let rows: Vec<attempt::AttemptRow> = locked.into_iter().map(|full| full.attempt).collect();
    let (before, open, fails) = (stages(0), verdict(2, None), verdict(4, Some(Status::Fail)));
    let untouched = Verdict { check_at: Some(at(40)), ..verdict(0, None) };
    let judged: Vec<Judged<'_>> = rows
        .iter()
        .zip([&open, &fails, &untouched])
        .map(|(row, verdict)| Judged { before: row, stages: &before, verdict })
        .collect();
    let last = event::of_run(db, &run.id, 0, 100).await.unwrap().len() as u64;
    assert_eq!(judge_all(&mut tx, &judged, at(1)).await.unwrap(), [true, true, false]);
    tx.commit().await.unwrap();
    let mut statuses = Vec::new();
    for (row, settled) in rows.iter().zip([2, 4, 0]) {
        assert_eq!(attempt::stages(db, &row.id).await.unwrap(), stages(settled));
        statuses.push(attempt::get(db, &row.id).await.unwrap().verdict);
    }
    assert_eq!(statuses, [Status::Miss, Status::Fail, Status::Miss]);
    let told = event::of_run(db, &run.id, last, 100).await.unwrap();
    assert_eq!(told.len(), 2 + 4 + 1, "six stages and a verdict");
    let mut fails = 0;
    for job in &jobs {
        fails += usize::from(run::job(db, &job.id).await.unwrap().job.status == Status::Fail);
    }
    assert_eq!(fails, 1);
}

async fn record(db: &Db, attempt: &AttemptId, role: Role, seq: u64, text: &str) -> bool {
    let row = ReportRow {
        attempt_id: attempt.clone(),
        role,
        seq: report::seq_column(seq),
        body: Json(Report::Note { text: text.into() }),
        received_at: NOW,
    };
    write!(db, |tx| report::record_all(tx, std::slice::from_ref(&row))) == [true]
}

async fn reports_and_events(db: &Db) {
    let farm = farm(db, "f-reports", 1).await;
    let (run, jobs) = submit(db, &farm, 1).await;
    let leased = lease(db, &farm, 0).await.unwrap();
    let id = &leased.attempt.id;
    assert_eq!(report::next_seq(db, id, Role::Target).await.unwrap(), 0);
    assert!(record(db, id, Role::Target, 0, "one").await);
    assert!(!record(db, id, Role::Target, 0, "one").await);
    assert!(record(db, id, Role::Capture, 0, "two").await, "each role counts for itself");
    let other = ReportRow {
        attempt_id: id.clone(),
        role: Role::Target,
        seq: 0,
        body: Json(Report::Note { text: "other".into() }),
        received_at: NOW,
    };
    let said = report::record_all(&mut begin(db).await, std::slice::from_ref(&other)).await;
    assert!(matches!(said, Err(DbError::Conflict(_))));
    let third = ReportRow { seq: 2, ..other.clone() };
    let together = [third.clone(), third.clone(), ReportRow { seq: 3, ..other.clone() }];
    let mut tx = begin(db).await;
    assert_eq!(report::record_all(&mut tx, &together).await.unwrap(), [true, false, true], "sent twice at once");
    let differs = [
        ReportRow { seq: 4, ..other.clone() },
        ReportRow { seq: 4, body: Json(Report::Note { text: "x".into() }), ..other },
    ];
    assert!(matches!(report::record_all(&mut tx, &differs).await, Err(DbError::Conflict(_))));
    drop(tx);
    assert_eq!(report::next_seq(db, id, Role::Target).await.unwrap(), 1);
    assert_eq!(report::of_attempt(db, id).await.unwrap().len(), 2);

    let before = event::of_run(db, &run.id, 0, 100).await.unwrap();
    assert_eq!(before[0].body.0, EventBody::RunSubmitted { jobs: 1 });
    assert_eq!((before[0].job_id.as_ref(), before[0].attempt_id.as_ref()), (None, None));
    let writers = (0..10).map(|_| {
        let (db, run, job, attempt) = (db.clone(), run.id.clone(), jobs[0].id.clone(), id.clone());
        tokio::spawn(async move {
            let mut tx = db.begin().await.unwrap();
            let about = About { run: &run, job: Some(&job), attempt: Some(&attempt) };
            event::append(&mut tx, about, NOW, EventBody::DumpProgress { bytes: 1 }).await.unwrap();
            tx.commit().await.unwrap();
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let events = event::of_run(db, &run.id, 0, 100).await.unwrap();
    let seqs: Vec<i64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, (1..=i64::try_from(before.len()).unwrap() + 10).collect::<Vec<_>>(), "no gaps, no doubles");
    assert_eq!(event::of_run(db, &run.id, 2, 1).await.unwrap()[0].seq, 3);
    assert!(event::of_attempt(db, id, 0, 100).await.unwrap().len() >= 10);
    assert_eq!(i64::try_from(seqs.len()).unwrap(), run::get(db, &run.id).await.unwrap().last_event);
}

fn segment(artifact: &ArtifactId, start: u64, length: u64, hash: &str) -> SegmentRow {
    SegmentRow {
        artifact_id: artifact.clone(),
        start_at: i64::try_from(start).unwrap(),
        length: i64::try_from(length).unwrap(),
        hash: hash.into(),
        received_at: NOW,
        bytes: None,
    }
}

async fn open(db: &Db, owner: &Owner, name: &str) -> artifact::ArtifactRow {
    let id = ArtifactId::from_ulid(ulid());
    let (build, attempt) = (owner.build(), owner.attempt());
    let file = artifact::NewFile { file: &id, build, attempt, called: name, opened_at: NOW };
    match write!(db, |tx| artifact::open_all(tx, &[file])).pop() {
        Some(made) => made,
        None => write!(db, |tx| artifact::named(tx, owner, name)),
    }
}

fn arrived(owner: &Owner, segment: &SegmentRow) -> Arrived {
    Arrived { owner: owner.clone(), epoch: None, segment: segment.clone(), quota: u64::MAX }
}

async fn add_chunk(db: &Db, owner: &Owner, segment: &SegmentRow) -> ChunkOutcome {
    write!(db, |tx| chunk::add_all(tx, &[arrived(owner, segment)])).answers.remove(0).unwrap()
}

async fn uploads(db: &Db) {
    let build = write!(db, |tx| build::create(tx, &build_row(None)));
    let owner = Owner::Build(build.id.clone());
    let opened = open(db, &owner, "kernel").await;
    assert_eq!(open(db, &owner, "kernel").await, opened);
    assert_eq!((opened.attempt_id.as_ref(), opened.blake3.as_ref(), opened.size), (None, None, 0));
    assert_eq!(artifact::find(db, &owner, "kernel").await.unwrap(), Some(opened.clone()));
    assert_eq!(artifact::find(db, &owner, "other").await.unwrap(), None);
    let id = &opened.id;
    let tail = segment(id, CHUNK_BYTES, 10, "b");
    assert_eq!(add_chunk(db, &owner, &tail).await, ChunkOutcome::Added { size: 10 });
    assert_eq!(add_chunk(db, &owner, &tail).await, ChunkOutcome::Had);
    let other = segment(id, CHUNK_BYTES, 10, "c");
    assert!(matches!(add_chunk(db, &owner, &other).await, ChunkOutcome::Contradicts(_)));
    let behind = segment(id, 2 * CHUNK_BYTES, 1, "d");
    assert!(matches!(add_chunk(db, &owner, &behind).await, ChunkOutcome::Contradicts(_)));
    let short = segment(id, 0, 5, "a");
    assert!(matches!(add_chunk(db, &owner, &short).await, ChunkOutcome::Contradicts(_)));
    let head = segment(id, 0, CHUNK_BYTES, "a");
    assert_eq!(add_chunk(db, &owner, &head).await, ChunkOutcome::Added { size: CHUNK_BYTES + 10 });
    assert_eq!(artifact::segments(db, id).await.unwrap(), [head.clone(), tail.clone()]);
    let found = chunk::find(db, &owner, None, "kernel", Some(0)).await.unwrap().unwrap();
    assert_eq!(
        (&found.id, found.state, found.there.unwrap().compare(&head)),
        (id, ArtifactState::Open, ChunkOutcome::Had)
    );
    for (offset, name) in [(Some(1), "kernel"), (None, "kernel"), (Some(0), "other")] {
        let found = chunk::find(db, &owner, None, name, offset).await.unwrap();
        assert_eq!((found.is_some(), found.and_then(|found| found.there)), (name == "kernel", None));
    }
    assert_eq!(artifact::segments_in(db, id, 5, 6, 10).await.unwrap(), std::slice::from_ref(&head));
    assert_eq!(artifact::segments_in(db, id, 5, CHUNK_BYTES + 1, 10).await.unwrap(), [head, tail.clone()]);
    assert_eq!(
        artifact::segments_in(db, id, CHUNK_BYTES + 9, u64::MAX, 10).await.unwrap(),
        std::slice::from_ref(&tail)
    );
    let next =
        Arrived { quota: CHUNK_BYTES + 14, ..arrived(&owner, &segment(&open(db, &owner, "more").await.id, 0, 5, "e")) };
    assert_eq!(write!(db, |tx| chunk::add_all(tx, &[next])).answers.remove(0).unwrap(), ChunkOutcome::BeyondQuota);
    write!(db, |tx| artifact::mark_mismatch(tx, id, "how", at(1)));
    assert_eq!(artifact::get(db, id).await.unwrap().mismatch.as_deref(), Some("how"));
    let done = write!(db, |tx| artifact::complete(tx, id, "whole", at(2))).unwrap();
    assert_eq!(
        (done.state, done.blake3.as_deref(), done.completed_at),
        (ArtifactState::Complete, Some("whole"), Some(at(2)))
    );
    assert!(write!(db, |tx| artifact::complete(tx, id, "whole", at(3))).is_none());
    let late = segment(id, 4 * CHUNK_BYTES, 1, "e");
    assert!(matches!(add_chunk(db, &owner, &late).await, ChunkOutcome::Contradicts(_)));
    assert_eq!(add_chunk(db, &owner, &tail).await, ChunkOutcome::Had, "one that is sent again is had for ever");
    assert_eq!(artifact::list(db, &owner).await.unwrap()[0], artifact::get(db, id).await.unwrap());
    let others = Owner::Build(write!(db, |tx| build::create(tx, &build_row(None))).id);
    let answers = write!(db, |tx| chunk::add_all(tx, &[arrived(&others, &tail)])).answers;
    assert!(matches!(answers[..], [Err(DbError::NotFound)]), "a file of others: {answers:?}");
}

async fn whole_files(db: &Db) {
    let farm = farm(db, "f-whole", 2).await;
    submit(db, &farm, 2).await;
    let one = lease(db, &farm, 0).await.unwrap().attempt.id;
    let two = lease(db, &farm, 1).await.unwrap().attempt.id;
    let there = open(db, &Owner::Attempt(one.clone()), "a").await;
    let (in_row, object) = (ArtifactId::from_ulid(ulid()), ArtifactId::from_ulid(ulid()));
    let in_row = SegmentRow { bytes: Some(b"seven b".into()), ..segment(&in_row, 0, 7, "r") };
    let object = segment(&object, 0, 9000, "o");
    let late = segment(&ArtifactId::from_ulid(ulid()), 0, 5, "l");
    let file = |attempt, called, segment| artifact::OnePiece { attempt, called, segment };
    let files = [file(&one, "a", &late), file(&one, "b", &in_row), file(&two, "a", &object)];
    write!(db, |tx| artifact::keep_whole(tx, &files));
    // Another server that was slower.
    write!(db, |tx| artifact::keep_whole(tx, &[file(&one, "b", &late), file(&two, "a", &late)]));
    write!(db, |tx| artifact::keep_whole(tx, &[]));
    let of_each = artifact::list_all(db, &[&one, &two]).await.unwrap();
    let found: Vec<_> = of_each.iter().map(|row| (row.attempt_id.as_ref(), row.name.as_str(), &row.id)).collect();
    let kept = [&in_row, &object].map(|segment| &segment.artifact_id);
    assert_eq!(found, [(Some(&one), "a", &there.id), (Some(&one), "b", kept[0]), (Some(&two), "a", kept[1])]);
    assert_eq!(of_each[0], there, "what is there stays as it is");
    let whole = &of_each[1];
    assert_eq!((whole.state, whole.size, whole.blake3.as_deref()), (ArtifactState::Complete, 7, Some("r")));
    assert_eq!((whole.created_at, whole.completed_at), (in_row.received_at, Some(in_row.received_at)));
    let ids = [&there.id, &late.artifact_id, kept[0], kept[1]];
    assert_eq!(artifact::segments_of(db, &ids).await.unwrap(), [in_row.clone(), object.clone()]);
}

/// Console bytes of an attempt in its first lease.
fn bytes(attempt: &AttemptId, segment: &SegmentRow) -> Append {
    Append { attempt: attempt.clone(), epoch: 1, segment: segment.clone() }
}

async fn append(db: &Db, append: Append) -> AppendOutcome {
    write!(db, |tx| artifact::append_all(tx, &[append])).pop().unwrap().unwrap()
}

async fn consoles(db: &Db) {
    let farm = farm(db, "f-console", 1).await;
    submit(db, &farm, 1).await;
    let leased = lease(db, &farm, 0).await.unwrap();
    let attempt = &leased.attempt.id;
    let owner = Owner::Attempt(attempt.clone());
    let console = open(db, &owner, "console-serial0").await;
    assert_eq!(console.console_source(), Some("serial0"));
    let first = segment(&console.id, 0, 5, "a");
    assert_eq!(append(db, bytes(attempt, &first)).await, AppendOutcome::Appended);
    assert_eq!(append(db, bytes(attempt, &first)).await, AppendOutcome::EndsAt(5));
    let gap = segment(&console.id, 9, 5, "b");
    assert_eq!(append(db, bytes(attempt, &gap)).await, AppendOutcome::EndsAt(5));
    let writers = (0..8).map(|_| {
        let (db, piece) = (db.clone(), bytes(attempt, &segment(&console.id, 5, 3, "c")));
        tokio::spawn(async move { append(&db, piece).await })
    });
    let mut appended = 0;
    for writer in writers.collect::<Vec<_>>() {
        match writer.await.unwrap() {
            AppendOutcome::Appended => appended += 1,
            AppendOutcome::EndsAt(end) => assert_eq!(end, 8),
        }
    }
    assert_eq!(appended, 1, "the same bytes from eight writers are there once");
    let other = open(db, &owner, "console-serial1").await;
    let several = [
        segment(&console.id, 8, 2, "d"),
        segment(&other.id, 0, 1, "e"),
        segment(&console.id, 10, 2, "f"),
        segment(&console.id, 8, 2, "d"),
    ];
    let mut pieces: Vec<Append> = several.iter().map(|segment| bytes(attempt, segment)).collect();
    let late = Append { epoch: 0, ..bytes(attempt, &segment(&console.id, 12, 2, "g")) };
    let stranger = bytes(&AttemptId::from_ulid(ulid()), &segment(&console.id, 12, 2, "g"));
    pieces.extend([late, stranger]);
    let outcomes: Vec<_> = write!(db, |tx| artifact::append_all(tx, &pieces)).into_iter().map(Result::ok).collect();
    let taken = Some(AppendOutcome::Appended);
    let ends = Some(AppendOutcome::EndsAt(12));
    assert_eq!(outcomes, [taken, taken, taken, ends, None, None], "each where the one before it ends, of its lease");
    assert_eq!(artifact::get(db, &console.id).await.unwrap().size, 12);
    assert_eq!(artifact::segments(db, &other.id).await.unwrap(), [several[1].clone()]);
    assert!(!artifact::finished_consoles(db, 100).await.unwrap().iter().any(|other| other.id == console.id));
    let end = End::Released { epoch: 1, healthy: true, detail: "" };
    let ended = write!(db, |tx| end_one(tx, &leased.attempt.id, &end, &CARE.rule, at(1))).unwrap();
    settle(db, &[&ended], &CARE, at(1)).await;
    assert!(artifact::finished_consoles(db, 100).await.unwrap().iter().any(|other| other.id == console.id));
}

async fn compaction(db: &Db) {
    let farm = farm(db, "f-compact", 1).await;
    submit(db, &farm, 1).await;
    let attempt = lease(db, &farm, 0).await.unwrap().attempt.id;
    let owner = Owner::Attempt(attempt.clone());
    let (one, two) = (open(db, &owner, "console-one").await, open(db, &owner, "console-two").await);
    for console in [&one, &two] {
        for index in 0..3 {
            append(db, bytes(&attempt, &segment(&console.id, index * 2, 2, "x"))).await;
        }
    }
    let ids = [&one.id, &two.id];
    assert_eq!(artifact::segments_of(db, &ids).await.unwrap().len(), 6);
    let pieces = [segment(&one.id, 0, 6, "m"), segment(&two.id, 0, 4, "n"), segment(&two.id, 4, 2, "x")];
    let mut tx = begin(db).await;
    assert!(!artifact::exchange_segments(&mut tx, 5, &pieces.each_ref()).await.unwrap(), "they are six");
    drop(tx);
    assert!(write!(db, |tx| artifact::exchange_segments(tx, 6, &pieces.each_ref())));
    assert!(write!(db, |tx| artifact::exchange_segments(tx, 0, &[])));
    assert_eq!(artifact::segments_of(db, &ids).await.unwrap(), pieces);
    let mut tx = begin(db).await;
    assert!(!artifact::exchange_segments(&mut tx, 6, &pieces.each_ref()).await.unwrap(), "they are gone");
    drop(tx);
    let closed = write!(db, |tx| artifact::complete(tx, &one.id, "m", at(1))).unwrap();
    assert_eq!(write!(db, |tx| artifact::lock_open(tx, &ids)), [(two.id.clone(), 6)].into());
    let whole = ids.map(|artifact| artifact::Whole { artifact, hash: "n", at: at(2) });
    let mut done = write!(db, |tx| artifact::complete_all(tx, &whole));
    assert_eq!(done.pop().map(|row| (row.id, row.blake3)), Some((two.id.clone(), Some("n".into()))));
    assert!(done.is_empty(), "the other was closed before");
    assert_eq!(artifact::get(db, &one.id).await.unwrap(), closed);
}

async fn runs(db: &Db) {
    let farm = farm(db, "f-runs", 1).await;
    let keyed = run_row(&farm, Some("key"));
    let jobs = [job_row(&farm, &keyed.id, 0)];
    let (first, made) = write!(db, |tx| run::create(tx, &keyed, &jobs));
    assert!(made && first.last_event == 1);
    let again = run_row(&farm, Some("key"));
    let other_jobs = [job_row(&farm, &again.id, 0)];
    let (same, made) = write!(db, |tx| run::create(tx, &again, &other_jobs));
    assert_eq!((same.id, made), (first.id.clone(), false));
    let (run, jobs) = submit(db, &farm, 3).await;
    assert_eq!(run::list(db, None, 1).await.unwrap()[0].id, run.id);
    let counts = run::counts_of(db, &run.id).await.unwrap();
    assert_eq!((counts.len(), counts[0].status, counts[0].count), (1, Status::Miss, 3));
    assert_eq!(run::counts(db, None, 1).await.unwrap(), counts);
    let listed = run::jobs(db, &run.id).await.unwrap();
    assert_eq!(
        listed.iter().map(|job| job.job.id.clone()).collect::<Vec<_>>(),
        jobs.iter().map(|job| job.id.clone()).collect::<Vec<_>>()
    );
    assert_eq!(listed[0].labels.0["farm"], "f-runs");

    let done = |status| JobChange { state: JobState::Done, status, reason: Some("r"), blamed_stage: None };
    write!(db, |tx| run::change_job(tx, &jobs[0].id, done(Status::Pass), at(1)));
    write!(db, |tx| run::change_job(tx, &jobs[0].id, done(Status::Fail), at(2)));
    assert_eq!(run::job(db, &jobs[0].id).await.unwrap().job.status, Status::Pass, "a done job keeps what it has");
    let cancel = JobChange { state: JobState::Cancelled, status: Status::Skip, reason: None, blamed_stage: None };
    write!(db, |tx| run::cancel(tx, &jobs[1].id, cancel, at(3)));
    assert_eq!(run::get(db, &run.id).await.unwrap().state, RunState::Open);
    write!(db, |tx| run::change_job(tx, &jobs[2].id, done(Status::Error), at(4)));
    let closed = run::get(db, &run.id).await.unwrap();
    assert_eq!((closed.state, closed.status, closed.finished_at), (RunState::Done, Status::Error, Some(at(4))));
    let last = event::of_run(db, &run.id, 0, 100).await.unwrap().pop().unwrap();
    assert_eq!(last.body.0, EventBody::RunDone { status: Status::Error });
    write!(db, |tx| run::cancel(tx, &jobs[2].id, cancel, at(5)));
    assert_eq!(run::get(db, &run.id).await.unwrap(), closed);
    // Leave nothing for other checks to find.
    write!(db, |tx| run::cancel(tx, &run::jobs(db, &first.id).await.unwrap()[0].job.id, cancel, at(6)));
}

async fn endings(db: &Db) {
    let farm = farm(db, "f-endings", 1).await;
    let machine_id = &farm.machines[0].id;
    let (_, jobs) = submit(db, &farm, 1).await;
    let first = lease(db, &farm, 0).await.unwrap().attempt;
    assert!(!lease::expired(db, at(59), 100).await.unwrap().contains(&first.id));
    assert!(lease::expired(db, at(60), 1000).await.unwrap().contains(&first.id));
    let renewal = Renewal { attempt: first.id.clone(), epoch: 1, until: at(90) };
    write!(db, |tx| lease::renew(tx, &[renewal]));
    assert!(
        write!(db, |tx| end_one(tx, &first.id, &End::Lost, &CARE.rule, at(60))).is_none(),
        "it was renewed meanwhile"
    );
    let lost = write!(db, |tx| end_one(tx, &first.id, &End::Lost, &CARE.rule, at(90))).unwrap();
    assert_eq!((lost.state, lost.finished_at), (AttemptState::Lost, Some(at(90))));
    let machine = machine::get(db, machine_id).await.unwrap().machine;
    assert_eq!((machine.state, machine.attempt_id), (MachineState::Enrolled, None));
    assert!(settle::unsettled(db, 1000).await.unwrap().contains(&first.id));
    assert_eq!(settle(db, &[&lost], &CARE, at(91)).await, [Settled::Queued]);
    assert_eq!(settle(db, &[&lost], &CARE, at(92)).await, [Settled::Before]);
    let released = |epoch| End::Released { epoch, healthy: false, detail: "does not boot" };
    let mut tx = begin(db).await;
    assert!(matches!(end_one(&mut tx, &first.id, &released(1), &CARE.rule, at(93)).await, Err(DbError::LeaseLost(_))));
    drop(tx);

    let second = lease(db, &farm, 0).await.unwrap().attempt;
    assert_eq!((second.number, second.epoch), (2, 2));
    let mut tx = begin(db).await;
    assert!(matches!(end_one(&mut tx, &second.id, &released(1), &CARE.rule, at(94)).await, Err(DbError::LeaseLost(_))));
    drop(tx);
    let done = write!(db, |tx| end_one(tx, &second.id, &released(2), &CARE.rule, at(95))).unwrap();
    assert_eq!((done.released_healthy, done.release_detail.as_deref()), (Some(false), Some("does not boot")));
    assert!(write!(db, |tx| end_one(tx, &second.id, &released(2), &CARE.rule, at(96))).is_none(), "again is harmless");
    let machine = machine::get(db, machine_id).await.unwrap().machine;
    assert_eq!((machine.state, machine.reason.as_deref()), (MachineState::Quarantined, Some("does not boot")));
    assert_eq!(settle(db, &[&done], &CARE, at(97)).await, [Settled::Done]);
    assert_eq!(run::job(db, &jobs[0].id).await.unwrap().job.state, JobState::Done);
    assert!(!settle::unsettled(db, 1000).await.unwrap().contains(&second.id));
    assert!(attempt::unread_dumps(db, 10).await.unwrap().is_empty());

    assert!(attempt::unread_by(db, 1, 1000).await.unwrap().contains(&second.id), "over, and never read");
    write!(db, |tx| attempt::set_read_by(tx, &[&second.id], 2));
    write!(db, |tx| attempt::set_read_by(tx, &[&second.id], 1));
    assert!(!attempt::unread_by(db, 2, 1000).await.unwrap().contains(&second.id), "an older reader changes nothing");
    assert!(attempt::unread_by(db, 3, 1000).await.unwrap().contains(&second.id), "a better reader reads again");
}

async fn presence(db: &Db) {
    assert_eq!(write!(db, |tx| presence::record(tx, "one", NOW, at(0))), None);
    assert_eq!(write!(db, |tx| presence::record(tx, "one", NOW, at(5))), Some(at(0)));
    assert_eq!(write!(db, |tx| presence::record(tx, "two", at(9), at(9))), Some(at(5)));
    write!(db, |tx| presence::record_away(tx, at(5), at(9)));
    write!(db, |tx| presence::record_away(tx, at(5), at(9)));
    assert_eq!(write!(db, |tx| presence::away_since(tx, at(0))), [(at(5), at(9))]);
    assert!(write!(db, |tx| presence::away_since(tx, at(10))).is_empty());
}

async fn signatures(db: &Db) {
    let farm = farm(db, "signatures", 2).await;
    submit(db, &farm, 2).await;
    let one = lease(db, &farm, 0).await.unwrap();
    let two = lease(db, &farm, 1).await.unwrap();
    let new = |rules: i64, fingerprint: &str, frame: Option<&str>| NewSignature {
        id: SignatureId::from_ulid(ulid()),
        rule_version: rules,
        fingerprint: fingerprint.into(),
        title: format!("BUG in {fingerprint}"),
        kind: "bug".into(),
        frame: frame.map(str::to_owned),
        module: None,
        frames: frame.iter().map(|frame| (*frame).to_owned()).collect(),
    };
    let console = |attempt: &AttemptId| Owner::Attempt(attempt.clone());
    let first = open(db, &console(&one.attempt.id), "console-first").await;
    let second = open(db, &console(&one.attempt.id), "console-second").await;
    let third = open(db, &console(&two.attempt.id), "console-first").await;
    let place = |file: &artifact::ArtifactRow, attempt: &AttemptId, reports: i64, seen: Timestamp| NewPlace {
        artifact_id: file.id.clone(),
        attempt_id: attempt.clone(),
        source: "first".into(),
        start_at: 7,
        line: 3,
        reports,
        seen_at: seen,
    };
    let (a, b) = (&one.attempt.id, &two.attempt.id);
    let seen = [
        (new(2, "f", Some("f")), place(&first, a, 2, at(50))),
        (new(1, "f", Some("f")), place(&first, a, 1, at(50))),
        (new(2, "f", Some("f")), place(&first, a, 99, at(50))),
        (new(2, "f", Some("f")), place(&third, b, 1, at(10))),
    ];
    let together = write!(db, |tx| signature::record_all(tx, &seen.each_ref()));
    let [f, old, again, earlier] = together.try_into().unwrap();
    let more = [
        (new(2, "g", None), place(&third, b, 1, at(10))),
        (new(2, "f", Some("f")), place(&second, a, 1, at(50))),
        (new(2, "f", Some("f")), place(&third, b, 99, at(10))),
    ];
    let later = write!(db, |tx| signature::record_all(tx, &more.each_ref()));
    let [g, elsewhere, once_more] = later.try_into().unwrap();
    assert_eq!([&again, &earlier, &elsewhere, &once_more], [&f; 4], "one signature for one fingerprint");
    assert_ne!(old, f, "rules of another version make signatures of their own");

    let page = signature::list(db, 2, None, 10).await.unwrap();
    assert_eq!(page.iter().map(|row| &row.id).collect::<Vec<_>>(), [&g, &f], "newest first, of these rules only");
    assert_eq!((page[0].frame.as_deref(), page[0].frames.0.len()), (None, 0), "a real NULL");
    let row = signature::get(db, &f).await.unwrap();
    assert_eq!((row.attempts, row.reports), (2, 4), "a place counts once");
    assert_eq!((row.first_seen_at, row.last_seen_at), (at(10), at(50)));
    assert_eq!((row.frames.0, page[1].title.as_str()), (vec!["f".to_owned()], "BUG in f"));
    assert_eq!(signature::list(db, 2, Some(g.as_str()), 10).await.unwrap().len(), 1);
    assert_eq!(signature::list(db, 1, None, 10).await.unwrap()[0].id, old);
    let newest = signature::places(db, 2, None, 10, 1).await.unwrap();
    let newest: Vec<_> = newest.iter().map(|place| (&place.signature_id, &place.attempt_id)).collect();
    assert_eq!(newest, [(&g, b), (&f, a)], "the newest place of each");
    let places = signature::places_of(db, &f, 10).await.unwrap();
    assert_eq!(places.iter().map(|place| &place.attempt_id).collect::<Vec<_>>(), [a, a, b]);
    assert_eq!((places[2].machine_name.as_str(), places[2].line), ("signatures-1", 3));
    assert!(matches!(signature::get(db, &SignatureId::from_ulid(ulid())).await, Err(DbError::NotFound)));
}

async fn rolled_back(db: &Db) {
    let row = TreeRow { id: TreeId::from_ulid(ulid()), name: "undone".into(), git_url: None, created_at: NOW };
    let mut tx = begin(db).await;
    tree::create_tree(&mut tx, &row).await.unwrap();
    drop(tx);
    assert!(matches!(tree::tree_by_name(db, "undone").await, Err(DbError::NotFound)));
    assert!(db.ping().await.is_ok());
}
