//! What a process uses, as Linux says.

use anyhow::Context as _;

/// Processor time a process has used, user and system, in seconds (fields 14 and 15 of stat in proc(5), in ticks of 10 ms as
/// on every Linux that this runs on); `self` is this one.
pub fn processor(process: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit_once(')').context("stat")?.1;
    let ticks = after_name.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / 100.0)
}

/// Processor time that the children of a process have used, and those of them that are gone (fields 16 and 17).
pub fn processor_of_children(process: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after_name = stat.rsplit_once(')').context("stat")?.1;
    let gone = after_name.split_whitespace().skip(13).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    let children = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"))?;
    // A child that ends meanwhile is counted with the gone the next time.
    let now: f64 = children.split_whitespace().filter_map(|child| processor(child).ok()).sum();
    Ok(gone / 100.0 + now)
}
