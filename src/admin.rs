//! Health, metrics, status, and an operator's wishes: the second listener.
