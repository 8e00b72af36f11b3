//! Files and consoles that are opened, many in one commit ([`crate::group`]): each attempt opens some, at moments when thousands do.
//!
//! What it must never do: open one for an attempt that ends in the same moment, where nobody would ever close it. So attempts are
//! locked against that until the commit.

use crate::db::artifact::{self, ArtifactRow, NewFile, Owner};
use crate::db::attempt::{self, Standing};
use crate::db::{Db, DbError, DbResult, Tx};
use crate::group::Together;
use crashyard_protocol::clock::Timestamp;
use crashyard_protocol::{ArtifactId, AttemptId};
use std::collections::HashMap;
use std::time::Duration;

/// A file to be opened, if there is none of its name.
#[derive(Clone, Debug)]
pub struct ToOpen {
    /// Whose.
    pub owner: Owner,
    /// Of an attempt's: the epoch of who opens it.
    pub epoch: Option<u64>,
    /// Its name.
    pub name: String,
    /// Its id, if it is opened now.
    pub id: ArtifactId,
    /// When.
    pub at: Timestamp,
}

/// Opens files.
#[derive(Debug)]
pub struct Opener;

impl Together for Opener {
    type Ask = ToOpen;
    type Answer = ArtifactRow;
    const QUEUE: usize = 1024;
    const BATCH: usize = 64;
    // An attempt opens one when it begins and one with each boot; of ten thousand attempts it is one each ten milliseconds.
    const APART: Duration = Duration::from_millis(20);

    async fn write(&self, _: &Db, mut tx: Tx, asks: &[ToOpen]) -> DbResult<Vec<DbResult<ArtifactRow>>> {
        let ids: Vec<&AttemptId> = asks.iter().filter_map(|ask| ask.owner.attempt()).collect();
        let attempts = attempt::stay(&mut tx, &ids).await?;
        let may: Vec<DbResult<()>> = asks.iter().map(|ask| held(&attempts, ask)).collect();
        let files: Vec<NewFile<'_>> = asks
            .iter()
            .zip(&may)
            .filter(|(_, may)| may.is_ok())
            .map(|(ask, _)| NewFile {
                file: &ask.id,
                build: ask.owner.build(),
                attempt: ask.owner.attempt(),
                called: &ask.name,
                opened_at: ask.at,
            })
            .collect();
        let opened: HashMap<ArtifactId, ArtifactRow> =
            artifact::open_all(&mut tx, &files).await?.into_iter().map(|row| (row.id.clone(), row)).collect();
        let mut answers = Vec::with_capacity(asks.len());
        for (ask, may) in asks.iter().zip(may) {
            answers.push(match (may, opened.get(&ask.id)) {
                (Err(refused), _) => Err(refused),
                (Ok(()), Some(row)) => Ok(row.clone()),
                (Ok(()), None) => Ok(artifact::named(&mut tx, &ask.owner, &ask.name).await?),
            });
        }
        tx.commit().await?;
        Ok(answers)
    }
}

/// Whether the lease under which it is opened holds.
fn held(attempts: &HashMap<AttemptId, Standing>, ask: &ToOpen) -> DbResult<()> {
    match (ask.owner.attempt(), ask.epoch) {
        (Some(id), Some(epoch)) => attempts.get(id).ok_or(DbError::NotFound)?.check_epoch(epoch),
        _ => Ok(()),
    }
}
