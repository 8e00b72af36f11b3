//! What every kind of power can be asked for.

use super::ipmi::{Bmc, Control};
use async_trait::async_trait;

/// Power of one real machine. What succeeds was seen, as far as the kind allows to see it; the text says how.
#[async_trait]
pub trait Chassis: Send + Sync {
    /// What speaks, for people: `IPMI at 10.0.0.7`.
    fn what(&self) -> String;
    /// Whether the machine is on.
    async fn is_on(&self) -> anyhow::Result<bool>;
    /// Powers on or off and returns when that is seen; fine if it is so already.
    async fn power(&self, on: bool) -> anyhow::Result<String>;
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
}

#[async_trait]
impl Chassis for Bmc {
    fn what(&self) -> String {
        format!("IPMI at {}", self.host)
    }

    async fn is_on(&self) -> anyhow::Result<bool> {
        Self::is_on(self).await
    }

    async fn power(&self, on: bool) -> anyhow::Result<String> {
        Self::power(self, on).await
    }

    async fn reset(&self) -> anyhow::Result<String> {
        self.control(Control::Reset).await?;
        Ok("the BMC took the reset".into())
    }

    async fn nmi(&self) -> anyhow::Result<String> {
        self.control(Control::Diagnostic).await?;
        Ok("the BMC took the diagnostic interrupt".into())
    }

    async fn boot_from_network_once(&self) -> anyhow::Result<String> {
        Self::boot_from_network_once(self).await?;
        Ok("its next boot is from the network".into())
    }

    async fn events(&self) -> anyhow::Result<Option<Vec<String>>> {
        Self::events(self).await.map(Some)
    }

    async fn can_nmi(&self) -> anyhow::Result<String> {
        anyhow::bail!("IPMI does not say whether the BMC takes a diagnostic interrupt; only sending one shows it")
    }
}
