//! Times as people say them, and durations as people write them.

use jiff::Timestamp;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// `3m ago`, `in 2h`, `now`.
#[must_use]
pub fn relative(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(time.as_second());
    match seconds {
        0 => "now".to_owned(),
        1.. => format!("{} ago", span(seconds.unsigned_abs())),
        ..0 => format!("in {}", span(seconds.unsigned_abs())),
    }
}

/// A number of seconds in its largest unit, rounded down: `3m`.
#[must_use]
pub fn span(seconds: u64) -> String {
    let (unit, size) = UNITS.into_iter().find(|(_, size)| seconds >= *size).unwrap_or(("s", 1));
    format!("{}{unit}", seconds / size)
}

/// Reads `90s`, `30m`, `24h` or `7d` as milliseconds.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse_ms(text: &str) -> Result<u64, String> {
    UNITS
        .into_iter()
        .find_map(|(unit, size)| {
            let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            number.checked_mul(size * 1000)
        })
        .ok_or_else(|| "write a number and a unit, like 90s, 30m, 24h or 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_relative() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (time, text) in [
            ("2026-01-02T00:00:00Z", "now"),
            ("2026-01-01T23:59:01Z", "59s ago"),
            ("2026-01-01T23:57:00Z", "3m ago"),
            ("2026-01-01T00:00:00Z", "1d ago"),
            ("2026-01-02T02:30:00Z", "in 2h"),
        ] {
            assert_eq!(relative(time.parse().unwrap(), now), text);
        }
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_ms("24h"), Ok(86_400_000));
        assert_eq!(parse_ms("7d"), Ok(604_800_000));
        assert_eq!(parse_ms("90s"), Ok(90_000));
        for bad in ["", "5", "h", "1w", "-1h", "1.5h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(parse_ms(bad).is_err(), "{bad}");
        }
    }
}
