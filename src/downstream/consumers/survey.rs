//! The survey of all consumers: their lag, the expiry of unused ones, and the creation of configured ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{ConsumerError, Consumers, lag};
use crate::{
    clock,
    event_log::{EventLog, Read},
    model::{ConsumerName, CursorValidity, Mark, Offset, StreamName, Timestamp},
    protocol::consumer::{ConsumerExpiry, ConsumerRecord},
    store::ReadError,
    tasks::TaskResult,
    telemetry::{chain, metrics::ConsumerMetrics},
};

/// The interval of the survey.
const SURVEY_INTERVAL: Duration = Duration::from_secs(5);

/// What the last survey found.
#[derive(Debug, Default)]
struct Survey {
    /// Whether the configured consumers exist.
    created: bool,
    /// Consumers whose expiry was reported.
    reported: BTreeSet<ConsumerName>,
    progress: BTreeMap<(ConsumerName, StreamName), SurveyedProgress>,
    failing: bool,
}

#[derive(Debug)]
struct SurveyedProgress {
    metrics: ConsumerMetrics,
    /// The next entry after a cursor, and when it was received.
    oldest: Option<(Mark, Timestamp)>,
}

/// Surveys until the stop signal.
pub(super) async fn run(consumers: Consumers, stop: CancellationToken) -> TaskResult {
    let mut ticks = interval(SURVEY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut survey = Survey::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => (),
        }
        match survey.update(&consumers).await {
            Ok(()) => survey.failing = false,
            Err(error) if !survey.failing => {
                survey.failing = true;
                tracing::warn!(error = chain(&error), "cannot read the durable consumers");
            }
            Err(_) => (),
        }
    }
}

impl Survey {
    async fn update(&mut self, consumers: &Consumers) -> Result<(), ConsumerError> {
        if !self.created {
            create(consumers).await?;
            self.created = true;
        }
        self.expire(consumers).await?;
        self.measure(consumers).await
    }

    /// Reports consumers that are unused for too long, and deletes those that stay unused.
    async fn expire(&mut self, consumers: &Consumers) -> Result<(), ConsumerError> {
        let (records, now) = (consumers.shared.store.consumers().await?, clock::wall());
        self.reported.retain(|name| records.contains_key(name));
        for (consumer, record) in records {
            match record.expiry(consumers.expires(&consumer), now) {
                ConsumerExpiry::InUse => drop(self.reported.remove(&consumer)),
                ConsumerExpiry::Reported => {
                    if self.reported.insert(consumer.clone()) {
                        tracing::warn!(%consumer, used = %record.used_at, "unused consumer will be deleted");
                    }
                }
                ConsumerExpiry::Deleted => {
                    if consumers.shared.store.delete_consumer(&consumer, Some(record), consumers.streams()).await? {
                        tracing::warn!(%consumer, used = %record.used_at, "unused consumer deleted");
                    }
                }
            }
        }
        Ok(())
    }

    async fn measure(&mut self, consumers: &Consumers) -> Result<(), ConsumerError> {
        let mut former = std::mem::take(&mut self.progress);
        for (stream, log) in consumers.shared.logs.iter() {
            for (consumer, cursor) in consumers.shared.store.cursors(stream).await? {
                let key = (consumer, stream.clone());
                let known = former.remove(&key);
                let mut progress = known
                    .unwrap_or_else(|| SurveyedProgress { metrics: consumers.metrics(&key.0, stream), oldest: None });
                progress.measure(log, cursor).await?;
                self.progress.insert(key, progress);
            }
        }
        consumers.remove_metrics(|key| self.progress.contains_key(key));
        Ok(())
    }
}

impl SurveyedProgress {
    async fn measure(&mut self, log: &EventLog, cursor: Mark) -> Result<(), ReadError> {
        let events = lag(log, cursor);
        if events == 0 {
            self.oldest = None;
        } else if self.oldest.is_none_or(|(after, _)| after != cursor) {
            let received = oldest_received(log, acknowledged(log, cursor)).await?;
            self.oldest = received.map(|received| (cursor, received));
        }
        let age = self.oldest.map_or(Duration::ZERO, |(_, received)| clock::wall().since(received));
        self.metrics.set_lag(events, age);
        Ok(())
    }
}

/// Creates the configured consumers that are missing, in each stream with the next new entry as their first.
async fn create(consumers: &Consumers) -> Result<(), ConsumerError> {
    let store = &consumers.shared.store;
    for (consumer, settings) in &consumers.shared.configured {
        if store.consumer(consumer).await?.is_none() {
            // False if another replica has created it.
            store.change_consumer(consumer, None, Some(ConsumerRecord::created(clock::wall()))).await?;
        }
        for stream in &settings.streams {
            let end = consumers.log(stream)?.end();
            let last = Mark { epoch: end.lineage.current(), offset: end.last };
            if store.cursor(consumer, stream).await?.is_none() {
                store.move_cursor(consumer, stream, None, last).await?;
            }
        }
    }
    Ok(())
}

/// The last acknowledged offset of a log; before the oldest entry held if the cursor is not of this log.
pub(super) fn acknowledged(log: &EventLog, cursor: Mark) -> Offset {
    match log.cursor_validity(cursor) {
        CursorValidity::Valid(offset) => offset,
        CursorValidity::AheadOfLog | CursorValidity::UnknownEpoch => log.end().first.previous(),
    }
}

/// When the oldest entry held after `after` was received.
async fn oldest_received(log: &EventLog, after: Offset) -> Result<Option<Timestamp>, ReadError> {
    let after = after.max(log.end().first.previous());
    let Some(Read::Entries(views)) = log.reader(after).try_next(1).await? else { return Ok(None) };
    Ok(views.first().and_then(|view| view.entries().next().map(|entry| entry.received)))
}
