//! Two who want the same port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use super::real::{bind, listen, socket};
use super::{Answer, in_world};
use crate::sim::calls::Binding;

/// One of the two, but for its port.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    ip: &'static str,
    binding: Binding,
}

const IPS: [&str; 6] = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"];

fn all_wanted() -> Vec<Wanted> {
    let mut all = Vec::new();
    for ip in IPS {
        for only_v6 in [false, true] {
            // Such an address is none of IPv6's.
            if only_v6 && ip != "[::1]" && ip != "[::]" {
                continue;
            }
            for shares in [false, true] {
                all.push(Wanted { ip, binding: Binding { shares, only_v6 } });
            }
        }
    }
    all
}

/// A port that nobody has, and that the kernel gives to nobody who does not ask for it.
fn port() -> u16 {
    let is_free = |port: &u16| {
        // Where there is IPv6, its wildcard stands for that of IPv4 as well.
        let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port);
        let one = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port);
        let probe = socket(both).map(|probe| (probe, both));
        let (probe, all) = probe.or_else(|| Some((socket(one)?, one))).expect("a socket");
        bind(&probe, all, Binding::default()).is_ok() && listen(&probe).is_ok()
    };
    let first = 20_000 + std::process::id() as u16 % 10_000;
    (first..32_000).find(is_free).expect("a port is free")
}

fn bound(wanted: Wanted, port: u16) -> Option<(OwnedFd, Answer)> {
    let address = format!("{}:{port}", wanted.ip).parse().unwrap();
    let socket = socket(address)?;
    let answer = bind(&socket, address, wanted.binding);
    Some((socket, answer))
}

/// The answers to the binds and listens of both. `None`: there is no such network here.
fn answers(first: Wanted, second: Wanted, at_once: bool, port: u16) -> Option<Vec<Answer>> {
    let (one, bound_one) = bound(first, port)?;
    if bound_one == Err(libc::EADDRNOTAVAIL) {
        return None;
    }
    let mut answers = vec![bound_one];
    if at_once {
        answers.push(listen(&one));
    }
    let (other, bound_other) = bound(second, port)?;
    if bound_other == Err(libc::EADDRNOTAVAIL) {
        return None;
    }
    answers.push(bound_other);
    if bound_other.is_ok() {
        answers.push(listen(&other));
    }
    if !at_once {
        answers.push(listen(&one));
    }
    Some(answers)
}

#[test]
fn who_may_have_a_port_beside_another_is_who_may_on_linux() {
    let port = port();
    let mut compared = 0;
    for first in all_wanted() {
        for second in all_wanted() {
            for at_once in [true, false] {
                let Some(real) = answers(first, second, at_once, port) else { continue };
                let simulated = in_world(|_| answers(first, second, at_once, port));
                assert_eq!(
                    simulated,
                    Some(real),
                    "the simulation (left) and Linux (right): {first:?}, {second:?}, the first \
                     listens at once: {at_once}"
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
}
