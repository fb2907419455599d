//! Texts that may name a socket address.

use std::io;
use std::net::SocketAddr;

use super::sealed::{Name, Named};
use crate::choices::Choices;

/// A text that these bytes describe: parts of addresses, numbers, and anything.
pub(crate) fn addresses(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut text = String::new();
    while !choices.is_over() && text.len() < 80 {
        match choices.byte() % 16 {
            0 => text.push('['),
            1 => text.push(']'),
            2..=4 => text.push(':'),
            5 => text.push('.'),
            6 => text.push('%'),
            7 => text.push_str("127.0.0.1"),
            8 => text.push_str("::1"),
            9 => text.push_str("fe80::"),
            10 => text.push_str("name.example"),
            11 => text.push_str(&choices.magnitude().to_string()),
            12 => text.push_str(&(choices.number() as u16).to_string()),
            _ => {
                let length = 1 + usize::from(choices.is_heads());
                text.push_str(&String::from_utf8_lossy(choices.bytes(length)));
            }
        }
    }
    let is_address = text.parse::<SocketAddr>();
    let parts = text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    match text.named() {
        Ok(Name::One(address)) => {
            assert_eq!(is_address, Ok(address));
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        Ok(Name::Lookup(host, port)) => {
            assert!(is_address.is_err() && !host.is_empty());
            assert_eq!(parts, Some((host.as_str(), Ok(port))));
            let tuple = (host.as_str(), port).named().expect("a host and a port");
            match (tuple, host.parse()) {
                (Name::One(address), Ok(ip)) => assert_eq!(address, SocketAddr::new(ip, port)),
                (Name::Lookup(again, _), Err(_)) => assert_eq!(again, host),
                _ => panic!("{host:?} is an address or is none"),
            }
        }
        Ok(Name::Known(_)) => panic!("a text is no list"),
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let usable = parts.is_some_and(|(host, port)| !host.is_empty() && port.is_ok());
            assert!(is_address.is_err() && !usable, "{text:?} was refused");
            assert!(error.to_string().contains(&format!("{text:?}")), "{error} does not say what");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::addresses;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn a_text_is_an_address_a_name_or_an_error_that_quotes_it() {
        with_kept("addresses", addresses);
        with_seeds(5000, addresses);
    }
}
