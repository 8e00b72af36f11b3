//! An errand: something that the server wants done with an idle machine, and that is no attempt.
//!
//! Nothing is written down about it: whoever dies at it is given it again with the next claim, and everything here may be done
//! twice. It must never be done while an attempt has the machine; the machine's task works one thing after the other.

use super::Member;
use crate::retry::persist;
use crashyard_protocol::agent::{Errand, ErrandDone, Order};
use crashyard_protocol::client::Client;

/// Longest text that the server takes, in bytes. What a BMC says may be longer.
const TEXT_MAX: usize = 4000;
/// Most findings that the server takes.
const FINDINGS_MAX: usize = 64;

/// Does an errand and says what came of it.
pub async fn run(client: &Client, member: &Member, errand: &Errand) {
    let machine = &member.config.name;
    tracing::info!(errand = %errand.errand, machine, order = ?errand.order, "an errand");
    let done = done(member, errand.order).await;
    tracing::info!(errand = %errand.errand, machine, ok = done.ok, detail = done.detail, "errand done");
    if let Err(error) = persist("say what came of an errand", || client.errand_done(&errand.errand, &done)).await {
        // A server that has forgotten it does not want to know.
        tracing::warn!(%error, errand = %errand.errand, machine, "nobody wants to know what came of it");
    }
}

async fn done(member: &Member, order: Order) -> ErrandDone {
    let outcome = match order {
        Order::Check { cycle } => member.driver.look(cycle).await.map(|report| (String::new(), report.findings)),
        Order::Off => member.driver.off().await.map(|detail| (detail, Vec::new())),
    };
    let ok = outcome.is_ok();
    let (detail, mut findings) = outcome.unwrap_or_else(|error| (format!("{error:#}"), Vec::new()));
    findings.truncate(FINDINGS_MAX);
    for finding in &mut findings {
        finding.capability = cut(&finding.capability);
        finding.detail = cut(&finding.detail);
    }
    ErrandDone { ok, detail: cut(&detail), findings }
}

/// The beginning of a text that is too long.
fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(TEXT_MAX.min(text.len()));
    text[..end].to_owned()
}
