//! The first message of a TLS client. Source: RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3, RFC 7301 section 3.1, RFC 9849.
//!
//! Bytes may come one by one, and the message may be split over records in any way. Each byte is looked at once.

use crate::{
    DomainName, DomainNameError,
    reader::{Reader, Short},
};

/// Longest message that is read. Post-quantum key shares and encrypted inner messages stay far below.
pub const MAX_CLIENT_HELLO_BYTES: usize = 64 << 10;

const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE_HEADER: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const SUPPORTED_VERSIONS: u16 = 43;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const TLS13: u16 = 0x0304;
/// More extensions than any client sends; each costs a comparison with the others.
const MAX_EXTENSIONS: usize = 64;

/// What a front door needs of the message. Nothing in it is authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// Whom the client wants to reach; with an encrypted inner message, the outer name.
    pub server_name: Option<DomainName>,
    /// Protocols offered, in the client's order; empty without the extension.
    pub alpn: Vec<Vec<u8>>,
    /// Whether TLS 1.3 is offered.
    pub offers_tls13: bool,
    /// Whether an encrypted inner message, or grease for one, is there.
    pub has_encrypted_client_hello: bool,
}

/// Bytes that do not begin a TLS connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientHelloError {
    /// The first bytes are of another protocol.
    #[error("record of type {record_type} and version {major}, expected a TLS handshake")]
    NotTls {
        /// First byte of the record.
        record_type: u8,
        /// Second byte of the record.
        major: u8,
    },
    /// A record that may not be.
    #[error("handshake record of {got} bytes, expected 1 to {MAX_RECORD}")]
    RecordLength {
        /// Its length.
        got: usize,
    },
    /// Another handshake message.
    #[error("handshake message of type {got}, expected a ClientHello")]
    NotClientHello {
        /// Its type.
        got: u8,
    },
    /// Longer than anybody needs.
    #[error("ClientHello of {got} bytes, at most {MAX_CLIENT_HELLO_BYTES} are read")]
    TooLong {
        /// Its length.
        got: usize,
    },
    /// The record goes on after the message.
    #[error("bytes of another message follow the ClientHello in its record")]
    Trailing,
    /// A field is longer than what holds it, or may not be so.
    #[error("malformed {field}")]
    Malformed {
        /// Which one.
        field: &'static str,
    },
    /// An extension twice.
    #[error("extension {extension} is there twice")]
    Repeated {
        /// Its number.
        extension: u16,
    },
    /// The server name is none.
    #[error("server name")]
    ServerName(#[source] DomainNameError),
}

/// Reads a ClientHello from bytes as they come. The caller keeps the bytes if it has to hand them on.
#[derive(Debug, Default)]
pub struct ClientHelloReader {
    header: [u8; RECORD_HEADER],
    header_length: usize,
    /// Bytes of the current record that have not come.
    expected: usize,
    message: Vec<u8>,
}

impl ClientHelloReader {
    /// A reader at the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the bytes that came next; `None` asks for more. Not to be called again after the message or an error.
    ///
    /// Bytes after the record that ends the message (early data) are not looked at.
    /// Errors: see [`ClientHelloError`].
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<Option<ClientHello>, ClientHelloError> {
        while !bytes.is_empty() {
            if self.expected == 0 {
                bytes = self.read_header(bytes)?;
                continue;
            }
            let (payload, rest) = bytes.split_at(self.expected.min(bytes.len()));
            bytes = rest;
            self.expected -= payload.len();
            self.message.extend_from_slice(payload);
            if let Some(length) = self.message_length()?
                && self.message.len() >= length
            {
                if self.message.len() > length || self.expected > 0 {
                    return Err(ClientHelloError::Trailing);
                }
                return parse(Reader(self.message.get(HANDSHAKE_HEADER..).unwrap_or_default())).map(Some);
            }
        }
        Ok(None)
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ClientHelloError> {
        let Some((byte, rest)) = bytes.split_first() else { return Ok(bytes) };
        if let Some(slot) = self.header.get_mut(self.header_length) {
            *slot = *byte;
            self.header_length += 1;
        }
        let [record_type, major, _, high, low] = self.header;
        // Told at once: the peer of another protocol may wait for an answer.
        if record_type != HANDSHAKE || (self.header_length > 1 && major != 3) {
            return Err(ClientHelloError::NotTls { record_type, major });
        }
        if self.header_length == RECORD_HEADER {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if !(1..=MAX_RECORD).contains(&length) {
                return Err(ClientHelloError::RecordLength { got: length });
            }
            self.header_length = 0;
            self.expected = length;
        }
        Ok(rest)
    }

    /// Length of the message with its header, once that is there.
    fn message_length(&self) -> Result<Option<usize>, ClientHelloError> {
        if let Some(got) = self.message.first().filter(|kind| **kind != CLIENT_HELLO) {
            return Err(ClientHelloError::NotClientHello { got: *got });
        }
        let Some([_, a, b, c]) = self.message.first_chunk() else { return Ok(None) };
        let got = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if got > MAX_CLIENT_HELLO_BYTES {
            return Err(ClientHelloError::TooLong { got });
        }
        Ok(Some(HANDSHAKE_HEADER + got))
    }
}

/// The error of a field that ends too early.
fn in_field(field: &'static str) -> impl Fn(Short) -> ClientHelloError {
    move |Short| ClientHelloError::Malformed { field }
}

const fn malformed(field: &'static str) -> ClientHelloError {
    ClientHelloError::Malformed { field }
}

fn parse(mut body: Reader<'_>) -> Result<ClientHello, ClientHelloError> {
    let [major, _] = body.array().map_err(in_field("version"))?;
    if major != 3 {
        return Err(malformed("version"));
    }
    body.take(32).map_err(in_field("random"))?;
    if body.vector8().map_err(in_field("session id"))?.0.len() > 32 {
        return Err(malformed("session id"));
    }
    let suites = body.vector16().map_err(in_field("cipher suites"))?;
    if suites.is_empty() || !suites.0.len().is_multiple_of(2) {
        return Err(malformed("cipher suites"));
    }
    if body.vector8().map_err(in_field("compression methods"))?.is_empty() {
        return Err(malformed("compression methods"));
    }
    let mut hello = ClientHello { server_name: None, alpn: Vec::new(), offers_tls13: false, has_encrypted_client_hello: false };
    // Clients of TLS 1.2 may leave the whole block out.
    if body.is_empty() {
        return Ok(hello);
    }
    let mut extensions = body.vector16().map_err(in_field("extensions"))?;
    if !body.is_empty() {
        return Err(malformed("extensions"));
    }
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let extension = extensions.u16().map_err(in_field("extension"))?;
        let content = extensions.vector16().map_err(in_field("extension"))?;
        if seen.contains(&extension) {
            return Err(ClientHelloError::Repeated { extension });
        }
        if seen.len() >= MAX_EXTENSIONS {
            return Err(malformed("extensions"));
        }
        seen.push(extension);
        match extension {
            SERVER_NAME => hello.server_name = Some(server_name(content)?),
            ALPN => hello.alpn = protocols(content)?,
            SUPPORTED_VERSIONS => hello.offers_tls13 = offers_tls13(content)?,
            ENCRYPTED_CLIENT_HELLO => hello.has_encrypted_client_hello = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// One host name; RFC 6066 knows no other type and allows each type once.
fn server_name(mut content: Reader<'_>) -> Result<DomainName, ClientHelloError> {
    let short = in_field("server name extension");
    let mut list = content.vector16().map_err(&short)?;
    let kind = list.u8().map_err(&short)?;
    let name = list.vector16().map_err(&short)?;
    if kind != 0 || !list.is_empty() || !content.is_empty() {
        return Err(malformed("server name extension"));
    }
    DomainName::parse(name.0).map_err(ClientHelloError::ServerName)
}

fn protocols(mut content: Reader<'_>) -> Result<Vec<Vec<u8>>, ClientHelloError> {
    let short = in_field("ALPN extension");
    let mut list = content.vector16().map_err(&short)?;
    if list.is_empty() || !content.is_empty() {
        return Err(malformed("ALPN extension"));
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector8().map_err(&short)?;
        if protocol.is_empty() {
            return Err(malformed("ALPN extension"));
        }
        protocols.push(protocol.0.to_vec());
    }
    Ok(protocols)
}

fn offers_tls13(mut content: Reader<'_>) -> Result<bool, ClientHelloError> {
    let short = in_field("supported versions extension");
    let mut versions = content.vector8().map_err(&short)?;
    if versions.is_empty() || !content.is_empty() {
        return Err(malformed("supported versions extension"));
    }
    let mut found = false;
    while !versions.is_empty() {
        found |= versions.u16().map_err(&short)? == TLS13;
    }
    Ok(found)
}
