//! Model checking: the machines of several replicas with every order of steps and every fault within bounds.

mod explore;
mod lease;
