pub mod clock;
pub mod event_log;
pub mod model;
pub mod store;
pub mod tasks;
pub mod telemetry;
