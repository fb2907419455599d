//! UDP: a socket, its options, and several datagrams by one call.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod inbound;
mod name;
mod offload;
mod options;
mod outbound;
mod owned;
mod socket;
mod state;

pub use offload::Segments;
pub use options::UdpOptions;
pub use socket::UdpSocket;
