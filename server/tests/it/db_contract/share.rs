//! Fair share: who comes next, and what it costs.

use super::*;

/// A pool of machines and submitters that want it, apart from every other check.
struct Pool {
    farm: Farm,
    flows: Vec<FlowId>,
}

impl Pool {
    fn position(&self, flow: &FlowId) -> usize {
        self.flows.iter().position(|one| one == flow).unwrap()
    }
}

async fn pool(db: &Db, name: &str, machines: usize, submitters: &[(&str, i64, Priority)]) -> Pool {
    let farm = farm(db, name, machines).await;
    let mut flows = Vec::new();
    for (who, weight, priority) in submitters {
        let who = format!("{name}-{who}");
        flows.push(super::flow(db, &farm.selector, &who, *priority).await);
        set(db, &who, *weight, None).await;
    }
    Pool { farm, flows }
}

async fn set(db: &Db, name: &str, weight: i64, most: Option<i64>) {
    let all = flow::submitters(db).await.unwrap();
    let one = all.iter().find(|one| one.submitter.name == name).unwrap();
    write!(db, |tx| flow::set_submitter(tx, &one.submitter.id, weight, most));
}

async fn submit_to(db: &Db, pool: &Pool, who: usize, jobs: i64) -> RunId {
    let run = run_row(&pool.farm, None);
    let jobs: Vec<_> = (0..jobs)
        .map(|ordinal| JobRow { flow_id: pool.flows[who].clone(), ..job_row(&pool.farm, &run.id, ordinal) })
        .collect();
    write!(db, |tx| run::create(tx, &run, &jobs)).0.id
}

/// Serves the next claim of a machine and ends the attempt after `seconds`; whose job it was.
async fn serve(db: &Db, pool: &Pool, machine: usize, seconds: i64) -> Option<usize> {
    let leased = lease(db, &pool.farm, machine).await?;
    let end = End::Released { epoch: super::unsigned(leased.attempt.epoch), healthy: true, detail: "" };
    let ended = write!(db, |tx| end_one(tx, &leased.attempt.id, &end, &CARE.rule, at(seconds))).unwrap();
    let done = JobChange { state: JobState::Done, status: Status::Pass, reason: None, blamed_stage: None };
    write!(db, |tx| run::change_job(tx, &ended.job_id, done, at(seconds)));
    pool.flows.iter().position(|flow| *flow == leased.job.flow_id)
}

pub async fn fair_share(db: &Db) {
    weights(db).await;
    newcomers(db).await;
    classes_and_age(db).await;
    caps(db).await;
    batches(db).await;
    together_as_alone(db).await;
    deadlines(db).await;
}

/// One floods, and machine time is shared by weight all the same.
async fn weights(db: &Db) {
    let normal = Priority::Normal;
    let pool = pool(db, "fs-w", 1, &[("a", 1, normal), ("b", 2, normal), ("c", 3, normal), ("d", 4, normal)]).await;
    submit_to(db, &pool, 0, 120).await;
    for who in 1..4 {
        submit_to(db, &pool, who, 50).await;
    }
    let mut had = [0_i64; 4];
    for _ in 0..100 {
        // The attempts of one take three times as long: time is shared, not turns.
        let leased = lease(db, &pool.farm, 0).await.unwrap();
        let who = pool.flows.iter().position(|flow| *flow == leased.job.flow_id).unwrap();
        let seconds = if who == 3 { 90 } else { 30 };
        had[who] += seconds;
        let end = End::Released { epoch: super::unsigned(leased.attempt.epoch), healthy: true, detail: "" };
        write!(db, |tx| end_one(tx, &leased.attempt.id, &end, &CARE.rule, at(seconds)));
    }
    let all: i64 = had.iter().sum();
    for (who, weight) in [1, 2, 3, 4].into_iter().enumerate() {
        let off = (had[who] * 10 - all * weight).abs();
        assert!(off <= 10 * 90, "machine time {had:?}: {who} is {off} tenths of a second off");
    }
    let all = flow::submitters(db).await.unwrap();
    let one = all.iter().find(|one| one.submitter.name == "fs-w-d").unwrap();
    assert_eq!((one.submitter.machine_ms, one.machines, one.waiting), (had[3] * 1000, 0, true));
    drain(db, &pool).await;
}

/// Whoever was away gets no credit for it, and whoever was alone owes nothing for it.
async fn newcomers(db: &Db) {
    let pool = pool(db, "fs-n", 1, &[("old", 1, Priority::Normal), ("new", 1, Priority::Normal)]).await;
    submit_to(db, &pool, 0, 30).await;
    for _ in 0..10 {
        assert_eq!(serve(db, &pool, 0, 600).await, Some(0));
    }
    submit_to(db, &pool, 1, 10).await;
    let mut turns = [0; 2];
    for _ in 0..10 {
        turns[serve(db, &pool, 0, 600).await.unwrap()] += 1;
    }
    assert_eq!(turns, [5, 5]);
    drain(db, &pool).await;
}

async fn classes_and_age(db: &Db) {
    let all = [("bulk", 1000, Priority::Bulk), ("normal", 1, Priority::Normal), ("urgent", 1, Priority::Urgent)];
    let pool = pool(db, "fs-c", 1, &all).await;
    for who in 0..3 {
        submit_to(db, &pool, who, 3).await;
    }
    let order = [serve(db, &pool, 0, 1).await, serve(db, &pool, 0, 1).await, serve(db, &pool, 0, 1).await];
    assert_eq!(order, [Some(2); 3], "what is urgent comes first, whatever it weighs");
    assert_eq!(serve(db, &pool, 0, 1).await, Some(1));
    assert!(!age(db, 3599).await.contains(&pool.flows[0]));
    assert_eq!(serve(db, &pool, 0, 1).await, Some(1));
    // Two hours in bulk are as good as urgent, and an hour in normal as well.
    assert!(age(db, 7200).await.contains(&pool.flows[0]));
    submit_to(db, &pool, 2, 1).await;
    assert_eq!(serve(db, &pool, 0, 1).await, Some(0), "it has waited, and its share is the larger one");
    assert!(age(db, 7200).await.is_empty(), "again is harmless");
    drain(db, &pool).await;
}

/// Classes as they are at this moment, where they step each hour; the flows that moved.
async fn age(db: &Db, seconds: i64) -> Vec<FlowId> {
    let classes = flow::aged(db, at(seconds), Duration::from_secs(3600)).await.unwrap();
    write!(db, |tx| flow::set_classes(tx, &classes));
    classes.into_iter().map(|(flow, _)| flow).collect()
}

async fn caps(db: &Db) {
    let pool = pool(db, "fs-l", 4, &[("few", 1000, Priority::Urgent), ("many", 1, Priority::Bulk)]).await;
    set(db, "fs-l-few", 1000, Some(2)).await;
    submit_to(db, &pool, 0, 9).await;
    submit_to(db, &pool, 1, 1).await;
    let asks: Vec<_> = (0..4)
        .map(|index| queue::Ask {
            lease: new_lease(&pool.farm, NOW),
            machines: vec![pool.farm.machines[index].id.clone()],
        })
        .collect();
    let mut tx = begin(db).await;
    let batch = queue::take(&mut tx, &asks).await.unwrap();
    queue::open(&mut tx, &batch).await.unwrap();
    let leased = queue::record(&mut tx, batch).await.unwrap();
    tx.commit().await.unwrap();
    let of = |who: usize| leased.iter().flatten().filter(|one| one.job.flow_id == pool.flows[who]).count();
    assert_eq!((of(0), of(1)), (2, 1), "a limit holds inside one transaction");
    assert!(lease(db, &pool.farm, 3).await.is_none(), "and between two");
    let first = leased.iter().flatten().find(|one| one.job.flow_id == pool.flows[0]).unwrap();
    let end = End::Released { epoch: 1, healthy: true, detail: "" };
    write!(db, |tx| end_one(tx, &first.attempt.id, &end, &CARE.rule, at(1)));
    assert_eq!(lease(db, &pool.farm, 3).await.unwrap().job.flow_id, pool.flows[0], "until one is back");
    drain(db, &pool).await;
}

/// Claims of one transaction: each machine once, each job once, also across transactions that run at once.
async fn batches(db: &Db) {
    let pool = pool(db, "fs-b", 12, &[("a", 1, Priority::Normal), ("b", 1, Priority::Normal)]).await;
    submit_to(db, &pool, 0, 8).await;
    submit_to(db, &pool, 1, 8).await;
    let claims = (0..4).map(|part| {
        let db = db.clone();
        // Every machine is asked for twice.
        let asks: Vec<_> = (0..6)
            .map(|index| queue::Ask {
                lease: new_lease(&pool.farm, NOW),
                machines: vec![pool.farm.machines[(part % 2) * 6 + index].id.clone()],
            })
            .collect();
        tokio::spawn(async move {
            let mut tx = db.begin().await.unwrap();
            let batch = queue::take(&mut tx, &asks).await.unwrap();
            queue::open(&mut tx, &batch).await.unwrap();
            let leased = queue::record(&mut tx, batch).await.unwrap();
            tx.commit().await.unwrap();
            leased.into_iter().flatten().map(|one| (one.job.id, one.machine.id)).collect::<Vec<_>>()
        })
    });
    let mut placed = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        placed.extend(claim.await.unwrap());
    }
    let jobs: std::collections::BTreeSet<_> = placed.iter().map(|(job, _)| job).collect();
    let machines: std::collections::BTreeSet<_> = placed.iter().map(|(_, machine)| machine).collect();
    assert_eq!((placed.len(), jobs.len(), machines.len()), (12, 12, 12));
    drain(db, &pool).await;
}

/// Claims of one transaction get what they would have got one after another: by share, with flows that run out, a limit, and
/// a job that must not have the machine on which it failed.
async fn together_as_alone(db: &Db) {
    let (alone, together) = (unequal(db, "fs-alone").await, unequal(db, "fs-together").await);
    let mut expected = Vec::new();
    for index in 0..9 {
        let leased = lease(db, &alone.farm, index).await;
        expected.push(leased.map(|one| (alone.position(&one.job.flow_id), one.job.ordinal)));
    }
    let asks: Vec<_> = (0..9)
        .map(|index| queue::Ask {
            lease: new_lease(&together.farm, NOW),
            machines: vec![together.farm.machines[index].id.clone()],
        })
        .collect();
    let mut tx = begin(db).await;
    let batch = queue::take(&mut tx, &asks).await.unwrap();
    assert!(batch.passed_over.is_empty() || matches!(tx, Tx::Postgres(_)));
    queue::open(&mut tx, &batch).await.unwrap();
    let leased = queue::record(&mut tx, batch).await.unwrap();
    tx.commit().await.unwrap();
    let got: Vec<_> = leased
        .iter()
        .map(|one| one.as_ref().map(|one| (together.position(&one.job.flow_id), one.job.ordinal)))
        .collect();
    assert_eq!(got, expected);
    assert_eq!(got.iter().flatten().count(), 8, "two of one, three each of the others");
    for pool in [alone, together] {
        drain(db, &pool).await;
    }
}

/// Three submitters for nine machines: `a` has three jobs of which the first failed on the first machine, `b` has three, `c`
/// has five and may have two machines.
async fn unequal(db: &Db, name: &str) -> Pool {
    let normal = Priority::Normal;
    let pool = pool(db, name, 9, &[("a", 1, normal), ("b", 2, normal), ("c", 3, normal)]).await;
    submit_to(db, &pool, 0, 3).await;
    let first = lease(db, &pool.farm, 0).await.unwrap().attempt;
    let lost = write!(db, |tx| end_one(tx, &first.id, &End::Lost, &CARE.rule, at(90))).unwrap();
    assert_eq!(settle(db, &[&lost], &CARE, at(90)).await, [Settled::Queued]);
    set(db, &format!("{name}-c"), 3, Some(2)).await;
    submit_to(db, &pool, 1, 3).await;
    submit_to(db, &pool, 2, 5).await;
    pool
}

async fn deadlines(db: &Db) {
    let pool = pool(db, "fs-d", 1, &[("a", 1, Priority::Normal)]).await;
    let run = run_row(&pool.farm, None);
    let by = |ordinal, deadline_at| JobRow { deadline_at, ..job_row(&pool.farm, &run.id, ordinal) };
    let jobs = [by(0, Some(at(50))), by(1, Some(at(40))), by(2, None)];
    write!(db, |tx| run::create(tx, &run, &jobs));
    assert_eq!(queue::next_deadline(db).await.unwrap(), Some(at(40)));
    assert!(queue::overdue(db, at(39), 10).await.unwrap().is_empty());
    let overdue = queue::overdue(db, at(50), 10).await.unwrap();
    assert_eq!(overdue, [jobs[1].id.clone(), jobs[0].id.clone()]);
    for job in &overdue {
        assert!(write!(db, |tx| queue::give_up(tx, job, "late", at(50))));
        assert!(!write!(db, |tx| queue::give_up(tx, job, "late", at(51))), "again is harmless");
    }
    assert_eq!(run::job(db, &jobs[0].id).await.unwrap().job.reason.as_deref(), Some("late"));
    assert_eq!(queue::next_deadline(db).await.unwrap(), None);
    assert_eq!(run::get(db, &run.id).await.unwrap().state, RunState::Open);
    let cancel = JobChange { state: JobState::Cancelled, status: Status::Skip, reason: None, blamed_stage: None };
    write!(db, |tx| run::cancel(tx, &jobs[2].id, cancel, at(52)));
    assert!(lease(db, &pool.farm, 0).await.is_none());
    drain(db, &pool).await;
}

/// Leaves nothing for other checks to find.
async fn drain(db: &Db, pool: &Pool) {
    let cancel = JobChange { state: JobState::Cancelled, status: Status::Skip, reason: None, blamed_stage: None };
    for run in run::list(db, None, 1000).await.unwrap() {
        for job in run::jobs(db, &run.id).await.unwrap() {
            if pool.flows.contains(&job.job.flow_id) || job.job.flow_id == pool.farm.flow {
                write!(db, |tx| run::cancel(tx, &job.job.id, cancel, at(1)));
            }
        }
    }
    let mut tx = begin(db).await;
    for flow in pool.flows.iter().chain([&pool.farm.flow]) {
        flow::retire(&mut tx, flow).await.unwrap();
    }
    tx.commit().await.unwrap();
}
