//! The kernel command line, which is measured; the root's hash comes from it and from nowhere else.

use dstack_manifest::Digest32;

/// The measured root: its dm-verity root hash and where its hash tree starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootParameters {
    /// `dstack.rootfs_hash`.
    pub verity_root: Digest32,
    /// `dstack.rootfs_size`: bytes of data in front of the hash tree.
    pub data_bytes: u64,
}

/// A command line that does not name the root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kernel command line: {parameter} is {problem}")]
pub struct CmdlineError {
    /// The parameter.
    pub parameter: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Value of `key` in `cmdline`. A parameter given twice is an error, for it would be unclear which one counts.
///
/// Errors: missing or repeated.
pub fn parse_parameter<'a>(cmdline: &'a str, key: &'static str) -> Result<&'a str, CmdlineError> {
    let mut values = cmdline.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let value = values.next().ok_or(CmdlineError { parameter: key, problem: "missing" })?;
    if values.next().is_some() {
        return Err(CmdlineError { parameter: key, problem: "given twice" });
    }
    Ok(value)
}

/// Reads the parameters of the root.
///
/// Errors: one is missing, repeated or not of its form.
pub fn parse_root_parameters(cmdline: &str) -> Result<RootParameters, CmdlineError> {
    const HASH: &str = "dstack.rootfs_hash";
    const SIZE: &str = "dstack.rootfs_size";
    let verity_root =
        parse_parameter(cmdline, HASH)?.parse().map_err(|_| CmdlineError { parameter: HASH, problem: "not 32 bytes of hex" })?;
    let data_bytes: u64 =
        parse_parameter(cmdline, SIZE)?.parse().map_err(|_| CmdlineError { parameter: SIZE, problem: "not a number of bytes" })?;
    if data_bytes == 0 || !data_bytes.is_multiple_of(4096) {
        return Err(CmdlineError { parameter: SIZE, problem: "not a multiple of 4096" });
    }
    Ok(RootParameters { verity_root, data_bytes })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const HASH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn reads_hash_and_size() {
        let parameters = parse_root_parameters(&format!("console=ttyS0 dstack.rootfs_hash={HASH} dstack.rootfs_size=8192\n")).unwrap();

        assert_eq!(parameters.data_bytes, 8192);
        assert_eq!(parameters.verity_root.to_string(), HASH);
    }

    #[test]
    fn refuses_what_is_missing_repeated_or_malformed() {
        for bad in [
            String::new(),
            format!("dstack.rootfs_hash={HASH}"),
            format!("dstack.rootfs_hash={HASH} dstack.rootfs_hash={HASH} dstack.rootfs_size=4096"),
            format!("dstack.rootfs_hash={HASH} dstack.rootfs_size=4097"),
            format!("dstack.rootfs_hash={HASH} dstack.rootfs_size=0"),
            "dstack.rootfs_hash=zz dstack.rootfs_size=4096".to_owned(),
        ] {
            assert!(parse_root_parameters(&bad).is_err(), "{bad}");
        }
    }
}
