//! Sockets for the `annulus` runtime. Programs use it as `annulus::net`.
//!
//! | file | idea |
//! | --- | --- |
//! | `stream/` | connections of every family: what users hold, the state, the two directions |
//! | `io` | copying from one connection to another |
//! | `listener` | listeners of every family, and the queue of a multishot accept |
//! | `group/` | listening with every shard: where a connection goes, serving, and its end |
//! | `family` | what the families differ in |
//! | `tcp`, `unix` | making streams and listeners, and what only one family has |
//! | `udp/socket`, `udp/owned`, `udp/options` | what users hold of a UDP socket |
//! | `udp/state` | its state, which stays on its shard |
//! | `udp/inbound`, `udp/outbound` | its two directions |
//! | `udp/name`, `udp/offload` | what comes with a datagram: addresses, lengths of segments |
//! | `sockets` | TCP sockets before they are streams or listeners, real or simulated |
//! | `operations` | accept and connect, as entries and as system calls |
//! | `into_std` | why a listener or a UDP socket could not go to the standard library |
//! | `memory` | what receives write to |
//! | `traits/` | the traits of tokio, futures and hyper, a feature each |
//! | `addr` | what can be turned into socket addresses |

#![cfg(target_os = "linux")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod addr;
#[cfg(any(test, fuzzing))]
mod choices;
mod family;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod into_std;
pub mod io;
mod listener;
mod memory;
mod notice;
mod operations;
#[cfg(any(test, fuzzing))]
mod seen;
mod shortage;
mod sockets;
pub mod stream;
pub mod tcp;
mod traits;
pub mod udp;
pub mod unix;

pub use addr::ToSocketAddrs;
pub use family::{Family, Tcp, Unix};
pub use group::{ListenerGroup, Placement};
pub use into_std::IntoStdError;
pub use listener::{Accepting, Incoming, Listener};
pub use stream::{AttachError, DetachError, Detached, Stream, ZeroCopy};
pub use tcp::{ListenOptions, TcpListener, TcpStream};
#[cfg(feature = "hyper")]
pub use traits::hyper;
pub use udp::{UdpOptions, UdpSocket};
pub use unix::{Credentials, UnixListenOptions, UnixListener, UnixStream};
