//! The outputs of a stream, and the reports among them.

use std::collections::VecDeque;

use super::{
    intake::IntakeOutcome,
    messages::{Output, StreamReport, StreamState},
};

/// The queue of outputs. It reports a state only when it changes.
#[derive(Debug)]
pub(super) struct Reporter {
    outputs: VecDeque<Output>,
    last: Reported,
}

/// The facts that are reported when they change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported {
    pub(super) state: StreamState,
    pub(super) is_connected: bool,
    pub(super) is_breaker_open: bool,
}

impl Reporter {
    pub(super) fn new() -> Self {
        let state = StreamState::Starting;
        Self {
            outputs: VecDeque::from([Output::Report(StreamReport::State(state))]),
            last: Reported { state, is_connected: false, is_breaker_open: false },
        }
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(super) fn report(&mut self, report: StreamReport) {
        self.push(Output::Report(report));
    }

    /// Whether the circuit breaker was last reported as open.
    pub(super) fn is_breaker_open(&self) -> bool {
        self.last.is_breaker_open
    }

    pub(super) fn report_intake(&mut self, outcome: IntakeOutcome) {
        for gap in outcome.gaps {
            self.report(StreamReport::Gap { reason: gap.reason, lost: gap.lost });
        }
        for bytes in outcome.undecoded {
            self.report(StreamReport::Undecoded { bytes });
        }
        if outcome.duplicates > 0 {
            self.report(StreamReport::Duplicates(outcome.duplicates));
        }
        self.report_shed(outcome.shed);
    }

    pub(super) fn report_shed(&mut self, shed: u64) {
        if shed > 0 {
            self.report(StreamReport::Shed(shed));
        }
    }

    pub(super) fn report_changes(&mut self, reported: Reported) {
        let before = std::mem::replace(&mut self.last, reported);
        if before.state != reported.state {
            self.report(StreamReport::State(reported.state));
        }
        if before.is_connected != reported.is_connected {
            self.report(StreamReport::Connected(reported.is_connected));
        }
        if before.is_breaker_open != reported.is_breaker_open {
            self.report(StreamReport::Breaker(reported.is_breaker_open));
        }
    }
}
