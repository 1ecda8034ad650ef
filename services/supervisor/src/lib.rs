//! Keeps processes running independently of the daemon that asked for them.
