//! The files of `deploy/`, the Dockerfile and the compose file: each is consistent with the program and the other files.
//! The tests run everything that needs no cluster and no container engine.

mod compose;
mod container;
mod files;
mod kubernetes;
mod prometheus;
mod proxy;
mod replicas;
mod takeover;
