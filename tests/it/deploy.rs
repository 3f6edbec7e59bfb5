//! What lies in `deploy/`, the Dockerfile and the compose file: each agrees with the program and with the others, and what
//! can run without a cluster or a container engine runs.

mod compose;
mod container;
mod files;
mod kubernetes;
mod prometheus;
mod proxy;
mod replicas;
mod takeover;
