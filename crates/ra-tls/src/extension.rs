//! The certificate extensions.

/// Usage strings of certificates, extension [`Extension::CertUsage`].
pub mod usage {
    /// Server certificate of a KMS.
    pub const KMS_RPC: &str = "kms:rpc";
    /// Authority of one application.
    pub const APP_CA: &str = "app:ca";
    /// Certificate that an application asked for.
    pub const APP_CUSTOM: &str = "app:custom";
}

/// An extension under 1.3.6.1.4.1.62397.1. Its value is a DER OCTET STRING around the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extension {
    /// Raw TDX quote; written by old releases.
    TdxQuote,
    /// Event log as JSON; written by old releases.
    EventLog,
    /// 20 bytes.
    AppId,
    /// UTF-8, see [`usage`].
    CertUsage,
    /// Stripped attestation envelope.
    Attestation,
    /// [`AppInfo`](crate::AppInfo), MessagePack.
    AppInfo,
    /// Nonce of the KMS that the evidence was made for; only this project's releases write it.
    Nonce,
}

impl Extension {
    pub(crate) const ALL: [Self; 7] =
        [Self::TdxQuote, Self::EventLog, Self::AppId, Self::CertUsage, Self::Attestation, Self::AppInfo, Self::Nonce];

    /// Last arc of the object identifier.
    #[must_use]
    pub const fn arc(self) -> u64 {
        match self {
            Self::TdxQuote => 1,
            Self::EventLog => 2,
            Self::AppId => 3,
            Self::CertUsage => 4,
            Self::Attestation => 8,
            Self::AppInfo => 9,
            Self::Nonce => 100,
        }
    }

    pub(crate) const fn oid(self) -> [u64; 9] {
        [1, 3, 6, 1, 4, 1, 62397, 1, self.arc()]
    }

    pub(crate) fn oid_text(self) -> String {
        format!("1.3.6.1.4.1.62397.1.{}", self.arc())
    }

    pub(crate) fn to_rcgen(self, payload: &[u8]) -> rcgen::CustomExtension {
        rcgen::CustomExtension::from_oid_content(&self.oid(), wrap(payload))
    }
}

/// DER OCTET STRING around `payload`.
pub(crate) fn wrap(payload: &[u8]) -> Vec<u8> {
    let mut der = vec![0x04];
    let length = payload.len().to_be_bytes();
    match payload.len() {
        0..=0x7f => der.push(length.last().copied().unwrap_or(0)),
        _ => {
            let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
            der.push(0x80 | u8::try_from(significant.len()).unwrap_or(8));
            der.extend(significant);
        }
    }
    der.extend_from_slice(payload);
    der
}

/// The payload of a DER OCTET STRING that fills `der`.
pub(crate) fn unwrap(der: &[u8]) -> Option<&[u8]> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *tag != 0x04 {
        return None;
    }
    let (length, payload) = if *first < 0x80 {
        (usize::from(*first), rest)
    } else {
        let (digits, payload) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 || digits.first() == Some(&0) {
            return None;
        }
        let length = digits.iter().fold(0_usize, |length, digit| (length << 8) | usize::from(*digit));
        (if length < 0x80 { return None } else { length }, payload)
    };
    (payload.len() == length).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_is_undone_at_every_length_form() {
        for length in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
            let payload = vec![7; length];

            assert_eq!(unwrap(&wrap(&payload)), Some(payload.as_slice()), "{length}");
        }
    }

    #[test]
    fn refuses_other_tags_lengths_and_indefinite_forms() {
        for bad in [&[][..], &[4], &[4, 1], &[5, 0], &[4, 0, 0], &[4, 0x80], &[4, 0x81, 1, 0], &[4, 0x82, 0, 1, 0]] {
            assert_eq!(unwrap(bad), None, "{bad:02x?}");
        }
    }
}
