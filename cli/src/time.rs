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
    let (number, unit) = split(text);
    let minutes = match unit {
        "m" => 1,
        "h" => 60,
        "d" => 24 * 60,
        _ => return Err("say it as 90m, 4h or 2d".into()),
    };
    let number: u32 = number.parse().map_err(|_| "say it as 90m, 4h or 2d".to_owned())?;
    number.checked_mul(minutes).filter(|all| *all > 0).ok_or_else(|| "that is no time to take a machine for".into())
}

/// A duration in seconds: `30s`, and what [`minutes`] reads.
pub fn seconds(text: &str) -> Result<u32, String> {
    let read = match split(text) {
        (number, "s") => number.parse().ok(),
        _ => minutes(text).ok().and_then(|minutes| minutes.checked_mul(60)),
    };
    read.filter(|all| *all > 0).ok_or_else(|| "say it as 30s, 90m, 4h or 2d".into())
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len())
}

/// A moment with its offset from UTC: `2026-11-24T11:00Z`, `2026-11-24 12:00+01:00`.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    let read: Result<jiff::Timestamp, _> = text.parse();
    read.map(|at| Timestamp(at.as_millisecond()))
        .map_err(|_| "say it with its offset from UTC: 2026-11-24T11:00Z, or 2026-11-24T12:00+01:00".into())
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
    #[test]
    fn seconds_are_read_too_and_a_moment_needs_its_offset() {
        assert_eq!([seconds("30s"), seconds("4h")], [Ok(30), Ok(14_400)]);
        assert!(seconds("0s").is_err() && seconds("30").is_err() && seconds("1w").is_err());
        assert_eq!(moment("2026-11-24T12:04:41+01:00"), Ok(Timestamp(1_795_518_281_000)));
        assert_eq!(moment("2026-11-24T11:00Z"), moment("2026-11-24 12:00+01:00"));
        assert!(moment("2026-11-24T11:00").is_err() && moment("tomorrow").is_err());
    }
}
