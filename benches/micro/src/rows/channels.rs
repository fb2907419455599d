//! Messages between tasks of one shard, through channels that know no runtime.

use futures_channel::{mpsc, oneshot};
use futures_util::{SinkExt, StreamExt};

use super::timed;
use crate::subject::{Subject, on_task};

/// Messages that may wait in a channel whose sender waits.
const CAPACITY: usize = 64;

/// Two tasks send one message to and fro: a message.
pub fn ping_pong<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |messages| {
        let (ping, mut pings) = mpsc::unbounded();
        let (pong, mut pongs) = mpsc::unbounded();
        let answering = R::spawn(async move {
            while let Some(number) = pings.next().await {
                pong.unbounded_send(number).expect("the other end is open");
            }
        });
        for number in 0..messages / 2 {
            ping.unbounded_send(number).expect("the other end is open");
            assert_eq!(pongs.next().await, Some(number));
        }
        drop(ping);
        R::value(answering.await);
    }))
}

/// One task sends what another takes: a message.
pub fn one_way<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |messages| {
        let (mut sender, mut receiver) = mpsc::channel(CAPACITY);
        let sending = R::spawn(async move {
            for number in 0..messages {
                sender.send(number).await.expect("the other end is open");
            }
        });
        let mut next = 0;
        while let Some(number) = receiver.next().await {
            assert_eq!(number, next);
            next += 1;
        }
        assert_eq!(next, messages);
        R::value(sending.await);
    }))
}

/// One task asks, with a oneshot to be answered by, and another answers: a call.
pub fn calls<R: Subject>(operations: u64) -> f64 {
    on_task::<R, _>(timed(operations, async |calls| {
        let (ask, mut asked) = mpsc::unbounded::<(u64, oneshot::Sender<u64>)>();
        let answering = R::spawn(async move {
            while let Some((number, answer)) = asked.next().await {
                answer.send(number).expect("who asks waits");
            }
        });
        for number in 0..calls {
            let (answer, answered) = oneshot::channel();
            ask.unbounded_send((number, answer)).expect("the other end is open");
            assert_eq!(answered.await, Ok(number));
        }
        drop(ask);
        R::value(answering.await);
    }))
}
