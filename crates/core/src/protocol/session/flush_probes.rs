//! The answers to probes: they prove that everything before a flush probe has arrived.

/// How many probes were ever sent, and how many were answered.
#[derive(Debug, Default)]
pub(super) struct FlushProbes {
    sent: u64,
    acked: u64,
    /// How many answers the last flush probe requires.
    required: u64,
}

impl FlushProbes {
    pub(super) fn on_sent(&mut self) {
        self.sent += 1;
    }

    pub(super) fn on_acked(&mut self, count: u64) {
        self.acked = self.sent.min(self.acked + count);
    }

    /// The newest probe is a flush probe. Answers to older probes and heartbeats do not count as its answer.
    pub(super) fn require_ack(&mut self) {
        self.required = self.sent;
    }

    /// Whether the last flush probe is answered, or none was sent.
    pub(super) fn has_acked(&self) -> bool {
        self.acked >= self.required
    }

    /// Expects no more answers. Returns whether one was expected.
    pub(super) fn abandon(&mut self) -> bool {
        let was_expected = !self.has_acked();
        self.required = 0;
        was_expected
    }
}
