//! Asks an echo server so often, one request at a time, the connections in turn: the load for
//! counting what a request takes, which knows no clock. `asks ADDRESS CONNECTIONS REQUESTS`.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

const REQUEST: [u8; 64] = [7; 64];

/// A server under valgrind takes milliseconds for an answer; this long, and it hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match ask(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("asks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [address, connections, requests] = arguments else {
        return Err("asks ADDRESS CONNECTIONS REQUESTS".into());
    };
    let mut connections = (0..connections.parse()?)
        .map(|_: usize| {
            let connection = TcpStream::connect(address)?;
            connection.set_nodelay(true)?;
            connection.set_read_timeout(Some(ANSWER_LIMIT))?;
            Ok(connection)
        })
        .collect::<Result<Vec<_>, std::io::Error>>()?;
    let count = connections.len();
    for number in 0..requests.parse()? {
        let connection: &mut TcpStream =
            connections.get_mut(number % count.max(1)).ok_or("no connection")?;
        connection.write_all(&REQUEST)?;
        let mut answer = [0; REQUEST.len()];
        connection.read_exact(&mut answer)?;
        if answer != REQUEST {
            return Err("the answer is not the request".into());
        }
    }
    Ok(())
}
