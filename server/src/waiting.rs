//! "Why is my job waiting?": which machines it could have and where those are, who comes first, when it may start.
//!
//! Everything but the expected start is exact for the moment it was read; of very long queues it says "at least". The
//! expected start is an estimate from how long such attempts took.

use crate::app::AppState;
use crate::db::machine::NamedMachine;
use crate::db::reservation::{self, ReservationRow};
use crate::db::waiting::{self, Competitor};
use crate::db::{self, unsigned};
use crate::error::{AppError, AppResult};
use crashyard_protocol::api::{Ahead, Unsatisfied, Waiting, WaitingConstraint, WaitingLimit, WaitingMachine};
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{JobId, JobState, MachineId, MachineState};
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Machines named in one list of an answer.
const NAMED: usize = 50;

/// Why a job waits.
pub async fn of_job(state: &AppState, id: &JobId) -> AppResult<Waiting> {
    let job = db::run::job(&state.db, id).await.map_err(|error| AppError::or_not_found(error, "job"))?.job;
    let machines = waiting::machines(&state.db).await?;
    let selector = waiting::selector(&state.db, &job).await?.selector()?;
    let flow = waiting::flow(&state.db, &job.flow_id).await?;
    // Who has nothing left that waits is in nobody's way.
    let mut others = waiting::competitors(&state.db, &flow.flow).await?;
    others.retain(|other| other.jobs > 0);
    let reserved: Reserved =
        reservation::all_open(&state.db).await?.into_iter().map(|row| (row.machine_id.clone(), row)).collect();
    let before = waiting::before(&state.db, &job).await?;
    let held = match flow.max_machines {
        Some(_) => waiting::held(&state.db, &flow.flow).await?,
        None => 0,
    };
    let constraints = selector
        .constraints()
        .map(|constraint| {
            let (fits, fails): (Vec<_>, Vec<_>) =
                machines.iter().partition(|machine| constraint.holds(&machine.facts()));
            WaitingConstraint {
                constraint: constraint.to_string(),
                satisfied_by: count(fits.len()),
                failed_by: count(fails.len()),
                fails: fails
                    .into_iter()
                    .take(NAMED)
                    .map(|machine| Unsatisfied {
                        machine: machine.machine.name.clone(),
                        found: constraint.found(&machine.facts()),
                    })
                    .collect(),
            }
        })
        .collect();
    let fitting: Vec<&NamedMachine> = machines.iter().filter(|machine| selector.holds(&machine.facts())).collect();
    let expected = expect(&flow, before, &others, &fitting, &reserved, state.now());
    let mut waiting = Waiting {
        job: job.id.clone(),
        state: job.state,
        summary: String::new(),
        since: job.created_at,
        deadline: job.deadline_at,
        submitter: flow.submitter.clone(),
        priority: flow.flow.priority,
        constraints,
        fitting: count(fitting.len()),
        machines: fitting.iter().take(NAMED).map(|machine| shown(machine, &reserved, state.now())).collect(),
        before: unsigned(before),
        ahead: others
            .iter()
            .map(|other| Ahead {
                submitter: other.submitter.clone(),
                priority: other.flow.priority,
                jobs: unsigned(other.jobs),
                first: key(other) < key(&flow),
            })
            .collect(),
        limit: flow.max_machines.map(|most| WaitingLimit { machines: count(most), held: count(held) }),
        expected_start: expected,
    };
    let bound = |id: &Option<MachineId>| {
        let named =
            |id: &MachineId| machines.iter().find(|one| one.machine.id == *id).map(|one| one.machine.name.as_str());
        id.as_ref().and_then(named)
    };
    let bound = match (bound(&job.only_machine_id), bound(&job.not_machine_id)) {
        (Some(only), _) => Some(format!("its next attempt is on {only} and nowhere else")),
        (None, Some(not)) => Some(format!("its next attempt is not on {not}, where it failed")),
        (None, None) => None,
    };
    waiting.summary = summary(&waiting, bound, &fitting, &reserved, machines.len(), state.now());
    Ok(waiting)
}

/// What a claim compares.
fn key(flow: &Competitor) -> (i64, i64, &str) {
    (flow.flow.class, flow.virtual_time, flow.flow.id.as_str())
}

fn count(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}

/// Who has which machine, or has it next.
type Reserved = HashMap<MachineId, ReservationRow>;

/// When a machine's state ends by itself.
fn until(machine: &NamedMachine, reserved: &Reserved) -> Option<Timestamp> {
    let row = &machine.machine;
    let began = reserved.get(&row.id).filter(|one| one.began_at.is_some());
    row.quarantined_until.or_else(|| began.map(|one| one.until_at))
}

/// Who has a machine as soon as its attempt is over.
fn next_owner<'a>(machine: &NamedMachine, reserved: &'a Reserved) -> Option<&'a ReservationRow> {
    reserved.get(&machine.machine.id).filter(|one| one.began_at.is_none())
}

/// Since when nothing was heard of a machine's controller, where that is too long ago.
fn silent_since(machine: &NamedMachine, now: Timestamp) -> Option<Timestamp> {
    (machine.machine.announced && !machine.is_reachable(now)).then(|| machine.heard_of_at())
}

fn shown(machine: &NamedMachine, reserved: &Reserved, now: Timestamp) -> WaitingMachine {
    let row = &machine.machine;
    WaitingMachine {
        until: until(machine, reserved),
        next: next_owner(machine, reserved).map(|one| one.owner.clone()),
        id: row.id.clone(),
        name: row.name.clone(),
        state: row.state,
        announced: row.announced,
        silent_since: silent_since(machine, now),
        reason: row.reason.clone(),
        since: row.state_since,
        attempt: row.attempt_id.clone(),
    }
}

/// Whether a machine is in the round: it will take jobs without anybody doing anything.
fn in_the_round(machine: &NamedMachine, reserved: &Reserved, now: Timestamp) -> bool {
    let row = &machine.machine;
    machine.is_reachable(now)
        && next_owner(machine, reserved).is_none()
        && matches!(row.state, MachineState::Enrolled | MachineState::Available | MachineState::Leased)
}

/// An estimate: the jobs that come first, shared over the machines in the round, each as long as such jobs took lately.
fn expect(
    own: &Competitor,
    before: i64,
    others: &[Competitor],
    fitting: &[&NamedMachine],
    reserved: &Reserved,
    now: Timestamp,
) -> Option<Timestamp> {
    let round: Vec<_> = fitting.iter().filter(|machine| in_the_round(machine, reserved, now)).collect();
    let machines = i64::try_from(round.len()).ok()?;
    if machines == 0 {
        return None;
    }
    let known: Vec<i64> = std::iter::once(own)
        .filter(|own| own.flow.mean_ms > 0)
        .chain(others.iter().filter(|other| own.flow.mean_ms == 0 && other.flow.mean_ms > 0))
        .map(|flow| flow.flow.mean_ms)
        .collect();
    let first: i64 = others
        .iter()
        .map(|other| match other.flow.class.cmp(&own.flow.class) {
            std::cmp::Ordering::Less => other.jobs,
            // While the own jobs before it are served, others of the class get their share.
            std::cmp::Ordering::Equal => other.jobs.min((before + 1) * other.weight / own.weight.max(1)),
            std::cmp::Ordering::Greater => 0,
        })
        .sum::<i64>()
        .saturating_add(before);
    let idle = round.iter().filter(|one| one.machine.state != MachineState::Leased).count();
    let busy_rounds = first.saturating_sub(i64::try_from(idle).ok()?).saturating_add(machines) / machines;
    if first < i64::try_from(idle).ok()? {
        return Some(now);
    }
    if known.is_empty() {
        return None;
    }
    let mean = known.iter().sum::<i64>() / i64::try_from(known.len()).ok()?;
    let wait = u64::try_from(mean.saturating_mul(busy_rounds)).ok()?;
    Some(now.plus(Duration::from_millis(wait)))
}

/// All of it in one sentence.
fn summary(
    waiting: &Waiting,
    bound: Option<String>,
    fitting: &[&NamedMachine],
    reserved: &Reserved,
    all: usize,
    now: Timestamp,
) -> String {
    match waiting.state {
        JobState::Queued => {}
        JobState::Leased => return "It is not waiting: a machine has it.".into(),
        JobState::Done | JobState::Cancelled => return format!("It is not waiting: it is {}.", waiting.state),
    }
    let mut parts = Vec::new();
    if fitting.is_empty() {
        let hardest = waiting.constraints.iter().min_by_key(|constraint| constraint.satisfied_by);
        parts.push(match hardest {
            _ if all == 0 => "no machine is enrolled".to_owned(),
            Some(one) if one.satisfied_by == 0 => format!("none of {all} machines satisfies `{}`", one.constraint),
            _ => format!("none of {all} machines satisfies all of its constraints together"),
        });
    } else {
        parts.push(format!("{} of {all} machines satisfy it: {}", fitting.len(), states(fitting, reserved, now)));
    }
    parts.extend(bound);
    if let Some(limit) = &waiting.limit
        && limit.held >= limit.machines
    {
        parts.push(format!("{} has its {} machines already", waiting.submitter, limit.machines));
    }
    let others: u64 = waiting.ahead.iter().filter(|ahead| ahead.first).map(|ahead| ahead.jobs).sum();
    parts.push(format!("{} jobs before it in its own queue", counted(waiting.before)));
    if others > 0 {
        parts.push(format!("{} of others whose turn comes first", counted(others)));
    }
    if !fitting.is_empty() {
        parts.push(match waiting.expected_start {
            Some(at) if at <= now => "it should start now".to_owned(),
            Some(at) => format!("expected to start in about {}", crate::pages::format::ago(at.since(now))),
            None => "when it will start cannot be told".to_owned(),
        });
    }
    parts.join("; ")
}

/// A number that was counted up to a bound only.
fn counted(jobs: u64) -> String {
    if jobs < unsigned(waiting::COUNTED) { jobs.to_string() } else { format!("at least {jobs}") }
}

/// Machines by state; where few are in a state for a reason, with it.
fn states(fitting: &[&NamedMachine], reserved: &Reserved, now: Timestamp) -> String {
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    for machine in fitting {
        let row = &machine.machine;
        let minute = |at| crate::pages::format::When(at).minute();
        let known = match (&row.reason, next_owner(machine, reserved)) {
            (Some(reason), _) => {
                let until = until(machine, reserved).map(|at| format!(" until {}", minute(at))).unwrap_or_default();
                format!("{} since {}{until} ({reason})", row.state, minute(row.state_since))
            }
            (None, Some(next)) => format!("{}, and then {}'s ({})", row.state, next.owner, next.reason),
            (None, None) if row.errand_owed && row.attempt_id.is_none() => {
                format!("{}, and first something else is done with it", row.state)
            }
            (None, None) => row.state.to_string(),
        };
        let words = match silent_since(machine, now) {
            _ if !row.announced => "not announced by its controller".to_owned(),
            // Who has it keeps it, whatever becomes of its controller.
            Some(at) => {
                let at = minute(at);
                format!("unknown, because nothing was heard of its controller since {at}, and before that {known}")
            }
            None => known,
        };
        *groups.entry(words).or_default() += 1;
    }
    groups.into_iter().map(|(words, count)| format!("{count} {words}")).collect::<Vec<_>>().join(", ")
}
