//! Boot (CCEL/TCG2) and runtime event logs: parse, encode, digest, replay.
