//! The documents two programs exchange, their exact bytes and hashes, and the typed ids, digests and sizes.
