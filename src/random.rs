//! Random numbers from the system's generator: for fence nonces, epochs and ids, which must differ between machines.
//!
//! `fastrand` is seeded from the clock and the process, so cloned machines can draw the same numbers from it. It serves
//! only jitter and the choice of a host.

/// # Panics
///
/// When the system has no generator.
pub fn u128() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect(AVAILABLE);
    u128::from_ne_bytes(bytes)
}

/// # Panics
///
/// When the system has no generator (see [`u128()`]).
pub fn u64() -> u64 {
    getrandom::u64().expect(AVAILABLE)
}

/// A number for which 0 means "none".
///
/// # Panics
///
/// When the system has no generator (see [`u128()`]).
pub fn nonzero_u32() -> u32 {
    getrandom::u32().expect(AVAILABLE).max(1)
}

const AVAILABLE: &str = "the system's random generator is available (getrandom or /dev/urandom)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_do_not_depend_on_the_seed_of_the_jitter() {
        let draw = || {
            fastrand::seed(7);
            (u128(), u64())
        };
        let (one, other) = (draw(), draw());
        assert_ne!(one.0, other.0);
        assert_ne!(one.1, other.1);
        assert_ne!(nonzero_u32(), 0);
    }
}
