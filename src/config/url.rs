//! Where may be posted to, as far as the written URL tells: one plain spelling, no clear text across the
//! world, no port of another service, no address that belongs to the machine's own plumbing.
//!
//! The address a name resolves to is checked again at each connection, by the dispatcher.

use std::net::IpAddr;

use chaski_dispatcher::is_never_dialled;

/// Most bytes of a URL.
const URL_BYTES_MAX: usize = 2048;
/// Ports of well-known services that do not speak HTTP and must not be made to read it.
const PORTS_BLOCKED: &[u16] = &[
    0, 7, 9, 13, 19, 21, 22, 23, 25, 53, 110, 111, 119, 135, 137, 139, 143, 161, 179, 389, 445, 465, 514,
    543, 544, 587, 631, 636, 993, 995, 1433, 1521, 2049, 2181, 3306, 3389, 5060, 5061, 5432, 5672, 5900,
    6000, 6379, 6380, 6667, 9042, 9092, 11211, 26379, 27017,
];

/// Names that only a local resolver answers.
const LOCAL_SUFFIXES: &[&str] =
    &[".localhost", ".local", ".internal", ".lan", ".home.arpa", ".intranet", ".private", ".svc"];

/// What is wrong, and what would be right.
type Refused = (&'static str, &'static str);

/// The rules a destination's URL keeps.
pub(super) fn check_url(text: &str, allow_http: bool) -> Result<http::Uri, Refused> {
    const EXAMPLE: &str = "write one like \"https://orders.example/hooks\"";
    if text.len() > URL_BYTES_MAX {
        return Err(("longer than 2048 bytes", ""));
    }
    if text.contains('#') {
        return Err(("a URL to post to has no fragment", "leave out # and what follows"));
    }
    if text.contains('\\') {
        return Err(("a backslash, which some read as a slash", EXAMPLE));
    }
    let url: http::Uri = text.parse().map_err(|_| ("not a URL", EXAMPLE))?;
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(("not a whole URL", EXAMPLE));
    };
    if !["http", "https"].contains(&scheme) {
        return Err(("neither http nor https", EXAMPLE));
    }
    if authority.as_str().contains('@') {
        return Err((
            "user info in a URL ends up in logs",
            "use auth = { basic = { user = …, password = \"env:NAME\" } }",
        ));
    }
    let port = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    if !port.is_empty() && authority.port_u16().is_none() {
        return Err(("not a port", EXAMPLE));
    }
    if authority.port_u16().is_some_and(|port| PORTS_BLOCKED.contains(&port)) {
        return Err(("the port of a service that does not speak HTTP", "post to an HTTP server"));
    }
    let host = check_host(authority.host())?;
    if scheme == "http" && !allow_http && !host.is_local() {
        return Err(("clear text to an address that is not local", "use https, or set allow_http = true"));
    }
    Ok(url)
}

enum Host {
    Address(IpAddr),
    Name(String),
}

impl Host {
    fn is_local(&self) -> bool {
        match self {
            Self::Address(IpAddr::V4(address)) => address.is_loopback() || address.is_private(),
            Self::Address(IpAddr::V6(address)) => address.is_loopback() || address.is_unique_local(),
            Self::Name(name) => {
                !name.contains('.') || LOCAL_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
            }
        }
    }
}

/// A host spelled the one way there is, so that no rule can be passed by another spelling.
fn check_host(host: &str) -> Result<Host, Refused> {
    const PLAIN: &str = "write four decimal numbers, an address in brackets, or a name";
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: std::net::Ipv6Addr = address.parse().map_err(|_| ("not an address", PLAIN))?;
        if address.to_ipv4_mapped().is_some() {
            return Err(("an IPv4 address in an unusual spelling", PLAIN));
        }
        return reachable(IpAddr::V6(address)).map(Host::Address);
    }
    let name = host.to_ascii_lowercase();
    if name.ends_with('.') {
        return Err(("a name with a dot at its end", "leave out the last dot"));
    }
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty()
        || name.len() > 253
        || name.split('.').any(|label| label.is_empty() || !label.bytes().all(inside))
    {
        return Err(("not a host name", PLAIN));
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    // What ends in a number is an address to every resolver, however it is spelled.
    if last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") {
        let address = name.parse().map_err(|_| ("an address in an unusual spelling", PLAIN))?;
        return reachable(IpAddr::V4(address)).map(Host::Address);
    }
    if name == "metadata.google.internal" {
        return Err(METADATA);
    }
    Ok(Host::Name(name))
}

const METADATA: Refused =
    ("an address that is never posted to (link-local, metadata, multicast or unspecified)", "");

fn reachable(address: IpAddr) -> Result<IpAddr, Refused> {
    if is_never_dialled(address) { Err(METADATA) } else { Ok(address) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_in_its_one_plain_spelling() {
        for url in [
            "https://erp.test/x",
            "https://erp.test:8443/x?a=b",
            "http://127.0.0.1:9001/hooks",
            "http://[::1]:9001/",
            "http://10.1.2.3/",
            "http://orders:8080/x",
            "http://localhost/",
            "http://erp.internal/x",
            "https://203.0.113.9/",
            "http://[fd12::1]/",
            "https://ERP.test",
        ] {
            assert!(check_url(url, false).is_ok(), "{url}");
        }
        for url in [
            "",
            "/x",
            "erp.test/x",
            "http://erp.test/x",
            "http://203.0.113.9/",
            "https://u:p@erp.test/x",
            "https://u@erp.test/",
            "https://erp.test/\\x",
            "ftp://erp.test/",
            "https://erp.test/#x",
            "https://erp.test:6379/",
            "https://erp.test:25/",
            "https://erp.test:9092/",
            "https://erp.test:0/",
            "https://erp.test:99999/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://localhost./",
            "https://127.0.0.1./",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/",
            "https://[fe80::1]/",
            "https://0.0.0.0/",
            "https://metadata.google.internal/",
            "https://a..b/",
            "https://[::1%25lo]/",
            "https://[::ffff:169.254.169.254]/",
            "https://[::169.254.169.254]/",
            "https://[64:ff9b::169.254.169.254]/",
            "https://[64:ff9b:1:a9fe:a9:fe00::]/",
            "https://[2002:a9fe:a9fe::]/",
            "https://[fd00:ec2::254]/",
            "https://[fe80::1%25eth0]/",
            "https://[fe80::1%eth0]/",
            "https://[v1.x]/",
            "https://[::1",
            "https://168.63.129.16/",
            "https://100.100.100.200/",
            "https://192.0.0.192/",
            "https://255.255.255.255/",
            "https://240.0.0.1/",
            "https://2852039166/",
            "https://0xa9fea9fe/",
            "https://0XA9FEA9FE/",
            "https://0xa9.0xfe.0xa9.0xfe/",
            "https://0251.0376.0251.0376/",
            "https://025177524776/",
            "https://169.254.43518/",
            "https://169.16689662/",
            "https://127.0.0.1.5/",
            "https://127.0.0.0x1/",
            "https://0x/",
            "https://１２７.0.0.1/",
            "https://127。0。0。1/",
            "https://127.0.0.1%00.erp.test/",
            "https://erp.test\\@127.0.0.1/",
            "https://é.test/",
            "https://%31/",
            "https://:443/",
            "https://",
        ] {
            assert!(check_url(url, false).is_err(), "{url}");
        }
        assert!(check_url("http://erp.test/x", true).is_ok());
    }
}
