//! Wake-ups: they say "look again" and nothing else; the database is the truth.
//!
//! A waiter subscribes, *then* reads the database, then waits: whatever is written after its read wakes it. A missed
//! or a spurious wake-up is harmless, and a wake-up carries no data that could be lost with the process. Other
//! servers on the same database are told by [`crate::relay`]; that may fail, so every waiter also looks by itself once in
//! a while ([`SAFETY`]), which no path waits for where nothing fails.

use crashyard_protocol::{ArtifactId, AttemptId, MachineId, RunId, SelectorId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a waiter trusts wake-ups alone.
pub const SAFETY: Duration = Duration::from_secs(10);

/// What somebody may wait for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// There may be a job for this machine, or an errand.
    Machine(MachineId),
    /// An errand of this machine is wanted, given or over.
    Errand(MachineId),
    /// The run has a new event.
    Run(RunId),
    /// The attempt has its verdict or has ended, its machine is to be returned, somebody typed, or it has one more console.
    Attempt(AttemptId),
    /// A console has grown or is closed.
    Console(ArtifactId),
    /// A pass has something to do.
    Pass(Pass),
}

/// The passes that can be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// A stage has a new deadline.
    Deadlines,
    /// A job with a deadline waits.
    Queue,
    /// A lease was given or renewed, or an attempt ended.
    Leases,
    /// A dump is complete.
    Verify,
    /// An attempt ended: its consoles can be put together, its evidence read.
    Compact,
    /// More of a dump has arrived.
    Glimpse,
    /// A reservation or a quarantine has a new end, or a job waits for a certain machine.
    Machines,
    /// Somebody is to be told that a reservation ends.
    Notices,
    /// A dump may be dropped: its attempt was read or settled, or nobody holds it any more.
    Dumps,
}

/// What other servers are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody may wait for this.
    Wake(Topic),
    /// So many jobs of a selector wait for machines.
    Offer(SelectorId, usize),
}

/// Who waits for what.
#[derive(Clone, Debug, Default)]
pub struct Wake {
    topics: Arc<Mutex<HashMap<Topic, watch::Sender<()>>>>,
    relay: Arc<OnceLock<mpsc::Sender<Told>>>,
}

/// One waiter.
#[derive(Debug)]
pub struct Subscription {
    wake: Wake,
    topic: Topic,
    receiver: Option<watch::Receiver<()>>,
}

impl Wake {
    fn topics(&self) -> std::sync::MutexGuard<'_, HashMap<Topic, watch::Sender<()>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to listen. Read the database after this, not before.
    #[must_use]
    pub fn subscribe(&self, topic: Topic) -> Subscription {
        let receiver = self.topics().entry(topic.clone()).or_insert_with(|| watch::channel(()).0).subscribe();
        Subscription { wake: self.clone(), topic, receiver: Some(receiver) }
    }

    /// Wakes whoever waits, at every server; `true` if anybody does at this one.
    pub fn wake(&self, topic: &Topic) -> bool {
        self.tell(|| Told::Wake(topic.clone()));
        self.wake_here(topic)
    }

    /// Tells the other servers. What does not fit in the queue is dropped.
    pub fn tell(&self, told: impl FnOnce() -> Told) {
        if let Some(relay) = self.relay.get() {
            let _ = relay.try_send(told());
        }
    }

    /// From now on, what is woken here is told to other servers as well.
    pub fn relay_to(&self, relay: mpsc::Sender<Told>) {
        // Who comes second finds that it is done already.
        let _ = self.relay.set(relay);
    }

    /// Wakes everybody who waits here: nobody knows who was meant.
    pub fn wake_everybody(&self) {
        for sender in self.topics().values() {
            let _ = sender.send(());
        }
    }

    /// Wakes whoever waits at this server; `true` if anybody does.
    pub fn wake_here(&self, topic: &Topic) -> bool {
        match self.topics().get(topic) {
            Some(sender) => sender.send(()).is_ok(),
            None => false,
        }
    }

    /// How many topics somebody waits for.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.topics().len()
    }
}

impl Subscription {
    /// Waits until the topic was woken since the subscription, or since the last call.
    pub async fn woken(&mut self) {
        if let Some(receiver) = &mut self.receiver {
            // The sender lives as long as any receiver does.
            let _ = receiver.changed().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut topics = self.wake.topics();
        self.receiver = None;
        if topics.get(&self.topic).is_some_and(|sender| sender.receiver_count() == 0) {
            topics.remove(&self.topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic() -> Topic {
        Topic::Pass(Pass::Verify)
    }

    #[tokio::test]
    async fn a_wake_up_between_subscribing_and_waiting_is_not_missed() {
        let wake = Wake::default();
        let mut waiter = wake.subscribe(topic());
        assert!(wake.wake(&topic()));
        waiter.woken().await;
    }

    #[tokio::test]
    async fn a_topic_is_forgotten_with_its_last_waiter() {
        let wake = Wake::default();
        let first = wake.subscribe(topic());
        let second = wake.subscribe(topic());
        drop(first);
        assert!(wake.wake(&topic()));
        drop(second);
        assert!(!wake.wake(&topic()));
        assert_eq!(wake.waiting(), 0);
    }
}
