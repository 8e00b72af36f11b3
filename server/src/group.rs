//! Groups writes into commits.
//!
//! What is acknowledged must be durable, and a durable commit costs a flush of the disk. Writes that arrive while a commit
//! is under way wait for the next one together: one flush for all of them, no waiting where there is only one. Who
//! comes while a transaction begins goes with it, because to begin takes as long as a small batch.
//!
//! Where several are served at once, the next transaction begins a moment later: those who were answered ask again, and
//! otherwise half of the askers would always wait for the other half, in twice as many transactions as are needed. Most of what a
//! transaction costs does not depend on how many share it.
//!
//! What it must never do: let one write that spoils a transaction take the others with it.

use crate::db::{Db, DbError, DbResult, Tx};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until, timeout_at};

/// From so many in one transaction on there are several askers.
const SEVERAL: usize = 4;

/// What several writes of one kind have in common.
pub trait Together: Send + Sync + 'static {
    /// What is asked for.
    type Ask: Send + Sync + 'static;
    /// What comes of it.
    type Answer: Send + 'static;
    /// Asks waiting for the next commit; beyond it, askers wait for a place (backpressure, not memory).
    const QUEUE: usize;
    /// Asks in one commit.
    const BATCH: usize;
    /// How long after an answer its askers are expected to ask again; a part of what a transaction of many takes.
    const MOMENT: Duration = Duration::from_millis(2);
    /// Shortest time between an answer and the next transaction, for what nobody asks several times in a row.
    const APART: Duration = Duration::ZERO;

    /// Does all of them in this transaction and commits it: an answer for each, in their order. An error means that nothing
    /// was written.
    fn write(
        &self,
        db: &Db,
        tx: Tx,
        asks: &[Self::Ask],
    ) -> impl Future<Output = DbResult<Vec<DbResult<Self::Answer>>>> + Send;
}

type Waiting<T> = (<T as Together>::Ask, oneshot::Sender<DbResult<<T as Together>::Answer>>);

/// Handle to a task that writes.
#[derive(Debug)]
pub struct Group<T: Together>(mpsc::Sender<Waiting<T>>);

impl<T: Together> Group<T> {
    /// Starts the task; it ends when the last handle is gone.
    #[must_use]
    pub fn start(db: Db, kind: T) -> Self {
        let (sender, mut waiting) = mpsc::channel::<Waiting<T>>(T::QUEUE);
        tokio::spawn(async move {
            let (mut served, mut answered) = (0, Instant::now());
            while let Some(first) = waiting.recv().await {
                sleep_until(answered + T::APART).await;
                let mut batch = vec![first];
                let expected = if served < SEVERAL { 0 } else { T::BATCH.min(served + waiting.len()) };
                while batch.len() < expected {
                    let Ok(Some(more)) = timeout_at(answered + T::MOMENT, waiting.recv()).await else { break };
                    batch.push(more);
                }
                gather(&waiting, T::BATCH).await;
                let begun = db.begin().await;
                while batch.len() < T::BATCH {
                    let Ok(more) = waiting.try_recv() else { break };
                    batch.push(more);
                }
                // Who hung up was promised nothing, and asks again.
                batch.retain(|(_, sender)| !sender.is_closed());
                served = batch.len();
                let (asks, senders) = batch.into_iter().unzip();
                Box::pin(write(&kind, &db, begun, asks, senders)).await;
                answered = Instant::now();
            }
        });
        Self(sender)
    }

    /// Asks; what is answered is durable.
    pub async fn ask(&self, ask: T::Ask) -> DbResult<T::Answer> {
        let gone = || DbError::Unavailable(sqlx::Error::PoolClosed);
        let (sender, answer) = oneshot::channel();
        self.0.send((ask, sender)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Lets those come whose requests are being read at this moment: otherwise the first few of many who ask at once would have a
/// transaction of their own, for which all others wait.
async fn gather<T>(waiting: &mpsc::Receiver<T>, most: usize) {
    loop {
        let before = waiting.len();
        yield_now().await;
        if waiting.len() == before || waiting.len() >= most {
            return;
        }
    }
}

async fn write<T: Together>(
    kind: &T,
    db: &Db,
    begun: DbResult<Tx>,
    asks: Vec<T::Ask>,
    senders: Vec<oneshot::Sender<DbResult<T::Answer>>>,
) {
    if asks.is_empty() {
        return;
    }
    let written = match begun {
        Ok(tx) => kind.write(db, tx, &asks).await,
        Err(error) => Err(error),
    };
    let answers = match written {
        Ok(answers) => answers,
        Err(error) if asks.len() == 1 => vec![Err(error)],
        // One of them spoils the transaction: each for itself then.
        Err(_) => {
            for (ask, sender) in asks.into_iter().zip(senders) {
                let begun = db.begin().await;
                Box::pin(write(kind, db, begun, vec![ask], vec![sender])).await;
            }
            return;
        }
    };
    for (answer, sender) in answers.into_iter().zip(senders) {
        // Who hung up at this moment does not want its answer.
        let _ = sender.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::gather;
    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    /// Sends so many, one after another, each a turn of the scheduler later.
    fn one_after_another(count: usize) -> mpsc::Receiver<usize> {
        let (sender, waiting) = mpsc::channel(64);
        tokio::spawn(async move {
            for one in 0..count {
                sender.send(one).await.unwrap();
                yield_now().await;
            }
        });
        waiting
    }

    #[tokio::test]
    async fn those_who_come_one_after_another_are_waited_for_and_nobody_waits_for_those_who_do_not() {
        let waiting = one_after_another(20);
        gather(&waiting, 64).await;
        assert_eq!(waiting.len(), 20);
        let waiting = one_after_another(0);
        gather(&waiting, 64).await;
        assert_eq!(waiting.len(), 0);
    }

    #[tokio::test]
    async fn no_more_are_waited_for_than_have_room() {
        let waiting = one_after_another(20);
        gather(&waiting, 5).await;
        assert_eq!(waiting.len(), 5);
    }
}
