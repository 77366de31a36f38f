//! Where listeners listen.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::resolver;
use crate::error::{Error, Result};
use crate::sys::net::{MAX_UNIX, Name, path_from_bytes};

/// The two kinds of sockets that an [`Address`] may be of: see [`Address::family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// TCP, over IPv4 or IPv6: Python's `AF_INET`.
    Inet,
    /// A Unix socket, of a path or an abstract name: Python's `AF_UNIX`.
    Unix,
}

/// Where a [`Listener`](crate::Listener) listens and a [`Client`](crate::Client) connects to.
///
/// It is made of whatever says it: a pair of host and port, a `SocketAddr`, a `Path`, or text.
/// Text (`&str`, `String`, bytes, `parse`) is read so:
///
/// | text | address |
/// |---|---|
/// | begins with `@` or NUL | the abstract name after it (Linux) |
/// | `[v6]:port`, or `host:port` without a slash | TCP |
/// | begins with two backslashes | refused: a named pipe of Windows |
/// | anything else | the path of a Unix socket |
///
/// `Display` writes what is read back as the same place; a relative path that looks like something
/// else is given a `./`. Only of paths and names that are not UTF-8 it shows an approximation. Serde
/// writes the same text, and bytes in formats that are not for people, so that it keeps them all.
///
/// An address is checked where text is read and, since its fields are public, once more where it is
/// used: paths and names have 1 to 107 bytes, and neither paths nor hosts contain NUL.
///
/// ```
/// use std::path::Path;
/// use tokio_multiprocess::Address;
///
/// let tcp: Address = "localhost:8080".parse()?;
/// assert_eq!(tcp, Address::from(("localhost", 8080)));
/// assert_eq!("/run/jobs.sock".parse::<Address>()?, Address::from(Path::new("/run/jobs.sock")));
/// assert_eq!("@jobs".parse::<Address>()?, Address::Abstract(b"jobs".to_vec()));
/// assert_eq!(Address::from(Path::new("jobs:1")).to_string(), "./jobs:1");
/// assert!(r"\\.\pipe\jobs".parse::<Address>().is_err());
/// # Ok::<(), tokio_multiprocess::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Address {
    /// A host (a name, an IPv4 or an IPv6 address without brackets) and a TCP port. An empty host is
    /// `0.0.0.0`: every IPv4 address of this machine for a listener, this machine for a client.
    /// A listener on port 0 is given a free one.
    Inet {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A Unix socket's name in Linux's abstract namespace, without the NUL that goes before it. There
    /// is no file; whoever is in the same network namespace can connect.
    Abstract(Vec<u8>),
}

/// What could not be done at an address, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {address}: {source}")]
struct Refused {
    what: &'static str,
    address: Address,
    source: io::Error,
}

impl Address {
    /// The kind of socket that it takes.
    pub fn family(&self) -> Family {
        match self {
            Self::Inet { .. } => Family::Inet,
            Self::Unix(_) | Self::Abstract(_) => Family::Unix,
        }
    }

    /// What the kernel calls it; `None` for a socket without a name.
    pub(crate) fn from_name(name: Name) -> Option<Self> {
        match name {
            Name::Inet(address) => Some(address.into()),
            Name::Path(path) => Some(Self::Unix(path)),
            Name::Abstract(name) => Some(Self::Abstract(name)),
            Name::Unnamed => None,
        }
    }

    /// # Errors
    /// When there can be no such place.
    pub(crate) fn check(&self) -> Result<()> {
        let (what, bytes) = match self {
            Self::Inet { host, .. } if host.contains('\0') => {
                return Err(Error::invalid("a host's name contains no NUL"));
            }
            Self::Inet { .. } => return Ok(()),
            Self::Unix(path) => ("path", path.as_os_str().as_encoded_bytes()),
            Self::Abstract(name) => ("abstract name", &name[..]),
        };
        if bytes.is_empty() {
            return Err(Error::invalid(format!("the {what} of a Unix socket must not be empty")));
        }
        if bytes.len() > MAX_UNIX {
            return Err(Error::invalid(format!(
                "the {what} of a Unix socket has at most {MAX_UNIX} bytes, and this has {}: {self}",
                bytes.len()
            )));
        }
        if matches!(self, Self::Unix(_)) && bytes.contains(&0) {
            return Err(Error::invalid(
                "a path contains no NUL; an abstract name is an `Address::Abstract`, or text that \
                 begins with `@`",
            ));
        }
        Ok(())
    }

    /// What the system says of this place, with its name: a bare "connection refused" does not tell whose.
    pub(crate) fn refuses(&self, what: &'static str, source: io::Error) -> io::Error {
        io::Error::new(source.kind(), Refused { what, address: self.clone(), source })
    }

    /// What the kernel calls the place; a host's name may have several.
    pub(crate) async fn resolve(&self) -> io::Result<Vec<Name>> {
        let (host, port) = match self {
            Self::Unix(path) => return Ok(vec![Name::Path(path.clone())]),
            Self::Abstract(name) => return Ok(vec![Name::Abstract(name.clone())]),
            Self::Inet { host, port } if host.is_empty() => ("0.0.0.0", *port),
            Self::Inet { host, port } => (&host[..], *port),
        };
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![Name::Inet((ip, port).into())]);
        }
        let found = resolver::look_up(host.to_owned(), port).await?;
        Ok(found.into_iter().map(Name::Inet).collect())
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let address = Self::read(text)?;
        address.check()?;
        Ok(address)
    }

    fn read(text: &[u8]) -> Result<Self> {
        match text {
            [b'@' | 0, name @ ..] => Ok(Self::Abstract(name.to_owned())),
            [b'\\', b'\\', ..] => Err(Error::invalid(
                "named pipes (AF_PIPE) are Windows' own: use the path of a Unix socket, or host:port",
            )),
            _ => match Self::read_inet(text)? {
                Some(inet) => Ok(inet),
                None => Ok(Self::Unix(path_from_bytes(text.to_owned())?)),
            },
        }
    }

    /// `None` for what looks like no host and port at all.
    fn read_inet(text: &[u8]) -> Result<Option<Self>> {
        let Some((host, port)) = std::str::from_utf8(text).ok().and_then(|text| text.rsplit_once(':')) else {
            return Ok(None);
        };
        if text.contains(&b'/') || port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(None);
        }
        let Ok(port) = port.parse() else {
            return Err(Error::invalid(format!("{port} is no port: they end at 65535")));
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if host.contains([':', '[', ']']) && !bracketed.is_some_and(|host| host.contains(':')) {
            return Err(Error::invalid(format!(
                "{host:?} is no host: an IPv6 address goes in brackets, as in [::1]:80, and a path needs \
                 a slash, as in ./name:80"
            )));
        }
        Ok(Some(Self::Inet { host: bracketed.unwrap_or(host).to_owned(), port }))
    }

    /// What [`read`](Self::read) takes for the same place.
    fn text(&self) -> Vec<u8> {
        match self {
            Self::Inet { host, port } if host.contains(':') => format!("[{host}]:{port}").into_bytes(),
            Self::Inet { host, port } => format!("{host}:{port}").into_bytes(),
            Self::Abstract(name) => [b"@", &name[..]].concat(),
            Self::Unix(path) => {
                let path = path.as_os_str().as_encoded_bytes();
                match Self::read(path) {
                    Ok(Self::Unix(_)) => path.to_owned(),
                    _ => [b"./", path].concat(),
                }
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.text()))
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<&str> for Address {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<&String> for Address {
    type Error = Error;

    fn try_from(text: &String) -> Result<Self> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<&[u8]> for Address {
    type Error = Error;

    fn try_from(text: &[u8]) -> Result<Self> {
        Self::parse(text)
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&PathBuf> for Address {
    fn from(path: &PathBuf) -> Self {
        Self::Unix(path.clone())
    }
}

impl From<(&str, u16)> for Address {
    fn from((host, port): (&str, u16)) -> Self {
        Self::Inet { host: host.to_owned(), port }
    }
}

impl From<(String, u16)> for Address {
    fn from((host, port): (String, u16)) -> Self {
        Self::Inet { host, port }
    }
}

impl From<(IpAddr, u16)> for Address {
    fn from((host, port): (IpAddr, u16)) -> Self {
        Self::Inet { host: host.to_string(), port }
    }
}

impl From<(Ipv4Addr, u16)> for Address {
    fn from((host, port): (Ipv4Addr, u16)) -> Self {
        (IpAddr::from(host), port).into()
    }
}

impl From<(Ipv6Addr, u16)> for Address {
    fn from((host, port): (Ipv6Addr, u16)) -> Self {
        (IpAddr::from(host), port).into()
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            // The interface, without which a link-local address leads nowhere.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        Self::Inet { host, port: address.port() }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.text();
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&text);
        }
        let text = std::str::from_utf8(&text).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(text)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(TextVisitor)
        } else {
            deserializer.deserialize_bytes(TextVisitor)
        }
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = Address;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Address, E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_bytes<E: de::Error>(self, text: &[u8]) -> Result<Address, E> {
        Address::parse(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Address {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    fn refusal(text: &str) -> String {
        text.parse::<Address>().unwrap_err().to_string()
    }

    fn inet(host: &str, port: u16) -> Address {
        (host, port).into()
    }

    fn unix(path: &str) -> Address {
        Path::new(path).into()
    }

    #[test]
    fn text_tells_its_family() {
        for (text, address) in [
            ("localhost:80", inet("localhost", 80)),
            ("127.0.0.1:0", inet("127.0.0.1", 0)),
            (":65535", inet("", 65535)),
            ("[::1]:80", inet("::1", 80)),
            ("[fe80::1%eth0]:80", inet("fe80::1%eth0", 80)),
            ("/run/a.sock", unix("/run/a.sock")),
            ("a.sock", unix("a.sock")),
            ("./host:80", unix("./host:80")),
            ("/run/host:80", unix("/run/host:80")),
            ("host:name", unix("host:name")),
            ("host:", unix("host:")),
            ("a\\b", unix("a\\b")),
            ("@name", Address::Abstract(b"name".to_vec())),
            ("\0n\0:80", Address::Abstract(b"n\0:80".to_vec())),
        ] {
            assert_eq!(parse(text), address, "{text:?}");
        }
        assert_eq!(parse("host:1").family(), Family::Inet);
        assert_eq!(parse("./host:1").family(), Family::Unix);
        assert_eq!(parse("@host:1").family(), Family::Unix);
    }

    // conformance: TestInvalidFamily.test_invalid_family
    #[test]
    fn what_is_no_address_says_what_to_use() {
        assert!(refusal(r"\\.\pipe\test").contains("Windows"));
        assert!(refusal("::1:80").contains("[::1]:80"));
        assert!(refusal("[name]:80").contains("brackets"));
        assert!(refusal("host:65536").contains("65535"));
        assert!(refusal("").contains("empty"));
        assert!(refusal("@").contains("empty"));
        assert!(refusal("a\0b").contains("NUL"));
        assert!(refusal(&"p".repeat(MAX_UNIX + 1)).contains("107 bytes"));
        assert!(refusal(&format!("@{}", "n".repeat(MAX_UNIX + 1))).contains("107 bytes"));
        assert_eq!(parse(&"p".repeat(MAX_UNIX)).family(), Family::Unix);
        // What was not read from text is looked at as well, when it is used.
        assert!(unix("a\0b").check().is_err() && inet("a\0b", 1).check().is_err());
        assert!(unix("").check().is_err() && Address::Abstract(Vec::new()).check().is_err());
    }

    #[test]
    fn socket_addresses_keep_their_interface() {
        let scoped = SocketAddr::V6(std::net::SocketAddrV6::new(Ipv6Addr::LOCALHOST, 7, 0, 3));
        assert_eq!(Address::from(scoped), inet("::1%3", 7));
        assert_eq!(Address::from(scoped).to_string(), "[::1%3]:7");
        let plain: SocketAddr = "127.0.0.1:7".parse().unwrap();
        assert_eq!(Address::from(plain), inet("127.0.0.1", 7));
        assert_eq!(Address::from((Ipv6Addr::LOCALHOST, 7)), inet("::1", 7));
    }

    #[test]
    fn what_is_no_utf_8_survives_binary_formats() {
        let name = Address::Abstract(vec![0xff, 0, b'/']);
        let bytes = rmp_serde::to_vec(&name).unwrap();
        assert_eq!(rmp_serde::from_slice::<Address>(&bytes).unwrap(), name);
        assert!(rmp_serde::from_slice::<Address>(&rmp_serde::to_vec(&"").unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn display_parses_back(text in "[@./:a-z0-9\\[\\]%\\\\]{1,24}", port: u16, kind in 0..3) {
            let address = match kind {
                0 => Address::Inet { host: text.replace(['/', '[', ']', ':', '@', '\\'], ""), port },
                1 => Address::Unix(text.into()),
                _ => Address::Abstract(text.into_bytes()),
            };
            let shown = address.to_string();
            let back: Address = shown.parse().unwrap();
            match (&address, &back) {
                // The same place, though it is spelt with a `./`.
                (Address::Unix(path), Address::Unix(back)) => {
                    prop_assert_eq!(Path::new(".").join(path), Path::new(".").join(back));
                }
                _ => prop_assert_eq!(&address, &back),
            }
            prop_assert_eq!(back.to_string(), shown);
            let bytes = rmp_serde::to_vec(&back).unwrap();
            prop_assert_eq!(rmp_serde::from_slice::<Address>(&bytes).unwrap(), back);
        }
    }
}
