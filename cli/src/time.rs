//! Times and durations, as people write and read them at a terminal.

use crashyard_protocol::clock::Timestamp;

/// Date and time of day; UTC, as everything on the farm's pages.
pub fn when(at: Timestamp) -> String {
    // A time that no calendar holds can only come from a broken row.
    jiff::Timestamp::from_millisecond(at.0)
        .map_or_else(|_| format!("{} ms", at.0), |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// How long ago, in the largest unit that says something.
pub fn ago(now: Timestamp, at: Timestamp) -> String {
    match now.since(at).as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{} m", seconds / 60),
        seconds @ 6_000..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

/// A duration in minutes: `90m`, `4h`, `2d`.
pub fn minutes(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let minutes = match unit {
        "m" => 1,
        "h" => 60,
        "d" => 24 * 60,
        _ => return Err("say it as 90m, 4h or 2d".into()),
    };
    let number: u32 = number.parse().map_err(|_| "say it as 90m, 4h or 2d".to_owned())?;
    number.checked_mul(minutes).filter(|all| *all > 0).ok_or_else(|| "that is no time to take a machine for".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_utc_and_durations_in_the_largest_unit() {
        // A leap day, and a time whose date is known from `date -u -d @1795518281`.
        assert_eq!(when(Timestamp(951_782_400_000)), "2000-02-29 00:00:00 UTC");
        assert_eq!(when(Timestamp(1_795_518_281_106)), "2026-11-24 11:04:41 UTC");
        let said = [5, 600, 7_200, 864_000].map(|seconds| ago(Timestamp(seconds * 1000), Timestamp(0)));
        assert_eq!(said, ["5 s", "10 m", "2 h", "10 d"]);
    }

    #[test]
    fn a_duration_has_a_unit_and_is_not_nothing() {
        assert_eq!([minutes("90m"), minutes("4h"), minutes("2d")], [Ok(90), Ok(240), Ok(2880)]);
        for wrong in ["4", "h", "0m", "4w", "99999999d", "-1h", ""] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
