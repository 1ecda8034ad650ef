//! The guest agent: keys, quotes, events and evidence for containers, strangers and the host.
