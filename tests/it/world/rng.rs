//! All random values of a world come from here, so that a seed determines the run.

use std::{ops::Range, time::Duration};

/// A seeded generator.
#[derive(Debug)]
pub(super) struct SeededRng(fastrand::Rng);

impl SeededRng {
    pub(super) fn from_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// A number from 0 to 1.
    pub(super) fn unit(&mut self) -> f64 {
        self.0.f64()
    }

    /// True with probability 1 / `times`.
    pub(super) fn one_in(&mut self, times: u32) -> bool {
        self.0.u32(..times.max(1)) == 0
    }

    pub(super) fn number(&mut self, range: Range<u64>) -> u64 {
        self.0.u64(range)
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        self.0.usize(..len)
    }

    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.0.u64(range))
    }

    /// One of a few values.
    pub(super) fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.index(values.len())]
    }

    /// A pause around `mean`, sometimes much longer.
    pub(super) fn pause(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.unit()).ln())
    }

    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        self.0.shuffle(values);
    }
}
