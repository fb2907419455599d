//! The example that ends well: what each signal means for whom.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use common::each_driver;
use common::peer;
use common::process::{Running, example};

mod common;

each_driver! {
    fn idle_connections_end_at_once_and_what_has_begun_is_finished(driver: Driver) {
        for signal in [libc::SIGTERM, libc::SIGINT] {
            let (mut server, address) = start(driver, 600);
            let mut idle = Client::connect(address);
            let mut half = Client::connect(address);
            half.begin("half a li");
            let mut slow = Client::connect(address);
            slow.begin("sleep 1000\nbehind it\nhalf a li");

            server.signal(signal);
            assert_eq!(server.line_after("asked to end: "), "600s for what has begun");
            idle.expect_end();
            half.expect_end();
            assert_eq!(slow.line().as_deref(), Some("sleep 1000"));
            assert_eq!(slow.line().as_deref(), Some("behind it"));
            slow.expect_end();
            let (status, output, errors) = server.finish();
            assert_eq!(status.code(), Some(0), "{errors}");
            // The idle ones, said before or after being asked is, did not wait for the slow one.
            let last = format!("{}: was idle\nall connections have ended\n", slow.own_address());
            assert!(output.ends_with(&last), "{output}");
            assert_eq!(errors, "");
        }
    }

    fn new_connections_are_refused_while_the_rest_finishes(driver: Driver) {
        let (mut server, address) = start(driver, 600);
        let mut slow = Client::connect(address);
        slow.begin("sleep 1000\n");
        server.signal(libc::SIGTERM);
        server.line_after("asked to end: ");
        let refused = loop {
            // Who comes before the last shard has stopped is accepted, or reset, also while it
            // connects.
            match TcpStream::connect(address) {
                Ok(mut late) => {
                    // A client that the kernel has forgotten hears of it when it sends.
                    let _sent = late.write_all(b"x");
                    peer::expect_closed(&late);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(slow.line().as_deref(), Some("sleep 1000"));
        slow.expect_end();
        assert_eq!(server.finish().0.code(), Some(0));
    }

    fn a_second_signal_ends_everything_at_once(driver: Driver) {
        let (mut server, address) = start(driver, 600);
        let mut slow = Client::connect(address);
        slow.begin("sleep 600000\n");
        server.signal(libc::SIGINT);
        server.line_after("asked to end: ");
        server.signal(libc::SIGTERM);
        slow.expect_end();
        let (status, output, errors) = server.finish();
        assert_eq!(status.code(), Some(0), "{errors}");
        assert!(output.contains("told to end at once"), "{output}");
        assert!(output.contains(&format!("{}: cut off", slow.own_address())), "{output}");
    }

    fn what_is_not_finished_in_time_is_cut_off(driver: Driver) {
        let (mut server, address) = start(driver, 0);
        let mut slow = Client::connect(address);
        slow.begin("sleep 600000\n");
        server.signal(libc::SIGTERM);
        slow.expect_end();
        let (status, output, errors) = server.finish();
        assert_eq!(status.code(), Some(0), "{errors}");
        assert!(output.contains(&format!("{}: cut off", slow.own_address())), "{output}");
        assert!(!output.contains("told to end at once"), "{output}");
    }
}

/// The example as a child process, with so many seconds to finish.
fn start(driver: annulus::Driver, grace_s: u32) -> (Running, SocketAddr) {
    let mut command = Command::new(example("graceful_shutdown"));
    command.args(["127.0.0.1:0", &grace_s.to_string()]);
    command.env("ANNULUS_DRIVER", driver.to_string()).env("ANNULUS_SHARDS", "3");
    let mut server = Running::start(command);
    let address = server.line_after("listening on ").parse().expect("an address");
    (server, address)
}

/// A client that is served.
struct Client {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        let stream = peer::connect(address);
        let input = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut client = Client { stream, input };
        client.begin("");
        client
    }

    /// Sends this behind a line, and returns when that has been answered: so the server has read
    /// both.
    fn begin(&mut self, text: &str) {
        self.stream.write_all(format!("hello\n{text}").as_bytes()).expect("send to the server");
        assert_eq!(self.line().as_deref(), Some("hello"));
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.input.read_line(&mut line).expect("receive a line");
        (count > 0).then(|| line.trim_end().to_owned())
    }

    fn expect_end(&mut self) {
        assert_eq!(self.line(), None);
    }

    fn own_address(&self) -> SocketAddr {
        self.stream.local_addr().expect("the client's address")
    }
}
