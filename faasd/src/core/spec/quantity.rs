//! Sizes and durations, as a number or with a unit.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

pub fn bytes<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let units = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
    input.deserialize_any(Quantity { units, example: "a size in bytes, or like \"128MiB\"" })
}

pub fn milliseconds<'de, D: Deserializer<'de>>(input: D) -> Result<u64, D::Error> {
    let units = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    input.deserialize_any(Quantity { units, example: "milliseconds, or like \"30s\"" })
}

struct Quantity {
    units: &'static [(&'static str, u64)],
    example: &'static str,
}

impl Visitor<'_> for Quantity {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.example)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        u64::try_from(value).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[number.len()..];
        let factor = self.units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
        factor
            .zip(number.trim().parse::<u64>().ok())
            .and_then(|(factor, number)| number.checked_mul(factor))
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }
}
