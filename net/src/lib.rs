//! Sockets for the `annulus` runtime. Programs use it as `annulus::net`.
//!
//! | file | idea |
//! | --- | --- |
//! | `stream/` | connections of every family: what users hold, the state, the two directions |
//! | `listener` | listeners of every family, and the queue of a multishot accept |
//! | `family` | what the families differ in |
//! | `tcp`, `unix` | making streams and listeners, and what only one family has |
//! | `operations` | accept and connect, as entries and as system calls |
//! | `addr` | what can be turned into socket addresses |

#![cfg(target_os = "linux")]

mod addr;
mod family;
mod listener;
mod notice;
mod operations;
pub mod stream;
pub mod tcp;

pub use addr::ToSocketAddrs;
pub use family::{Family, Tcp, Unix};
pub use listener::{Accepting, Incoming, Listener};
pub use stream::Stream;
pub use tcp::{ListenOptions, TcpListener, TcpStream};
