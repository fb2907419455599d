//! The protocol of Redis, RESP2: whatever a client sends, and whatever it is answered.

use std::io;
use std::sync::Arc;

use annulus::net::TcpStream;

/// Of one request: what a client may have a connection hold.
const REQUEST_BYTES_MAX: usize = 4 << 20;
const ARGUMENT_BYTES_MAX: usize = 1 << 20;
const ARGUMENTS_MAX: usize = 1024;
/// A request that is one line, as people type it.
const LINE_BYTES_MAX: usize = 1024;
/// The line with a number before an array or an argument.
const HEAD_BYTES_MAX: usize = 32;
/// Longer values are sent from where they lie.
const COPIED_BYTES_MAX: usize = 4096;

pub(crate) enum Parsed {
    /// A request of so many bytes.
    Request(usize),
    /// It has at least so many.
    Incomplete(usize),
}

/// What the client has sent is no request; nothing behind it can be understood.
pub(crate) struct Malformed(pub(crate) &'static str);

/// Finds the arguments of the first request: an array of strings, or a line.
pub(crate) fn parse<'a>(
    bytes: &'a [u8],
    arguments: &mut Vec<&'a [u8]>,
) -> Result<Parsed, Malformed> {
    arguments.clear();
    if bytes.first().is_some_and(|&mark| mark != b'*') {
        return parse_line(bytes, arguments);
    }
    let Some((count, mut at)) = parse_head(bytes, b'*')? else {
        return Ok(Parsed::Incomplete(bytes.len() + 1));
    };
    if count > ARGUMENTS_MAX as i64 {
        return Err(Malformed("invalid multibulk length"));
    }
    for _ in 0..count {
        let Some((len, head)) = parse_head(&bytes[at..], b'$')? else {
            return Ok(Parsed::Incomplete(bytes.len() + 1));
        };
        let len = usize::try_from(len).map_err(|_| Malformed("invalid bulk length"))?;
        let start = at + head;
        if len > ARGUMENT_BYTES_MAX || start + len > REQUEST_BYTES_MAX {
            return Err(Malformed("invalid bulk length"));
        }
        at = start + len + 2;
        if bytes.len() < at {
            return Ok(Parsed::Incomplete(at));
        }
        if &bytes[start + len..at] != b"\r\n" {
            return Err(Malformed("a bulk string without its end"));
        }
        arguments.push(&bytes[start..start + len]);
    }
    Ok(Parsed::Request(at))
}

fn parse_line<'a>(bytes: &'a [u8], arguments: &mut Vec<&'a [u8]>) -> Result<Parsed, Malformed> {
    match bytes.iter().take(LINE_BYTES_MAX).position(|&byte| byte == b'\n') {
        Some(end) => {
            let words = bytes[..end].split(u8::is_ascii_whitespace);
            arguments.extend(words.filter(|word| !word.is_empty()));
            Ok(Parsed::Request(end + 1))
        }
        None if bytes.len() >= LINE_BYTES_MAX => Err(Malformed("too big inline request")),
        None => Ok(Parsed::Incomplete(bytes.len() + 1)),
    }
}

/// The number behind a mark, and how long its line is; `None` if the line has not come yet.
fn parse_head(bytes: &[u8], mark: u8) -> Result<Option<(i64, usize)>, Malformed> {
    match bytes.first() {
        None => return Ok(None),
        Some(&first) if first != mark => return Err(Malformed("expected '$'")),
        Some(_) => {}
    }
    match bytes.iter().take(HEAD_BYTES_MAX).position(|&byte| byte == b'\n') {
        Some(end) => {
            let digits = bytes[1..end].strip_suffix(b"\r").and_then(number);
            Ok(Some((digits.ok_or(Malformed("invalid length"))?, end + 1)))
        }
        None if bytes.len() >= HEAD_BYTES_MAX => Err(Malformed("invalid length")),
        None => Ok(None),
    }
}

pub(crate) fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

pub(crate) enum Answer {
    /// As it goes to the client.
    Line(&'static str),
    Error(String),
    Integer(i64),
    /// The sum of so many integers, which are the next answers.
    SumOf(usize),
    Value(Option<Arc<[u8]>>),
    /// The name of a setting, which has no value.
    Setting(Arc<[u8]>),
}

pub(crate) async fn write_answers(
    stream: &mut TcpStream,
    output: &mut Vec<u8>,
    answers: Vec<Answer>,
) -> io::Result<()> {
    output.clear();
    let mut answers = answers.into_iter();
    while let Some(answer) = answers.next() {
        match answer {
            Answer::Line(line) => output.extend_from_slice(line.as_bytes()),
            Answer::Error(what) => output.extend_from_slice(format!("-{what}\r\n").as_bytes()),
            Answer::Integer(number) => write_head(output, b':', number),
            Answer::SumOf(count) => {
                let integer =
                    |answer| if let Answer::Integer(number) = answer { number } else { 0 };
                write_head(output, b':', answers.by_ref().take(count).map(integer).sum());
            }
            Answer::Value(None) => output.extend_from_slice(b"$-1\r\n"),
            Answer::Value(Some(value)) if value.len() > COPIED_BYTES_MAX => {
                write_head(output, b'$', value.len() as i64);
                stream.write_all(output).await?;
                stream.write_all(&value).await?;
                output.clear();
                output.extend_from_slice(b"\r\n");
            }
            Answer::Value(Some(value)) => write_value(output, &value),
            Answer::Setting(name) => {
                write_head(output, b'*', 2);
                write_value(output, &name);
                write_value(output, b"");
            }
        }
    }
    stream.write_all(output).await
}

fn write_value(output: &mut Vec<u8>, value: &[u8]) {
    write_head(output, b'$', value.len() as i64);
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

fn write_head(output: &mut Vec<u8>, mark: u8, number: i64) {
    output.push(mark);
    output.extend_from_slice(number.to_string().as_bytes());
    output.extend_from_slice(b"\r\n");
}
