//! Dumps: which is one too many, held, dropped, emptied, and seen while it arrives.

use super::*;
use crashyard_server::db::dump::{self, GlimpseRow};

/// An attempt of a run of its own, its dump still arriving.
async fn arriving(db: &Db, name: &str) -> (attempt::AttemptRow, ArtifactId) {
    let farm = farm(db, name, 1).await;
    submit(db, &farm, 1).await;
    let attempt = lease_until(db, &farm, 0, Some(at(40))).await.unwrap().attempt;
    write!(db, |tx| judgement::open_all(tx, &[(attempt.id.clone(), stages(0))]));
    let owner = Owner::Attempt(attempt.id.clone());
    let dump = open(db, &owner, "vmcore").await;
    add_chunk(db, &owner, &segment(&dump.id, 0, 100, "a")).await;
    (attempt::get(db, &attempt.id).await.unwrap(), dump.id)
}

/// Completes the dump, gives a verdict (with its signature), ends and settles the attempt, and reads it.
async fn over(db: &Db, attempt: &attempt::AttemptRow, dump: &ArtifactId, seconds: i64, status: Status) {
    let id = &attempt.id;
    write!(db, |tx| artifact::complete(tx, dump, "hash", at(seconds))).unwrap();
    let before = attempt::get(db, id).await.unwrap();
    assert!(judge(db, &before, &stages(0), &verdict(4, Some(status)), at(seconds)).await);
    write!(db, |tx| end_one(tx, id, &End::Released { epoch: 1, healthy: true, detail: "" }, &CARE.rule, at(seconds)))
        .unwrap();
    write!(db, |tx| attempt::set_read_by(tx, &[id], 7));
    let capsule = open(db, &Owner::Attempt(id.clone()), "found-capsule.v1.json").await;
    write!(db, |tx| artifact::complete(tx, &capsule.id, "hash", at(seconds)));
}

/// A dump waits to be read from its last byte on, as long as its attempt is live or not judged.
pub async fn unread(db: &Db) {
    let (attempt, dump) = arriving(db, "unread").await;
    let waits = async || attempt::unread_dumps(db, 1000).await.unwrap().contains(&attempt.id);
    let report = open(db, &Owner::Attempt(attempt.id.clone()), "report").await;
    write!(db, |tx| artifact::complete(tx, &report.id, "hash", at(1)));
    assert!(!waits().await, "it has not come");
    write!(db, |tx| artifact::complete(tx, &dump, "hash", at(2))).unwrap();
    assert!(waits().await);
    write!(db, |tx| attempt::set_dump_facts(tx, &[(&attempt.id, &serde_json::json!({ "facts": true }))]));
    assert!(!waits().await, "once is enough");

    let (lost, dump) = arriving(db, "unread and lost").await;
    write!(db, |tx| artifact::complete(tx, &dump, "hash", at(2))).unwrap();
    write!(db, |tx| end_one(tx, &lost.id, &End::Lost, &CARE.rule, at(90))).unwrap();
    let waits = async || attempt::unread_dumps(db, 1000).await.unwrap().contains(&lost.id);
    assert!(waits().await, "what arrived until the lease was lost counts");
    let before = attempt::get(db, &lost.id).await.unwrap();
    assert!(judge(db, &before, &stages(0), &verdict(4, Some(Status::Error)), at(91)).await);
    assert!(!waits().await, "nothing can come of it any more");

    let (ended, dump) = arriving(db, "unread and over").await;
    over(db, &ended, &dump, 3, Status::Fail).await;
    assert!(!attempt::unread_dumps(db, 1000).await.unwrap().contains(&ended.id));
}

/// Records a signature by version `rules` on two consoles of an attempt.
async fn show(db: &Db, attempt: &attempt::AttemptRow, fingerprint: &str, rules: i64) {
    for source in ["serial", "other"] {
        let console = open(db, &Owner::Attempt(attempt.id.clone()), &format!("console.{source}.{fingerprint}")).await;
        let new = NewSignature {
            id: SignatureId::from_ulid(ulid()),
            rule_version: rules,
            fingerprint: format!("dumps {fingerprint}"),
            title: "BUG: x".into(),
            kind: "bug".into(),
            frame: None,
            module: None,
            frames: Vec::new(),
        };
        let place = NewPlace {
            artifact_id: console.id,
            attempt_id: attempt.id.clone(),
            source: source.into(),
            start_at: 0,
            line: 1,
            reports: 1,
            seen_at: at(1),
        };
        write!(db, |tx| signature::record_all(tx, &[&(new, place)]));
    }
}

/// Ids of a query's answer.
fn id(row: Option<artifact::ArtifactRow>) -> Option<ArtifactId> {
    row.map(|row| row.id)
}

pub(super) async fn dumps(db: &Db) {
    let kept = dump::kept_bytes(db).await.unwrap();
    let (first, one) = arriving(db, "f-dump-1").await;
    let (second, two) = arriving(db, "f-dump-2").await;
    let (third, three) = arriving(db, "f-dump-3").await;

    assert_eq!(id(dump::growing(db, 101).await.unwrap()), None);
    assert_eq!(id(dump::growing(db, 100).await.unwrap()), Some(one.clone()));
    let glimpse = |bytes, body: Option<&str>| GlimpseRow {
        artifact_id: one.clone(),
        bytes,
        body: body.map(|text| Json(serde_json::json!({ "release": text }))),
        settled: false,
        read_at: at(1),
    };
    assert_eq!(dump::glimpse(db, &one).await.unwrap(), None);
    write!(db, |tx| dump::set_glimpse(tx, &glimpse(70, None)));
    assert_eq!(id(dump::growing(db, 100).await.unwrap()), Some(two.clone()), "100 is less than half more than 70");
    write!(db, |tx| dump::set_glimpse(tx, &GlimpseRow { artifact_id: two.clone(), settled: true, ..glimpse(1, None) }));
    assert_eq!(id(dump::growing(db, 100).await.unwrap()), Some(three.clone()), "all of it was seen");
    assert_eq!(dump::glimpse(db, &one).await.unwrap().unwrap().body, None);
    write!(db, |tx| dump::set_glimpse(tx, &glimpse(100, Some("6.1"))));
    write!(db, |tx| dump::set_glimpse(tx, &glimpse(50, Some("older"))));
    write!(db, |tx| dump::set_glimpse(tx, &glimpse(200, None)));
    let seen = dump::glimpse(db, &one).await.unwrap().unwrap();
    assert_eq!(
        (seen.bytes, seen.body.unwrap().0["release"].as_str()),
        (200, Some("6.1")),
        "the last that was readable"
    );

    assert_eq!(id(dump::oldest(db, 7, at(9)).await.unwrap()), None, "none is complete");
    over(db, &first, &one, 1, Status::Fail).await;
    over(db, &second, &two, 2, Status::Fail).await;
    over(db, &third, &three, 3, Status::Pass).await;
    assert_eq!(dump::kept_bytes(db).await.unwrap(), kept + 300);
    assert_eq!(id(dump::oldest(db, 8, at(9)).await.unwrap()), None, "not read by such a reader");
    assert_eq!(id(dump::oldest(db, 7, at(0)).await.unwrap()), None);
    assert_eq!(id(dump::oldest(db, 7, at(9)).await.unwrap()), Some(one.clone()));
    assert_eq!(id(dump::least(db, 7).await.unwrap()), Some(three.clone()), "of a passed attempt");
    // Without a signature of these rules, each is the only one of its scenario in its run.
    show(db, &first, "old", 91).await;
    show(db, &second, "old", 91).await;
    let ids = |rows: Vec<artifact::ArtifactRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    let surplus = async |each| ids(dump::surplus(db, 7, 92, each, 10).await.unwrap());
    assert_eq!(surplus(1).await, []);
    // All three show "b", and the first shows another one too.
    show(db, &first, "a", 92).await;
    for attempt in [&first, &second, &third] {
        show(db, attempt, "b", 92).await;
    }
    assert!(dump::surplus(db, 8, 92, 1, 10).await.unwrap().is_empty(), "not read by such a reader");
    assert_eq!(surplus(3).await, []);
    assert_eq!(surplus(2).await, std::slice::from_ref(&three));
    assert_eq!(surplus(1).await, [two.clone(), three.clone()]);
    assert_eq!(ids(dump::surplus(db, 7, 92, 1, 1).await.unwrap()), std::slice::from_ref(&two), "the oldest first");
    // The third is the first that shows this one.
    show(db, &third, "c", 92).await;
    assert_eq!(surplus(2).await, []);
    assert_eq!(surplus(1).await, std::slice::from_ref(&two));

    let token = token_row(Scope::Submit);
    write!(db, |tx| token::create(tx, &token, "of the holder"));
    let held = write!(db, |tx| dump::hold(tx, &two, &token.id, "mine", at(4))).unwrap();
    assert_eq!((held.held_by.as_deref(), held.held_reason.as_deref()), (Some(token.name.as_str()), Some("mine")));
    assert_eq!(surplus(1).await, [], "the held one stays");
    assert!(!write!(db, |tx| dump::drop_one(tx, &two, "why", at(5))));
    assert_eq!(write!(db, |tx| dump::release(tx, &two)).held_at, None);

    assert!(write!(db, |tx| dump::drop_one(tx, &two, "why", at(5))));
    assert!(!write!(db, |tx| dump::drop_one(tx, &two, "again", at(6))));
    assert!(write!(db, |tx| dump::hold(tx, &two, &token.id, "late", at(6))).is_none());
    let dropped = artifact::get(db, &two).await.unwrap();
    assert_eq!(
        (dropped.state, dropped.dropped_reason.as_deref(), dropped.blake3.as_deref(), dropped.size),
        (ArtifactState::Dropped, Some("why"), Some("hash"), 100)
    );
    assert!(dump::dropping(db, 10).await.unwrap().contains(&dropped));
    assert_eq!(artifact::segments(db, &two).await.unwrap().len(), 1, "its bytes are found until they are gone");
    write!(db, |tx| dump::set_emptied(tx, &three, at(7)));
    assert_eq!(artifact::segments(db, &three).await.unwrap().len(), 1, "only dropped ones are emptied");
    write!(db, |tx| dump::set_emptied(tx, &two, at(7)));
    assert!(artifact::segments(db, &two).await.unwrap().is_empty());
    assert!(!dump::dropping(db, 10).await.unwrap().iter().any(|row| row.id == two));
    assert_eq!(dump::kept_bytes(db).await.unwrap(), kept + 200);
    for rest in [one, three] {
        assert!(write!(db, |tx| dump::drop_one(tx, &rest, "done", at(8))));
    }
}
