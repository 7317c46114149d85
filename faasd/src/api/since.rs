//! Moments in the past as people write them: `10m`, or a time.

use std::time::Duration;

use jiff::Timestamp;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];

/// Reads `90s`, `10m`, `24h`, `7d` as a moment so long before `now`, or a time after RFC 3339.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let ago = UNITS.into_iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        now.checked_sub(Duration::from_secs(number.checked_mul(seconds)?)).ok()
    });
    ago.or_else(|| text.parse().ok()).ok_or_else(|| {
        "write how long ago, like 90s, 10m, 24h or 7d, or a time like 2026-01-31T12:00:00Z".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_times_are_read() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (text, time) in [
            ("10m", "2026-01-01T23:50:00Z"),
            ("2d", "2025-12-31T00:00:00Z"),
            ("0s", "2026-01-02T00:00:00Z"),
            ("2026-01-01T10:00:00.5+02:00", "2026-01-01T08:00:00.5Z"),
        ] {
            assert_eq!(parse(text, now), Ok(time.parse().unwrap()), "{text}");
        }
        for bad in ["", "10", "m", "-1m", "1.5h", "yesterday", "99999999999999999999d", "9999999999999999d"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
