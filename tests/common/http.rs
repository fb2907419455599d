//! HTTP/1.1 as blocking peers speak it: no more than tests need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A request with a body.
pub(crate) fn request(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Sends a request.
#[track_caller]
pub(crate) fn ask(stream: &mut TcpStream, path: &str, body: &str) {
    stream.write_all(request(path, body).as_bytes()).expect("a peer's write");
}

/// The body of the next answer. Takes nothing behind it.
#[track_caller]
pub(crate) fn answer(stream: &mut TcpStream) -> String {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut body = vec![0; read_head(&mut reader)];
    reader.read_exact(&mut body).expect("a body");
    String::from_utf8(body).expect("a body of text")
}

/// Reads a head and answers how long its body is.
#[track_caller]
pub(crate) fn read_head(reader: &mut impl BufRead) -> usize {
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line of a head");
        assert!(line.ends_with('\n'), "the connection ended within a head: {line:?}");
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" {
            return length;
        }
    }
}
