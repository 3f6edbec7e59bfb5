//! The machines of several replicas in every order and with every fault within bounds: not one night, all of them.

mod explore;
mod lease;
