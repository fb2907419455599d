//! Without the feature `http2` all clients are taken to speak HTTP/1.

use std::io;

use annulus_runtime::shutdown::Waiting;

use super::Tower;
use crate::stream::Stream;

/// Gives the connection back.
pub(super) async fn serve_if_spoken<F: crate::family::Family, S>(
    stream: Stream<F>,
    _service: &Tower<S>,
    _asked: &mut Waiting,
) -> io::Result<Option<Stream<F>>> {
    Ok(Some(stream))
}
