//! Buffers whose drop does something: it runs where it can do no harm.

use std::cell::RefCell;
use std::io::Read;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc::channel;

use annulus::buf::IoBuf;
use annulus::net::TcpStream;
use annulus::time::timeout;

use common::bytes::Keyed;
use common::each_driver;
use common::peer;
use common::steps::{eventually, poll_once, serve_echo, settle, with_peer};

mod common;

each_driver! {
    async fn a_buffer_may_own_the_stream_that_it_was_sent_on() {
        for waits in [false, true] {
            let (tell, told) = channel::<()>();
            let (mut stream, peer) = with_peer(move |mut stream| {
                told.recv().unwrap();
                let mut wire = Vec::new();
                stream.read_to_end(&mut wire).unwrap();
                wire
            })
            .await;
            let owned: Rc<RefCell<Option<TcpStream>>> = Rc::default();
            let dropped = Rc::clone(&owned);
            let buffer = Buffer::new(move || {
                // The borrow ends before the stream is dropped.
                let stream = dropped.take();
                drop(stream);
            });
            let mut sending = Box::pin(stream.send_all(buffer));
            assert!(poll_once(sending.as_mut()).await.is_pending());
            if waits {
                settle().await;
            }
            drop(sending);
            stream.write_all(&Keyed(3).bytes(0, 700)).await.unwrap();
            *owned.borrow_mut() = Some(stream);
            // The kernel gives the buffer back, and its drop drops the stream.
            settle().await;
            drop(owned.take());
            tell.send(()).unwrap();
            let wire = timeout(peer::patience(), peer).await.expect("FIN is missing");
            let prefix = wire.len().checked_sub(700).expect("what was written is missing");
            Keyed(1).check(0, &wire[..prefix]);
            Keyed(3).check(0, &wire[prefix..]);
        }
    }

    async fn a_buffer_that_panics_when_it_is_dropped_harms_nobody_else() {
        let addr = serve_echo().await;
        for how in 0..4 {
            let (tell, told) = channel::<()>();
            let (stream, peer) = with_peer(move |stream| {
                told.recv().unwrap();
                peer::expect_until_end(&stream, &mut Keyed(1).cursor())
            })
            .await;
            let tried = Rc::new(RefCell::new(false));
            let noted = Rc::clone(&tried);
            let buffer = Buffer::new(move || {
                noted.replace(true);
                panic!("a buffer that panics when it is dropped");
            });
            let sending = annulus::spawn(async move {
                let mut stream = stream;
                let mut sending: Pin<Box<dyn Future<Output = _>>> =
                    Box::pin(stream.send_all(buffer));
                assert!(poll_once(Pin::new(&mut sending)).await.is_pending());
                if how % 2 == 0 {
                    settle().await;
                }
                drop(sending);
                if how < 2 {
                    settle().await;
                    stream.write_all(b"").await.unwrap();
                }
            });
            eventually("the buffer is dropped", || *tried.borrow()).await;
            tell.send(()).unwrap();
            // On epoll it is dropped with the future, and the task has the panic.
            let _either = sending.await;
            assert!(peer.await > 0);
            peer::peer(move || peer::echo(&peer::connect(addr), Keyed(2), 50_000)).await;
        }
    }
}

struct Buffer<F: FnMut() + 'static> {
    bytes: Vec<u8>,
    on_drop: F,
}

impl<F: FnMut() + 'static> Buffer<F> {
    fn new(on_drop: F) -> Self {
        Self { bytes: Keyed(1).bytes(0, 24 << 20), on_drop }
    }
}

impl<F: FnMut() + 'static> Drop for Buffer<F> {
    fn drop(&mut self) {
        (self.on_drop)();
    }
}

// SAFETY: the bytes are on the heap and never change.
unsafe impl<F: FnMut() + 'static> IoBuf for Buffer<F> {
    fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}
