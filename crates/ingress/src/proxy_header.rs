//! PROXY protocol headers, versions 1 and 2. Source: HAProxy `doc/proxy-protocol.txt`, sections 2.1 and 2.2.
//!
//! A header is a claim of whoever sends it. It is read only from sources that the operator trusts to tell who connects.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::reader::{Reader, Short};

/// Longest header that is read, with all its attributes.
pub const MAX_PROXY_HEADER_BYTES: usize = 2048;
/// Longest header of version 1, with its line end.
const MAX_V1: usize = 107;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEAD: usize = 16;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Both ends of the connection that was proxied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoints {
    /// Who connects.
    pub source: SocketAddr,
    /// Where to.
    pub destination: SocketAddr,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// Somebody's TCP connection.
    Proxied(Endpoints),
    /// The proxy's own (a health check), or of a family without addresses: the connection's own ends count.
    Local,
}

/// Bytes that are no header, or not a whole one that can be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// Another protocol.
    #[error("connection does not begin with a PROXY header")]
    Absent,
    /// Longer than the limit of its version.
    #[error("PROXY header of more than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// A field that may not be so.
    #[error("malformed {field} in the PROXY header")]
    Malformed {
        /// Which one.
        field: &'static str,
    },
}

const fn malformed(field: &'static str) -> ProxyHeaderError {
    ProxyHeaderError::Malformed { field }
}

impl ProxyHeader {
    /// Reads a header at the start of `bytes`, with its length; `None` asks for more bytes.
    ///
    /// Errors: see [`ProxyHeaderError`].
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, ProxyHeaderError> {
        if begins(bytes, &V2_SIGNATURE) {
            return parse_v2(bytes);
        }
        if begins(bytes, b"PROXY ") {
            return parse_v1(bytes);
        }
        Err(ProxyHeaderError::Absent)
    }

    /// A header of version 2 without attributes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = V2_SIGNATURE.to_vec();
        let Self::Proxied(Endpoints { source, destination }) = self else {
            out.extend_from_slice(&[0x20, 0, 0, 0]);
            return out;
        };
        match (source.ip().to_canonical(), destination.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                out.extend_from_slice(&[0x21, TCP4, 0, 12]);
                out.extend_from_slice(&from.octets());
                out.extend_from_slice(&to.octets());
            }
            (from, to) => {
                let v6 = |ip| match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                out.extend_from_slice(&[0x21, TCP6, 0, 36]);
                out.extend_from_slice(&v6(from).octets());
                out.extend_from_slice(&v6(to).octets());
            }
        }
        out.extend_from_slice(&source.port().to_be_bytes());
        out.extend_from_slice(&destination.port().to_be_bytes());
        out
    }
}

/// Whether `bytes` begin with `prefix`, or are the begin of it.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    let length = bytes.len().min(prefix.len());
    length > 0 && bytes.get(..length) == prefix.get(..length)
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    let head = bytes.get(..MAX_V1).unwrap_or(bytes);
    let Some(end) = head.windows(2).position(|pair| pair == b"\r\n") else {
        return if head.len() < MAX_V1 { Ok(None) } else { Err(ProxyHeaderError::TooLong { limit: MAX_V1 }) };
    };
    let line = head.get(..end).and_then(|line| std::str::from_utf8(line).ok()).ok_or(malformed("line"))?;
    let mut words = line.split(' ').skip(1);
    let header = match words.next() {
        Some("UNKNOWN") => return Ok(Some((ProxyHeader::Local, end + 2))),
        Some("TCP4") => endpoints_v1(&mut words, |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4))?,
        Some("TCP6") => endpoints_v1(&mut words, |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6))?,
        _ => return Err(malformed("family")),
    };
    if words.next().is_some() {
        return Err(malformed("line"));
    }
    Ok(Some((header, end + 2)))
}

fn endpoints_v1<'a>(
    words: &mut impl Iterator<Item = &'a str>,
    address: impl Fn(&str) -> Option<IpAddr>,
) -> Result<ProxyHeader, ProxyHeaderError> {
    let mut word = || words.next().ok_or(malformed("line"));
    let (from, to, from_port, to_port) = (word()?, word()?, word()?, word()?);
    let ip = |text| address(text).ok_or(malformed("address"));
    let port = |text: &str| {
        let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse::<u16>().ok().filter(|_| is_decimal).ok_or(malformed("port"))
    };
    let source = SocketAddr::new(ip(from)?, port(from_port)?);
    let destination = SocketAddr::new(ip(to)?, port(to_port)?);
    Ok(ProxyHeader::Proxied(Endpoints { source, destination }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(ProxyHeader, usize)>, ProxyHeaderError> {
    let Some(head) = bytes.first_chunk::<V2_HEAD>() else { return Ok(None) };
    let [.., command, family, high, low] = *head;
    let length = V2_HEAD + usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 {
        return Err(malformed("version"));
    }
    if length > MAX_PROXY_HEADER_BYTES {
        return Err(ProxyHeaderError::TooLong { limit: MAX_PROXY_HEADER_BYTES });
    }
    let Some(body) = bytes.get(V2_HEAD..length) else { return Ok(None) };
    let header = match (command & 0x0f, family) {
        (0, _) => ProxyHeader::Local,
        (1, TCP4) => endpoints_v2(Reader(body), |reader| reader.array::<4>().map(|octets| IpAddr::V4(octets.into())))?,
        (1, TCP6) => endpoints_v2(Reader(body), |reader| reader.array::<16>().map(|octets| IpAddr::V6(octets.into())))?,
        // Unix sockets and families to come carry no address that means something here.
        (1, _) => ProxyHeader::Local,
        _ => return Err(malformed("command")),
    };
    Ok(Some((header, length)))
}

fn endpoints_v2(mut body: Reader<'_>, ip: impl Fn(&mut Reader<'_>) -> Result<IpAddr, Short>) -> Result<ProxyHeader, ProxyHeaderError> {
    let short = |Short| malformed("addresses");
    let (from, to) = (ip(&mut body).map_err(short)?, ip(&mut body).map_err(short)?);
    let (from_port, to_port) = (body.u16().map_err(short)?, body.u16().map_err(short)?);
    let endpoints = Endpoints { source: SocketAddr::new(from, from_port), destination: SocketAddr::new(to, to_port) };
    Ok(ProxyHeader::Proxied(endpoints))
}
