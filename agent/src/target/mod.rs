//! The target agent: arms kdump in the kernel under test and brings that kernel down.
//!
//! Started by the initramfs' init. Every step may be repeated, so an agent that is started again simply begins anew;
//! only the trigger cannot be taken back, and it is pulled only on the server's word, after the report and the
//! marker that announce it. A step that fails is reported with what the tool said, and the rest is still reported:
//! the judge wants to see all of it.

mod cmdline;
mod facts;
mod inventory;
mod kvm;
mod modules;
mod steps;
mod trigger;
mod vmx;

pub use facts::build_id;

use crate::guest::{Guest, Reporter};
use crashyard_protocol::agent::{Directive, Report, Role};
use std::path::Path;
use std::time::Duration;

/// Pause between questions when the server has not made up its mind (the console's banner may still be on its way).
const PATIENCE: Duration = Duration::from_millis(250);

/// Works through the attempt. Returns without a crash only when the server says stop, or when the trigger failed.
pub async fn run(directory: &Path) -> anyhow::Result<()> {
    let guest = Guest::open(directory)?;
    let scenario = guest.brief.scenario.clone();
    let mut reporter = Reporter::resume(&guest.client, &guest.ticket.attempt, Role::Target).await?;
    if let Directive::Stop { reason } = reporter.tell(facts::kernel()?).await? {
        return stopped(&reason);
    }
    reporter.tell(inventory::report().await).await?;

    let loaded = steps::load_crash_kernel(&guest, &mut reporter).await?;
    // Before the state is reached: what prepares the trigger would only be slower with guests on every CPU.
    let prepared = trigger::prepare(scenario.trigger, scenario.cpu).await;
    let can_trigger = prepared.iter().all(|step| step.ok);
    let (reached, vmx) = vmx::reach(&scenario).await;
    for step in prepared.iter().chain(&reached) {
        reporter.tell(step.report()).await?;
    }

    let ready = loaded && vmx == scenario.vmx && can_trigger;
    let mut directive = reporter.tell(facts::armed(vmx)?).await?;
    loop {
        match directive {
            Directive::Trigger if ready => break,
            Directive::Trigger => {
                let text = "told to trigger, but a step of arming failed: not crashing this kernel".to_owned();
                reporter.tell(Report::Note { text: text.clone() }).await?;
                anyhow::bail!(text);
            }
            Directive::Stop { reason } => return stopped(&reason),
            Directive::Continue | Directive::Collect => directive = reporter.ask(PATIENCE).await?,
        }
    }

    let marker = guest.brief.marker.clone();
    if let Directive::Stop { reason } = reporter.tell(Report::Triggering { marker: marker.clone() }).await? {
        return stopped(&reason);
    }
    trigger::mark(&marker)?;
    let failure = trigger::pull(scenario.trigger, scenario.cpu).await;
    // Still here, so the kernel is: say why.
    reporter.tell(trigger::survived(&failure)).await?;
    Err(failure)
}

fn stopped(reason: &str) -> anyhow::Result<()> {
    eprintln!("crashyard: the server says stop: {reason}");
    Ok(())
}
