//! Figures, their bars, and how they are printed.

use serde::Serialize;

/// One measured figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What came out, with its unit.
    pub measured: String,
    /// What was asked for.
    pub bar: String,
    /// Whether the bar was reached.
    pub reached: bool,
    /// The physical limit it was measured against, or how it was measured.
    pub limit: String,
}

/// The `q`-quantile (0..=1) of a set of samples, by nearest rank.
pub fn quantile(samples: &mut [f64], q: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank inside the slice")]
    let rank = ((samples.len() as f64 * q).ceil() as usize).clamp(1, samples.len().max(1));
    samples.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Processors that this machine has.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// Prints figures for people.
pub fn print(figures: &[Figure]) {
    for figure in figures {
        let mark = if figure.reached { "reached" } else { "MISSED " };
        println!("{mark}  {:<46} {:>16}   bar {:<14} {}", figure.what, figure.measured, figure.bar, figure.limit);
    }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn the_99th_percentile_of_200_samples_is_the_198th() {
        let mut samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((quantile(&mut samples, 0.99) - 198.0).abs() < f64::EPSILON);
    }
}
