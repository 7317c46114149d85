//! How an acceptor's thread is to be woken, by how much comes in.
//!
//! Where connections come slowly each is to be taken at once, also on a core that somebody else keeps busy: a thread that
//! waits for its turn there waits for some four milliseconds. Where they come fast a thread that interrupts its core for each
//! of them finds one at a time, and its interruptions are what the core does. Both were measured (docs/BENCHMARKS.md).

/// As long as a busy neighbour's turn takes, several times over.
const WINDOW_NS: u64 = 20_000_000;

/// From so many in a window, 10,000 a second, they are to gather.
const GATHER_FROM: u32 = 200;

/// Below so many no longer. Whoever is made to wait by a busy neighbour sends fewer, and is taken at once again.
const GATHER_TO: u32 = 100;

/// What has come in of late.
#[derive(Debug, Default)]
pub(super) struct Pace {
    window_began_ns: u64,
    connections: u32,
    gathers: bool,
}

impl Pace {
    /// Notes what a sweep has brought at a time in nanoseconds. Says whether they are to gather from now on, if that is new.
    pub fn note(&mut self, now_ns: u64, connections: u32) -> Option<bool> {
        self.connections = self.connections.saturating_add(connections);
        let elapsed = now_ns.saturating_sub(self.window_began_ns);
        if elapsed < WINDOW_NS {
            return None;
        }
        // A window lasts until something happens, be it much longer.
        let share = u64::from(self.connections).saturating_mul(WINDOW_NS) / elapsed;
        let gathers = share >= u64::from(if self.gathers { GATHER_TO } else { GATHER_FROM });
        let is_new = gathers != self.gathers;
        *self = Self { window_began_ns: now_ns, connections: 0, gathers };
        is_new.then_some(gathers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const NOTHING: [bool; 0] = [];

    /// What is said within a second of one connection every so many microseconds.
    fn said(pace: &mut Pace, from_ns: u64, every_us: u64) -> Vec<bool> {
        (1..=1_000_000 / every_us).filter_map(|i| pace.note(from_ns + i * every_us * 1000, 1)).collect()
    }

    #[test]
    fn what_comes_fast_gathers_until_it_comes_slowly() {
        let mut pace = Pace::default();
        assert_eq!(said(&mut pace, 0, 110), NOTHING);
        assert_eq!(said(&mut pace, 1000 * MS, 90), [true]);
        assert_eq!(said(&mut pace, 2000 * MS, 180), NOTHING);
        assert_eq!(said(&mut pace, 3000 * MS, 220), [false]);
    }

    #[test]
    fn a_wait_for_a_busy_neighbour_ends_it() {
        let mut pace = Pace::default();
        assert_eq!(said(&mut pace, 0, 50), [true]);
        // One client, who waits 4 ms for each answer now.
        assert_eq!(said(&mut pace, 1000 * MS, 4000), [false]);
    }

    #[test]
    fn a_long_pause_is_no_fast_beginning() {
        let mut pace = Pace::default();
        assert_eq!(pace.note(10_000 * MS, 300), None);
        assert_eq!(pace.note(10_020 * MS, 0), None);
    }
}
