//! May this measured boot have keys? One policy core and its backends.
