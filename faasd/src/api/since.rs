//! Moments in the past as people write them: `10m`, or a time.

use jiff::{Span, SpanRelativeTo, Timestamp};

/// Reads `90s`, `10m`, `24h`, `7d` as a moment so long before `now`, or a time after RFC 3339.
///
/// # Errors
/// A sentence that says what is allowed.
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let ago = || {
        let span = text.parse::<Span>().ok()?.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
        (!span.is_negative()).then(|| now.checked_sub(span).ok()).flatten()
    };
    ago().or_else(|| text.parse().ok()).ok_or_else(|| {
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
            ("1h 30m", "2026-01-01T22:30:00Z"),
            ("1.5h", "2026-01-01T22:30:00Z"),
            ("2026-01-01T10:00:00.5+02:00", "2026-01-01T08:00:00.5Z"),
        ] {
            assert_eq!(parse(text, now), Ok(time.parse().unwrap()), "{text}");
        }
        for bad in ["", "10", "m", "-1m", "yesterday", "99999999999999999999d", "9999999999999999d"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
