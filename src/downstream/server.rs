//! The consumers' listener.
