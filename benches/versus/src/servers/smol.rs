//! smol, on one thread.

use std::io;
use std::net::{TcpListener, TcpStream};

use bench_support::children::{Failure, announce};
use smol::{Async, LocalExecutor};

use super::by_futures_io;
use super::desk::Desk;
use crate::work::Work;

pub(crate) fn does(_work: Work) -> bool {
    true
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    let executor = LocalExecutor::new();
    smol::block_on(executor.run(async {
        let desk = matches!(work, Work::Relay).then(|| {
            Desk::open(|clerk| {
                smol::block_on(clerk.answer());
                Ok(())
            })
        });
        let listener = Async::<TcpListener>::bind(([127, 0, 0, 1], 0))?;
        announce(listener.get_ref().local_addr()?);
        loop {
            let (stream, _peer) = listener.accept().await?;
            executor.spawn(connection(stream, work, desk.clone())).detach();
        }
    }))
}

async fn connection(stream: Async<TcpStream>, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.get_ref().set_nodelay(true)?;
    by_futures_io::serve(stream, work, desk).await
}
