//! Ends of attempts, their terms, files that are opened and chunks of uploads, many in one transaction: each gets its own answer.

use super::*;
use crashyard_server::group::Together as _;
use crashyard_server::opener::{Opener, ToOpen};
use crashyard_server::receiver::{Receiver, Registered};
use crashyard_server::terms::KnownTerms;
use std::sync::Arc;

pub async fn together(db: &Db) {
    ended(db).await;
    looked_up(db).await;
    opened(db).await;
    received(db).await;
    received_at_once(db).await;
}

async fn ended(db: &Db) {
    let farm = farm(db, "f-ended-together", 3).await;
    let (run, jobs) = submit(db, &farm, 3).await;
    let mut leased = Vec::new();
    for machine in 0..3 {
        leased.push(lease(db, &farm, machine).await.unwrap().attempt);
    }
    let nobody = AttemptId::from_ulid(ulid());
    let end = |epoch| End::Released { epoch, healthy: true, detail: "" };
    let ends = [(&leased[2].id, end(1)), (&nobody, end(1)), (&leased[0].id, end(7)), (&leased[1].id, end(1))];
    let ids: Vec<&AttemptId> = leased.iter().map(|one| &one.id).chain([&nobody]).collect();
    let mut tx = begin(db).await;
    let mut locked = attempt::lock(&mut tx, &ids).await.unwrap();
    let answers = lease::end_all(&mut tx, &mut locked, &ends, &CARE.rule, at(10)).await.unwrap();
    assert!(
        matches!(answers[..], [Ok(true), Err(DbError::NotFound), Err(DbError::LeaseLost(_)), Ok(true)]),
        "who is refused spoils nobody's end: {answers:?}"
    );
    let again = lease::end_all(&mut tx, &mut locked, &ends[..1], &CARE.rule, at(11)).await.unwrap();
    assert!(matches!(again[..], [Ok(false)]), "once: {again:?}");
    let (live, over): (Vec<_>, Vec<_>) = locked.into_iter().partition(|full| full.attempt.is_live());
    let had: Vec<_> = over.iter().filter_map(flow::Had::of).collect();
    flow::correct(&mut tx, &had).await.unwrap();
    tx.commit().await.unwrap();
    let ended: Vec<_> = over.into_iter().map(|full| full.attempt).collect();
    for one in live.iter().map(|full| &full.attempt).chain(&ended) {
        assert_eq!(attempt::get(db, &one.id).await.unwrap(), *one, "what is in the hand is what is written");
        let machine = machine::get(db, &one.machine_id).await.unwrap().machine;
        let (state, owner) =
            if one.is_live() { (MachineState::Leased, Some(&one.id)) } else { (MachineState::Available, None) };
        assert_eq!((machine.state, machine.attempt_id.as_ref()), (state, owner));
    }
    assert_eq!((live.len(), &live[0].attempt.id), (1, &leased[0].id));
    let again = write!(db, |tx| end_one(tx, ends[0].0, &ends[0].1, &CARE.rule, at(11)));
    assert!(again.is_none(), "once");
    let all = flow::submitters(db).await.unwrap();
    let submitter = all.iter().find(|one| one.submitter.name == farm.name).unwrap();
    assert_eq!((submitter.submitter.machine_ms, submitter.machines), (20_000, 1), "two attempts of ten seconds");

    let settled = settle(db, &ended.iter().collect::<Vec<_>>(), &CARE, at(11)).await;
    assert_eq!(settled, [Settled::Queued, Settled::Queued], "nothing was shown: it is tried again");
    assert_eq!(settle(db, &ended.iter().collect::<Vec<_>>(), &CARE, at(12)).await, [Settled::Before, Settled::Before]);
    let events = event::of_run(db, &run.id, 0, 100).await.unwrap();
    assert!(events.iter().zip(1..).all(|(event, seq)| event.seq == seq), "counted without a gap");
    for one in &ended {
        let told: Vec<_> = events.iter().filter(|event| event.job_id.as_ref() == Some(&one.job_id)).collect();
        let [.., done, job] = &told[..] else { panic!("{told:?}") };
        assert!(matches!(done.body.0, EventBody::AttemptDone));
        assert!(matches!(job.body.0, EventBody::Job { state: JobState::Queued, .. }));
    }
    let cancel = JobChange { state: JobState::Cancelled, status: Status::Skip, reason: None, blamed_stage: None };
    for job in &jobs {
        // Leave nothing for other checks to find.
        write!(db, |tx| run::cancel(tx, &job.id, cancel, at(13)));
    }
}

/// Terms are the same whether they are remembered, asked for one by one or together; what is not there is left out.
async fn looked_up(db: &Db) {
    let farm = farm(db, "f-looked-up-together", 2).await;
    let (_, jobs) = submit(db, &farm, 2).await;
    let leased = [lease(db, &farm, 0).await.unwrap().attempt, lease(db, &farm, 1).await.unwrap().attempt];
    let nobody = AttemptId::from_ulid(ulid());
    let known = KnownTerms::default();
    let first = known.of(db, &leased[0].id).await.unwrap();
    let job = run::job(db, &leased[0].job_id).await.unwrap().job;
    assert_eq!((&first.scenario, &first.policy), (&job.scenario, &job.policy));
    assert!(matches!(known.of(db, &nobody).await, Err(DbError::NotFound)));
    for _ in 0..2 {
        let mut tx = begin(db).await;
        let all = known.of_all(&mut tx, &[&leased[0].id, &nobody, &leased[1].id]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(all.len(), 2);
        assert!(Arc::ptr_eq(&all[&leased[0].id], &first), "remembered");
        assert_eq!(*all[&leased[1].id], attempt::terms(db, &leased[1].id).await.unwrap());
        assert_eq!(all[&leased[1].id].attempt_id, leased[1].id);
    }
    known.forget(&leased[0].id);
    let again = known.of(db, &leased[0].id).await.unwrap();
    assert!(!Arc::ptr_eq(&again, &first) && again == first, "forgotten, and read again");
    for (one, job) in leased.iter().zip(&jobs) {
        let end = End::Released { epoch: 1, healthy: true, detail: "" };
        write!(db, |tx| end_one(tx, &one.id, &end, &CARE.rule, at(10)));
        let cancel = JobChange { state: JobState::Cancelled, status: Status::Skip, reason: None, blamed_stage: None };
        write!(db, |tx| run::cancel(tx, &job.id, cancel, at(13)));
    }
}

async fn opened(db: &Db) {
    let farm = farm(db, "f-opened-together", 2).await;
    submit(db, &farm, 2).await;
    let held = lease(db, &farm, 0).await.unwrap().attempt;
    let over = lease(db, &farm, 1).await.unwrap();
    write!(db, |tx| end_one(
        tx,
        &over.attempt.id,
        &End::Released { epoch: 1, healthy: true, detail: "" },
        &CARE.rule,
        at(1)
    ));
    let open = |owner: Owner, epoch, name: &str| ToOpen {
        owner,
        epoch,
        name: name.into(),
        id: ArtifactId::from_ulid(ulid()),
        at: at(2),
    };
    let of = |id: &AttemptId| Owner::Attempt(id.clone());
    let asks = [
        open(of(&held.id), Some(1), "vmcore"),
        open(of(&held.id), Some(1), "vmcore"),
        open(of(&held.id), Some(7), "notes"),
        open(of(&over.attempt.id), Some(1), "vmcore"),
        open(of(&AttemptId::from_ulid(ulid())), Some(1), "vmcore"),
        open(Owner::Build(farm.build.id.clone()), None, "opened-together"),
    ];
    let answers = Opener.write(db, begin(db).await, &asks).await.unwrap();
    let [
        Ok(first),
        Ok(second),
        Err(DbError::LeaseLost(_)),
        Err(DbError::LeaseLost(_)),
        Err(DbError::NotFound),
        Ok(of_build),
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!(first, second, "one file of a name");
    assert_eq!((first.name.as_str(), first.attempt_id.as_ref()), ("vmcore", Some(&held.id)));
    assert_eq!(of_build.build_id.as_ref(), Some(&farm.build.id));
    let again = Opener.write(db, begin(db).await, &asks[..1]).await.unwrap();
    assert!(matches!(&again[..], [Ok(found)] if found == first), "{again:?}");
    assert!(artifact::list(db, &of(&over.attempt.id)).await.unwrap().is_empty());
}

async fn received(db: &Db) {
    let farm = farm(db, "f-received-together", 1).await;
    let (run, _) = submit(db, &farm, 1).await;
    let attempt = lease(db, &farm, 0).await.unwrap().attempt;
    let owner = Owner::Attempt(attempt.id.clone());
    let dump = open(db, &owner, "vmcore").await;
    let chunk = |start, length, hash, epoch, quota| Arrived {
        owner: owner.clone(),
        epoch: Some(epoch),
        segment: segment(&dump.id, start, length, hash),
        quota,
    };
    let asks = [
        chunk(0, CHUNK_BYTES, "a", 1, u64::MAX),
        chunk(0, CHUNK_BYTES, "a", 1, u64::MAX),
        chunk(CHUNK_BYTES, CHUNK_BYTES, "b", 7, u64::MAX),
        chunk(CHUNK_BYTES, CHUNK_BYTES, "b", 1, CHUNK_BYTES),
        chunk(CHUNK_BYTES, 10, "c", 1, u64::MAX),
        chunk(2 * CHUNK_BYTES, 10, "d", 1, u64::MAX),
    ];
    let answers = Receiver.write(db, begin(db).await, &asks).await.unwrap();
    let [Ok(first), Ok(again), Err(DbError::LeaseLost(_)), Ok(beyond), Ok(last), Ok(behind)] = &answers[..] else {
        panic!("{answers:?}")
    };
    let became = |outcome, told: Option<&RunId>| Registered { outcome, told: told.cloned() };
    let added = |size, told| became(ChunkOutcome::Added { size }, told);
    assert_eq!(*first, added(CHUNK_BYTES, None));
    assert_eq!(*again, became(ChunkOutcome::Had, None));
    assert_eq!(*beyond, became(ChunkOutcome::BeyondQuota, None));
    assert_eq!(*last, added(CHUNK_BYTES + 10, Some(&run.id)), "progress is told once, as far as it came");
    assert!(matches!(behind, Registered { outcome: ChunkOutcome::Contradicts(_), told: None }));
    let events = event::of_attempt(db, &attempt.id, 0, 100).await.unwrap();
    let told: Vec<_> = events.iter().filter(|one| matches!(one.body.0, EventBody::DumpProgress { .. })).collect();
    assert!(
        matches!(told[..], [one] if matches!(one.body.0, EventBody::DumpProgress { bytes } if bytes == CHUNK_BYTES + 10))
    );
    assert_eq!(artifact::get(db, &dump.id).await.unwrap().size, 10 + i64::try_from(CHUNK_BYTES).unwrap());
}

/// The same chunk at several servers in one moment is there once, and all of them have it.
async fn received_at_once(db: &Db) {
    let farm = farm(db, "f-received-at-once", 1).await;
    submit(db, &farm, 1).await;
    let attempt = lease(db, &farm, 0).await.unwrap().attempt;
    let owner = Owner::Attempt(attempt.id.clone());
    let dump = open(db, &owner, "vmcore").await;
    for round in 0..8_u64 {
        let segment = segment(&dump.id, round * CHUNK_BYTES, CHUNK_BYTES, "a");
        let ask = Arrived { epoch: Some(1), ..arrived(&owner, &segment) };
        let servers = (0..4).map(|_| {
            let (db, ask) = (db.clone(), ask.clone());
            tokio::spawn(async move { Receiver.write(&db, begin(&db).await, &[ask]).await.unwrap().remove(0) })
        });
        let mut added = 0;
        for server in servers.collect::<Vec<_>>() {
            match server.await.unwrap().unwrap().outcome {
                ChunkOutcome::Added { size } => {
                    assert_eq!(size, (round + 1) * CHUNK_BYTES);
                    added += 1;
                }
                outcome => assert_eq!(outcome, ChunkOutcome::Had),
            }
        }
        assert_eq!(added, 1);
    }
    assert_eq!(artifact::get(db, &dump.id).await.unwrap().size, 8 * i64::try_from(CHUNK_BYTES).unwrap());
}
