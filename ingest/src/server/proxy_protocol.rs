//! The header that a proxy in front writes before everything else (PROXY protocol, versions 1 and 2): it is read
//! to its last byte and no further, because what follows may be a TLS handshake.
//!
//! Whether to read one is decided by the connection's address alone. Where one is due, it must be there:
//! somebody who could leave it out could be anybody.

use std::io;
use std::net::IpAddr;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// The longest header of version 1, with its line end.
const V1_BYTES_MAX: usize = 107;
/// What is taken of version 2, its extensions included; proxies write a few hundred bytes.
const V2_BYTES_MAX: usize = 4096;
/// What every header of version 2 begins with; none of version 1 is as short.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version, family and the length of the rest.
const V2_FIXED_BYTES: usize = 16;
/// Version 2, and a connection that is the proxy's own: whatever follows says nothing.
const V2_LOCAL: u8 = 0x20;

/// Whose connection the proxy says it is; none when it is the proxy's own, as for its health checks.
///
/// # Errors
/// The stream's, and `InvalidData` for anything that is no header or too long for one. Does not end by itself when
/// nothing comes.
pub(crate) async fn read(stream: &mut TcpStream) -> io::Result<Option<IpAddr>> {
    let mut header = vec![0; V2_SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_SIGNATURE {
        read_v2(stream, &mut header).await?;
        if header[V2_SIGNATURE.len()] == V2_LOCAL {
            return Ok(None);
        }
    } else if header.starts_with(b"PROXY ") {
        read_v1(stream, &mut header).await?;
        if !is_plain_v1(&header) {
            return Err(io::ErrorKind::InvalidData.into());
        }
    } else {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match ProxyHeader::parse(&header, ParseConfig { include_tlvs: false, ..ParseConfig::default() }) {
        Ok((parsed, length)) if length == header.len() => {
            Ok(parsed.proxied_address().map(|address| address.source.ip().to_canonical()))
        }
        Ok(_) | Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn read_v2(stream: &mut TcpStream, header: &mut Vec<u8>) -> io::Result<()> {
    header.resize(V2_FIXED_BYTES, 0);
    stream.read_exact(&mut header[V2_SIGNATURE.len()..]).await?;
    let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
    if V2_FIXED_BYTES + rest > V2_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    header.resize(V2_FIXED_BYTES + rest, 0);
    stream.read_exact(&mut header[V2_FIXED_BYTES..]).await?;
    Ok(())
}

/// Only its line end says where it ends: looks before it takes.
async fn read_v1(stream: &mut TcpStream, header: &mut Vec<u8>) -> io::Result<()> {
    let mut ahead = [0; V1_BYTES_MAX];
    while header.last() != Some(&b'\n') {
        let room = V1_BYTES_MAX - header.len();
        let seen = stream.peek(&mut ahead[..room]).await?;
        if seen == 0 {
            // The end of the stream, or no room for more.
            return Err(io::ErrorKind::InvalidData.into());
        }
        let taken = ahead[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |end| end + 1);
        let begin = header.len();
        header.resize(begin + taken, 0);
        stream.read_exact(&mut header[begin..]).await?;
    }
    Ok(())
}

/// Whether it has nothing that the parser lets through and the protocol does not: a longer word that begins with
/// `UNKNOWN`, a port with a sign or with zeros in front.
fn is_plain_v1(header: &[u8]) -> bool {
    let line = header.strip_suffix(b"\r\n").unwrap_or(header);
    let mut words = line.split(|byte| *byte == b' ').skip(1);
    match words.next() {
        Some(b"UNKNOWN") => true,
        Some(word) if word.starts_with(b"UNKNOWN") => false,
        _ => words
            .skip(2)
            .all(|port| port == b"0" || port.first().is_some_and(|first| (b'1'..=b'9').contains(first))),
    }
}
