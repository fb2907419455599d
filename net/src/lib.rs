//! TCP for the `annulus` runtime. Programs use it as `annulus::net`.
//!
//! | file | idea |
//! | --- | --- |
//! | `tcp/listener` | a listener, and the queue of its multishot accept |
//! | `tcp/stream` | what users hold of a connection |
//! | `tcp/connection` | the connection's state, which stays on its shard |
//! | `tcp/inbound`, `tcp/outbound` | its two directions |
//! | `tcp/split` | a stream's halves |
//! | `tcp/operations` | accept, connect and send, as entries and as system calls |
//! | `addr` | what can be turned into socket addresses |

#![cfg(target_os = "linux")]

mod addr;
pub mod tcp;

pub use addr::ToSocketAddrs;
pub use tcp::{ListenOptions, TcpListener, TcpStream};
