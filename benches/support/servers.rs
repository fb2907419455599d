//! The servers under measurement. The two runtimes run what a user would write, in the same shape.

use std::{fmt, io};

use super::children::{Failure, announce};
use super::{floor_epoll, floor_ring};

/// What every server reads into, per connection or per piece.
pub(crate) const BUFFER_BYTES: usize = 4096;

/// A server by name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    AnnulusUring,
    AnnulusEpoll,
    Tokio,
    FloorRing,
    FloorEpoll,
}

impl Server {
    /// In the order of the table.
    pub(crate) const ALL: [Self; 5] =
        [Self::AnnulusUring, Self::AnnulusEpoll, Self::Tokio, Self::FloorRing, Self::FloorEpoll];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AnnulusUring => "annulus-uring",
            Self::AnnulusEpoll => "annulus-epoll",
            Self::Tokio => "tokio",
            Self::FloorRing => "floor-ring",
            Self::FloorEpoll => "floor-epoll",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|server| server.name() == name)
    }

    /// Serves on a free port of 127.0.0.1, which it prints, until the process is killed.
    pub(crate) fn serve(self) -> Result<(), Failure> {
        match self {
            Self::AnnulusUring => annulus_echo(annulus::Driver::Uring),
            Self::AnnulusEpoll => annulus_echo(annulus::Driver::Epoll),
            Self::Tokio => tokio_echo(),
            Self::FloorRing => Ok(floor_ring::serve()?),
            Self::FloorEpoll => Ok(floor_epoll::serve()?),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

fn annulus_echo(driver: annulus::Driver) -> Result<(), Failure> {
    let runtime = annulus::Runtime::builder().driver(driver).build()?;
    runtime.block_on(async {
        let listener = annulus::net::TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (mut stream, _peer) = listener.accept().await?;
            annulus::spawn(async move {
                let mut buffer = [0; BUFFER_BYTES];
                loop {
                    match stream.read(&mut buffer).await? {
                        0 => return Ok::<_, io::Error>(()),
                        received => stream.write_all(&buffer[..received]).await?,
                    }
                }
            });
        }
    })
}

fn tokio_echo() -> Result<(), Failure> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        announce(listener.local_addr()?);
        loop {
            let (mut stream, _peer) = listener.accept().await?;
            stream.set_nodelay(true)?; // annulus does so by default.
            tokio::spawn(async move {
                let mut buffer = [0; BUFFER_BYTES];
                loop {
                    match stream.read(&mut buffer).await? {
                        0 => return Ok::<_, io::Error>(()),
                        received => stream.write_all(&buffer[..received]).await?,
                    }
                }
            });
        }
    })
}
