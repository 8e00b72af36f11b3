//! What every kind of power can be asked for.

use anyhow::bail;
use async_trait::async_trait;
use std::time::Duration;

/// How long a machine may take to be seen in the power state it was asked for; services answer before they act.
const CONFIRM: Duration = Duration::from_secs(90);

/// Pause between two looks at the power state; nobody tells of it unasked.
const LOOK: Duration = Duration::from_millis(500);

/// Power of one real machine. What succeeds was seen, as far as the kind allows to see it; the text says how.
#[async_trait]
pub trait Chassis: Send + Sync {
    /// What speaks, for people: `IPMI at 10.0.0.7`.
    fn what(&self) -> String;
    /// The same inside a sentence: `the BMC`.
    fn who(&self) -> &'static str;
    /// Whether the machine is on.
    async fn is_on(&self) -> anyhow::Result<bool>;
    /// Has the machine switched on or off; that it was taken says nothing about the machine.
    async fn switch(&self, on: bool) -> anyhow::Result<()>;
    /// Resets.
    async fn reset(&self) -> anyhow::Result<String>;
    /// Sends a diagnostic NMI, once.
    async fn nmi(&self) -> anyhow::Result<String>;
    /// Makes the next boot, and only that one, a boot from the network. Where that cannot be told to the machine, the
    /// text says what is assumed.
    async fn boot_from_network_once(&self) -> anyhow::Result<String>;
    /// The event log, oldest first; `None` if it has none.
    async fn events(&self) -> anyhow::Result<Option<Vec<String>>>;
    /// Whether an NMI can be sent, without sending one: `Ok` says by what that is known.
    async fn can_nmi(&self) -> anyhow::Result<String>;

    /// Makes the machine show itself to who stands before the rack, for so many seconds; 0 ends it.
    async fn identify(&self, _seconds: u8) -> anyhow::Result<String> {
        bail!("{} has no light that could be switched", self.what())
    }

    /// Powers on or off and returns when that is seen; fine if it is so already.
    async fn power(&self, on: bool) -> anyhow::Result<String> {
        let (who, word) = (self.who(), if on { "on" } else { "off" });
        if self.is_on().await? == on {
            return Ok(format!("{who} says that it is {word} already"));
        }
        self.switch(on).await?;
        let deadline = tokio::time::Instant::now() + CONFIRM;
        while self.is_on().await? != on {
            if tokio::time::Instant::now() >= deadline {
                bail!("{who} does not say within {} s that the machine is {word}", CONFIRM.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(format!("{who} says that it is {word}"))
    }
}
