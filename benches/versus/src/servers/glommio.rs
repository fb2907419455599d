//! glommio: its rings tell when a socket is ready, system calls do the rest.
//!
//! Everything is left as it is by default. There is no setting for the flags of its rings, and no
//! use here for the memory that it registers for storage.

use std::io;

use bench_support::children::{Failure, announce};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutor, LocalExecutorBuilder};

use super::by_futures_io;
use super::desk::Desk;
use crate::work::Work;

pub(crate) fn does(_work: Work) -> bool {
    true
}

pub(crate) fn serve(work: Work) -> Result<(), Failure> {
    executor()?.run(async {
        let desk = matches!(work, Work::Relay).then(|| {
            Desk::open(|clerk| {
                executor()?.run(clerk.answer());
                Ok(())
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0")?;
        announce(listener.local_addr()?);
        loop {
            let stream = listener.accept().await?;
            glommio::spawn_local(connection(stream, work, desk.clone())).detach();
        }
    })
}

fn executor() -> Result<LocalExecutor, Failure> {
    // Where it is refused a ring it ends the process, and says that memory may not be locked.
    drop(io_uring::IoUring::new(2)?);
    Ok(LocalExecutorBuilder::default().make()?)
}

async fn connection(stream: TcpStream, work: Work, desk: Option<Desk>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    by_futures_io::serve(stream, work, desk).await
}
