//! A machine's life outside of attempts, and jobs that are bound to machines.

use super::*;
use crashyard_protocol::ErrandId;
use crashyard_protocol::check::{Finding, Seen};
use crashyard_server::db::errand::{self, ErrandRow, Kind, Outcome};
use crashyard_server::db::reservation::{self, ReservationRow};
use crashyard_server::db::{bound, preemption};

const STRICT: Rule = Rule { failures: 2, window: 4, probation: Duration::from_secs(600) };

pub async fn fleet(db: &Db) {
    reservations(db).await;
    errands(db).await;
    holds(db).await;
    quarantines(db).await;
    left_together(db).await;
    bound_jobs(db).await;
    jobs_behind_bound_ones(db).await;
    ways_given(db).await;
    debts(db).await;
}

fn reservation(machine: &MachineId, until: Timestamp) -> ReservationRow {
    ReservationRow {
        id: ReservationId::from_ulid(ulid()),
        machine_id: machine.clone(),
        owner: "token:kris".into(),
        reason: "debugs".into(),
        created_at: NOW,
        began_at: None,
        until_at: until,
        warned_at: None,
        ended_at: None,
        ended_by: None,
        attempt_id: None,
        quarantine_reason: None,
        quarantine_until: None,
        notify: None,
    }
}

async fn state(db: &Db, id: &MachineId) -> MachineState {
    machine::get(db, id).await.unwrap().machine.state
}

fn released(leased: &Leased) -> End<'static> {
    End::Released { epoch: super::unsigned(leased.attempt.epoch), healthy: true, detail: "" }
}

async fn reservations(db: &Db) {
    let farm = farm(db, "fl-r", 2).await;
    let [free, busy] = [farm.machines[0].id.clone(), farm.machines[1].id.clone()];
    submit(db, &farm, 3).await;
    let leased = lease(db, &farm, 1).await.unwrap();
    assert!(write!(db, |tx| reservation::take(tx, &reservation(&free, at(100)), at(1))), "it was free");
    assert_eq!(state(db, &free).await, MachineState::Reserved);
    assert!(lease(db, &farm, 0).await.is_none(), "a person has it");
    assert!(!write!(db, |tx| reservation::take(tx, &reservation(&busy, at(200)), at(2))), "an attempt owns it");
    let mut tx = begin(db).await;
    let second = reservation::take(&mut tx, &reservation(&busy, at(300)), at(3)).await;
    assert!(matches!(second, Err(DbError::Conflict(_))), "one at a time: {second:?}");
    drop(tx);
    write!(db, |tx| end_one(tx, &leased.attempt.id, &released(&leased), &STRICT, at(4)));
    assert_eq!(state(db, &busy).await, MachineState::Reserved, "whoever waited for it has it");
    let open = reservation::open(db, &busy).await.unwrap().unwrap();
    assert_eq!((open.began_at, open.owner.as_str()), (Some(at(4)), "token:kris"));

    assert_eq!(reservation::next_ends(db).await.unwrap(), (Some(at(100)), Some(at(100))));
    let soon = reservation::unannounced(db, at(150), 10).await.unwrap();
    assert_eq!(soon.iter().map(|row| &row.machine_id).collect::<Vec<_>>(), [&free]);
    for _ in 0..2 {
        write!(db, |tx| reservation::warn(tx, &soon[0], at(50)));
    }
    assert!(reservation::unannounced(db, at(150), 10).await.unwrap().is_empty());
    write!(db, |tx| reservation::extend(tx, &soon[0], at(120)));
    assert_eq!(reservation::unannounced(db, at(150), 10).await.unwrap().len(), 1, "the new end is announced again");
    assert!(reservation::over(db, at(119), 10).await.unwrap().is_empty());
    assert_eq!(reservation::over(db, at(120), 10).await.unwrap(), std::slice::from_ref(&free));
    assert!(write!(db, |tx| reservation::end(tx, &free, "server", at(121))).is_some());
    assert!(write!(db, |tx| reservation::end(tx, &free, "server", at(122))).is_none(), "once");
    assert_eq!(state(db, &free).await, MachineState::Enrolled);
    assert!(lease(db, &farm, 0).await.is_none(), "it runs what somebody left");
    powered_off(db, &free, at(122)).await;
    assert!(lease(db, &farm, 0).await.is_some(), "and takes jobs again");
    let told: Vec<_> = life::changes(db, &free, 10).await.unwrap();
    let states: Vec<_> = told.iter().map(|row| (row.state, row.decided_by.as_str())).collect();
    use MachineState::{Enrolled, Reserved};
    assert_eq!(
        states,
        [(Enrolled, "server"), (Enrolled, "server"), (Reserved, "server"), (Reserved, "token:kris")],
        "each once, newest first"
    );

    assert!(
        write!(db, |tx| life::decide(tx, &busy, MachineState::Retired, Some("gone"), "token:a", at(130))).is_some()
    );
    assert!(reservation::open(db, &busy).await.unwrap().is_none(), "a person's word ends a reservation");
    assert!(reservation::all_open(db).await.unwrap().iter().all(|row| row.machine_id != busy));
}

/// A machine's controller powers it off after somebody had it.
async fn powered_off(db: &Db, machine: &MachineId, now: Timestamp) {
    let controller = machine::get(db, machine).await.unwrap().machine.controller_id;
    let other = ControllerId::from_ulid(ulid());
    assert!(write!(db, |tx| errand::give(tx, machine, &other, now)).is_none(), "it is not that one's");
    let off = write!(db, |tx| errand::give(tx, machine, &controller, now)).unwrap();
    assert_eq!((off.kind, off.given_at), (Kind::Off, Some(now)));
    let again = write!(db, |tx| errand::give(tx, machine, &controller, now)).unwrap();
    assert_eq!(again, off, "until it is done");
    let outcome = Outcome { ok: true, detail: "off", findings: &[] };
    write!(db, |tx| errand::finish(tx, &off, &outcome, &STRICT, now));
    assert!(write!(db, |tx| errand::give(tx, machine, &controller, now)).is_none());
}

async fn errands(db: &Db) {
    let farm = farm(db, "fl-e", 1).await;
    let (machine, controller) = (farm.machines[0].id.clone(), farm.machines[0].controller_id.clone());
    let check = || ErrandRow::new(ErrandId::from_ulid(ulid()), &machine, Kind::Check, "token:a", at(1));
    let wanted = write!(db, |tx| errand::want(tx, &check()));
    assert_eq!(write!(db, |tx| errand::want(tx, &check())), wanted, "one at a time");
    assert_eq!(errand::open(db, &machine).await.unwrap(), std::slice::from_ref(&wanted));
    assert!(errand::all_open(db).await.unwrap().contains(&wanted));
    submit(db, &farm, 1).await;
    assert!(lease(db, &farm, 0).await.is_none(), "it comes before the next job");
    let row = || reservation(&machine, at(900));
    assert!(write!(db, |tx| reservation::take(tx, &row(), at(2))), "nobody is at it");
    assert!(write!(db, |tx| errand::give(tx, &machine, &controller, at(3))).is_none(), "somebody has the machine");
    assert!(write!(db, |tx| reservation::end(tx, &machine, "token:kris", at(4))).is_some());
    assert!(!write!(db, |tx| errand::under_way(tx, &machine, at(4))));
    let off = write!(db, |tx| errand::give(tx, &machine, &controller, at(5))).unwrap();
    assert_eq!(off.kind, Kind::Off, "first of all");
    assert!(write!(db, |tx| errand::under_way(tx, &machine, at(5))));
    assert!(!write!(db, |tx| reservation::take(tx, &row(), at(6))), "not under its controller's hands");
    assert_eq!(reservation::unbegun(db, 100).await.unwrap(), std::slice::from_ref(&machine));
    let outcome = Outcome { ok: false, detail: "still on", findings: &[] };
    write!(db, |tx| errand::finish(tx, &off, &outcome, &STRICT, at(7)));
    assert_eq!(state(db, &machine).await, MachineState::Reserved, "who waits for it may look at what is broken");
    let distrust = reservation::open(db, &machine).await.unwrap().unwrap().quarantine_reason.unwrap();
    assert!(distrust.ends_with("had it: still on"), "{distrust}");
    assert!(write!(db, |tx| errand::cancel(tx, &machine, Kind::Check, "no more", at(8))));
    assert!(!write!(db, |tx| errand::cancel(tx, &machine, Kind::Check, "no more", at(9))));
    let ended = errand::last_check(db, &machine).await.unwrap().unwrap();
    assert_eq!((ended.ok, ended.detail.as_deref(), ended.ended_at), (Some(false), Some("no more"), Some(at(8))));
    assert_eq!(errand::get(db, &wanted.id).await.unwrap(), ended);

    let check = write!(db, |tx| errand::want(tx, &check()));
    let finding = Finding { capability: "power state".into(), seen: Seen::Works, detail: "on".into(), needed: true };
    let outcome = Outcome { ok: true, detail: "", findings: std::slice::from_ref(&finding) };
    write!(db, |tx| errand::finish(tx, &check, &outcome, &STRICT, at(10)));
    let found = errand::get(db, &check.id).await.unwrap();
    assert_eq!(found.findings.map(|found| found.0), Some(vec![finding]));
}

async fn holds(db: &Db) {
    let farm = farm(db, "fl-h", 1).await;
    let machine = farm.machines[0].id.clone();
    submit(db, &farm, 2).await;
    let leased = lease(db, &farm, 0).await.unwrap();
    let id = leased.attempt.id.clone();
    let row = ReservationRow { attempt_id: Some(id.clone()), began_at: Some(at(1)), ..reservation(&machine, at(500)) };
    assert!(write!(db, |tx| reservation::hold(tx, &row, at(1))));
    let held = attempt::get(db, &id).await.unwrap();
    assert_eq!((state(db, &machine).await, held.held_until), (MachineState::Held, Some(at(500))));
    let again = ReservationRow { id: ReservationId::from_ulid(ulid()), ..row.clone() };
    assert!(!write!(db, |tx| reservation::hold(tx, &again, at(2))), "it is somebody's already");
    write!(db, |tx| reservation::extend(tx, &row, at(600)));
    assert_eq!(attempt::get(db, &id).await.unwrap().held_until, Some(at(600)));
    write!(db, |tx| reservation::end(tx, &machine, "token:kris", at(10)));
    let held = attempt::get(db, &id).await.unwrap();
    assert_eq!((state(db, &machine).await, held.held_until), (MachineState::Leased, Some(at(10))));
    write!(db, |tx| end_one(tx, &id, &released(&leased), &CARE.rule, at(11)));
    assert_eq!(state(db, &machine).await, MachineState::Available);

    let leased = lease(db, &farm, 0).await.unwrap();
    let id = leased.attempt.id.clone();
    let row = ReservationRow { id: ReservationId::from_ulid(ulid()), attempt_id: Some(id.clone()), ..row };
    assert!(write!(db, |tx| reservation::hold(tx, &row, at(20))));
    let lost = at(100);
    assert!(write!(db, |tx| end_one(tx, &id, &End::Lost, &CARE.rule, lost)).is_some());
    assert!(reservation::open(db, &machine).await.unwrap().is_none(), "nobody holds what was lost");
    assert_eq!(state(db, &machine).await, MachineState::Enrolled);
}

async fn quarantines(db: &Db) {
    let farm = farm(db, "fl-q", 1).await;
    let machine = farm.machines[0].id.clone();
    submit(db, &farm, 9).await;
    let serve = async |healthy: bool, seconds: i64| {
        let leased = lease(db, &farm, 0).await.unwrap();
        let end = End::Released { epoch: super::unsigned(leased.attempt.epoch), healthy, detail: "no answer" };
        write!(db, |tx| end_one(tx, &leased.attempt.id, &end, &STRICT, at(seconds)));
    };
    let until = async || machine::get(db, &machine).await.unwrap().machine.quarantined_until;
    serve(true, 1).await;
    assert_eq!(state(db, &machine).await, MachineState::Available, "one MISS is no pattern");
    serve(true, 2).await;
    assert_eq!((state(db, &machine).await, until().await), (MachineState::Quarantined, Some(at(602))));
    assert!(lease(db, &farm, 0).await.is_none());
    assert_eq!(life::next_forgiven(db).await.unwrap(), Some(at(602)));
    assert!(!write!(db, |tx| life::forgive(tx, &machine, at(601))), "not yet");
    assert_eq!(life::forgiven(db, at(602), 10).await.unwrap(), std::slice::from_ref(&machine));
    // Leases of these checks begin at NOW; what is forgiven is what began before the return.
    assert!(write!(db, |tx| life::forgive(tx, &machine, NOW.plus(Duration::from_secs(602)))));
    assert!(!write!(db, |tx| life::forgive(tx, &machine, at(603))), "once");
    assert_eq!(state(db, &machine).await, MachineState::Enrolled);
    serve(false, 700).await;
    let row = machine::get(db, &machine).await.unwrap().machine;
    assert_eq!((row.state, row.probation), (MachineState::Quarantined, 2));
    assert_eq!(row.quarantined_until, Some(at(700 + 1200)), "twice as long");
    assert!(row.reason.unwrap().contains("no answer"));
    let back = write!(db, |tx| life::decide(tx, &machine, MachineState::Available, None, "token:me", at(701)));
    assert_eq!(back.map(|row| (row.probation, row.quarantined_until)), Some((0, None)), "a person forgives everything");
    let why = life::changes(db, &machine, 10).await.unwrap();
    assert_eq!(why.len(), 4, "{why:?}");
    assert!(why[3].reason.as_deref().unwrap().starts_with("2 of its last 2 attempts failed"), "{why:?}");
    assert!(why[3].attempt_id.is_some());
    assert_eq!(life::attempts(db, &machine, 2).await.unwrap().len(), 2);
}

/// Attempts that end in one transaction: each machine becomes what its own past and its own people make of it.
async fn left_together(db: &Db) {
    let farm = farm(db, "fl-t", 6).await;
    submit(db, &farm, 8).await;
    let machine = |index: usize| &farm.machines[index].id;
    for index in 0..2 {
        let early = lease(db, &farm, index).await.unwrap();
        write!(db, |tx| end_one(tx, &early.attempt.id, &released(&early), &STRICT, at(1)));
    }
    let mut leased = Vec::new();
    for index in 0..6 {
        leased.push(lease(db, &farm, index).await.unwrap().attempt);
    }
    // The second delivered a result after all.
    write!(db, |tx| judgement::open_all(tx, &[(leased[1].id.clone(), stages(0))]));
    assert!(judge(db, &leased[1], &stages(0), &verdict(4, Some(Status::Fail)), at(2)).await);
    for index in [3, 5] {
        assert!(!write!(db, |tx| reservation::take(tx, &reservation(machine(index), at(500)), at(2))));
    }
    let row = ReservationRow {
        attempt_id: Some(leased[4].id.clone()),
        began_at: Some(at(2)),
        ..reservation(machine(4), at(500))
    };
    assert!(write!(db, |tx| reservation::hold(tx, &row, at(2))));

    let end = |index: usize| End::Released {
        epoch: super::unsigned(leased[index].epoch),
        healthy: ![2, 5].contains(&index),
        detail: "no answer",
    };
    let ends: Vec<_> = (0..6).rev().map(|index| (&leased[index].id, end(index))).collect();
    let ids: Vec<&AttemptId> = leased.iter().map(|one| &one.id).collect();
    let mut tx = begin(db).await;
    let mut locked = attempt::lock(&mut tx, &ids).await.unwrap();
    let answers = lease::end_all(&mut tx, &mut locked, &ends, &STRICT, at(3)).await.unwrap();
    tx.commit().await.unwrap();
    assert!(answers.iter().all(|answer| matches!(answer, Ok(true))), "{answers:?}");

    let mut states = Vec::new();
    for index in 0..6 {
        states.push(state(db, machine(index)).await);
    }
    use MachineState::{Available, Quarantined, Reserved};
    assert_eq!(states, [Quarantined, Available, Quarantined, Reserved, Available, Reserved]);
    let why = async |index: usize| machine::get(db, machine(index)).await.unwrap().machine.reason.unwrap_or_default();
    assert!(why(0).await.starts_with("2 of its last 2 attempts"), "{}", why(0).await);
    assert_eq!(why(2).await, "no answer");
    assert_eq!(reservation::open(db, machine(3)).await.unwrap().unwrap().quarantine_reason, None);
    assert!(reservation::open(db, machine(4)).await.unwrap().is_none(), "nobody holds what is over");
    let distrust = reservation::open(db, machine(5)).await.unwrap().unwrap().quarantine_reason;
    assert_eq!(distrust.as_deref(), Some("no answer"), "for when it is handed back");
}

/// Of two machines, the one that a job must not have does not get it, and the only one it may have does.
async fn life_of(db: &Db, machine: &MachineId, state: MachineState) {
    write!(db, |tx| life::decide(tx, machine, state, None, "token:me", at(5)));
}

async fn bound_jobs(db: &Db) {
    let farm = farm(db, "fl-b", 2).await;
    let (_, jobs) = submit(db, &farm, 2).await;
    let first = lease(db, &farm, 0).await.unwrap();
    assert_eq!(first.job.id, jobs[0].id);
    let lost = write!(db, |tx| end_one(tx, &first.attempt.id, &released(&first), &CARE.rule, at(1))).unwrap();
    assert_eq!(settle(db, &[&lost], &CARE, at(1)).await, [Settled::Queued]);
    let waits = bound::hopeless(db, 100).await.unwrap();
    assert!(waits.iter().all(|one| one.id != jobs[0].id), "what waits rightly hides nobody who waits in vain");
    let other = lease(db, &farm, 0).await.unwrap();
    assert_eq!(other.job.id, jobs[1].id, "the first job is not for this machine");
    write!(db, |tx| end_one(tx, &other.attempt.id, &released(&other), &CARE.rule, at(2)));
    assert!(lease(db, &farm, 0).await.is_none());
    let second = lease(db, &farm, 1).await.unwrap();
    assert_eq!((second.job.id.clone(), second.attempt.number), (jobs[0].id.clone(), 2));
    write!(db, |tx| end_one(tx, &second.attempt.id, &released(&second), &CARE.rule, at(3)));

    let (_, jobs) = submit(db, &farm, 1).await;
    let first = lease(db, &farm, 0).await.unwrap();
    let lost = write!(db, |tx| end_one(tx, &first.attempt.id, &released(&first), &CARE.rule, at(4))).unwrap();
    settle(db, &[&lost], &CARE, at(4)).await;
    write!(db, |tx| life::decide(tx, &farm.machines[1].id, MachineState::Retired, None, "token:me", at(5)));
    let bound = bound::hopeless(db, 100).await.unwrap();
    let bound = bound.iter().find(|one| one.id == jobs[0].id).unwrap();
    assert_eq!(bound.not_machine_id.as_ref(), Some(&farm.machines[0].id));
    let other = |state| life_of(db, &farm.machines[1].id, state);
    other(MachineState::Available).await;
    assert!(!write!(db, |tx| bound::unbind(tx, bound)), "there is another one again");
    other(MachineState::Retired).await;
    assert!(write!(db, |tx| bound::unbind(tx, bound)), "there is no other one any more");
    assert_eq!(lease(db, &farm, 0).await.unwrap().job.id, jobs[0].id);
    assert!(!write!(db, |tx| settle::conclude(tx, &jobs[0].id, "too late", &CARE, at(6))), "it has a machine");
}

/// However many jobs at the front of a flow a machine must not have, it gets the first behind them, and another the front.
async fn jobs_behind_bound_ones(db: &Db) {
    let farm = farm(db, "fl-f", 2).await;
    let (_, jobs) = submit(db, &farm, 8).await;
    for job in &jobs[..6] {
        let first = lease(db, &farm, 0).await.unwrap();
        assert_eq!(first.job.id, job.id);
        let lost = write!(db, |tx| end_one(tx, &first.attempt.id, &released(&first), &CARE.rule, at(1))).unwrap();
        assert_eq!(settle(db, &[&lost], &CARE, at(1)).await, [Settled::Queued]);
    }
    assert_eq!(lease(db, &farm, 0).await.unwrap().job.id, jobs[6].id);
    assert_eq!(lease(db, &farm, 1).await.unwrap().job.id, jobs[0].id);
}

async fn ways_given(db: &Db) {
    let farm = farm(db, "fl-p", 2).await;
    let run = run_row(&farm, None);
    let bulk = flow(db, &farm.selector, "fl-p-bulk", Priority::Bulk).await;
    let policy = Policy { preemptible: true, ..Policy::default() };
    let rows: Vec<_> = (0..2)
        .map(|ordinal| JobRow {
            policy: Json(policy.clone()),
            flow_id: bulk.clone(),
            ..job_row(&farm, &run.id, ordinal)
        })
        .collect();
    write!(db, |tx| run::create(tx, &run, &rows));
    let [early, armed] = [lease(db, &farm, 0).await.unwrap(), lease(db, &farm, 1).await.unwrap()];
    let mut stages = stages(0);
    stages[1].state = StageState::Proven;
    write!(db, |tx| judgement::open_all(tx, &[(armed.attempt.id.clone(), stages)]));
    let may = preemption::preemptible(db, &farm.selector, Priority::Normal.class(), 10).await.unwrap();
    assert_eq!(may, std::slice::from_ref(&early.attempt.id), "never what is armed");
    assert!(preemption::preemptible(db, &farm.selector, Priority::Bulk.class(), 10).await.unwrap().is_empty());
    assert!(preemption::is_preemptible(db, &early.attempt.id).await.unwrap());
    assert!(!write!(db, |tx| preemption::give_way(tx, &armed.attempt.id, "no", at(1))));
    assert!(write!(db, |tx| preemption::give_way(tx, &early.attempt.id, "Gave way", at(1))));
    assert!(!write!(db, |tx| preemption::give_way(tx, &early.attempt.id, "Gave way", at(2))), "once");
    let gone = attempt::get(db, &early.attempt.id).await.unwrap();
    assert_eq!((gone.state, gone.reason.as_deref()), (AttemptState::Collecting, Some("Gave way")));
    let ended = write!(db, |tx| end_one(tx, &early.attempt.id, &released(&early), &CARE.rule, at(3))).unwrap();
    let once = Care { tries: 1, ..CARE };
    assert_eq!(settle(db, &[&ended], &once, at(3)).await, [Settled::Queued], "it cost no try");
}

/// Nothing of a farm that works is owed, and each kind of debt is found where somebody breaks the ledger.
async fn debts(db: &Db) {
    use crashyard_server::db::owed;
    let farm = farm(db, "fl-o", 1).await;
    // Older than everything that other checks have left behind.
    let long_ago = at(-900);
    let run = RunRow { created_at: long_ago, ..run_row(&farm, None) };
    let jobs: Vec<_> =
        (0..2).map(|ordinal| JobRow { created_at: long_ago, ..job_row(&farm, &run.id, ordinal) }).collect();
    write!(db, |tx| run::create(tx, &run, &jobs));
    let has = |rows: Vec<owed::OwedRow>, id: &str| rows.iter().any(|row| row.id == id);
    let waits = jobs[1].id.as_str();
    assert!(has(owed::waiting_jobs(db, long_ago).await.unwrap(), waits), "it has waited since then");
    assert!(!has(owed::waiting_jobs(db, Timestamp(long_ago.0 - 1)).await.unwrap(), waits), "not for that long");
    let leased = lease(db, &farm, 0).await.unwrap();
    let (job, attempt) = (leased.job.id.as_str(), leased.attempt.id.as_str());
    let machine = farm.machines[0].id.as_str();
    let late = at(10_000);
    assert!(!has(owed::jobs_without_attempt(db, late).await.unwrap(), job));
    assert!(!has(owed::machines_without_attempt(db, late).await.unwrap(), machine));
    assert!(has(owed::attempts_without_lease(db, late).await.unwrap(), attempt), "nobody renewed it");
    assert!(!has(owed::attempts_without_lease(db, NOW).await.unwrap(), attempt));
    write!(db, |tx| end_one(tx, &leased.attempt.id, &released(&leased), &CARE.rule, at(1)));
    assert!(has(owed::jobs_without_attempt(db, late).await.unwrap(), job), "ended, and never settled");
    assert!(!has(owed::runs_without_jobs(db, late).await.unwrap(), run.id.as_str()));
}
