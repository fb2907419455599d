//! What the load generator does with its connections.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// On each connection one message is under way; its answer lets the next one go.
    Echo(Messages),
    /// Bytes to the servers, or from them.
    Up,
    Down,
    /// Connect, one request, its echo, reset; so many at a time.
    Short,
    /// One request and its echo on each connection, then silence.
    Idle,
    /// `wrk`, with so many requests at a time on each connection.
    Http {
        depth: usize,
    },
}

/// The messages of an echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Messages {
    /// What one send has.
    pub bytes: usize,
    /// As how many requests that counts.
    pub requests: u64,
    /// How often the message comes back.
    pub copies: usize,
    /// Of the connections, how many are replaced by new ones in a second.
    pub replaced_percent: u32,
}

/// Each message is a request, comes back once, and connections last.
const PLAIN: Messages = Messages { bytes: 1, requests: 1, copies: 1, replaced_percent: 0 };

impl Traffic {
    /// A message is a request, and comes back once.
    pub const fn echo(bytes: usize) -> Self {
        Self::Echo(Messages { bytes, ..PLAIN })
    }

    /// `depth` requests leave together, and the next ones when all are answered.
    pub const fn pipeline(bytes: usize, depth: usize) -> Self {
        Self::Echo(Messages { bytes: bytes * depth, requests: depth as u64, ..PLAIN })
    }

    /// Each request is answered by copies of itself.
    pub const fn repeated(bytes: usize, copies: usize) -> Self {
        Self::Echo(Messages { bytes, copies, ..PLAIN })
    }

    /// As `echo`, on connections that come and go.
    pub const fn churn(bytes: usize, replaced_percent: u32) -> Self {
        Self::Echo(Messages { bytes, replaced_percent, ..PLAIN })
    }
}

/// One word, by which the parent tells the load generator.
impl fmt::Display for Traffic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo(Messages { bytes, requests, copies, replaced_percent }) => {
                write!(formatter, "echo:{bytes}:{requests}:{copies}:{replaced_percent}")
            }
            Self::Up => formatter.write_str("up"),
            Self::Down => formatter.write_str("down"),
            Self::Short => formatter.write_str("short"),
            Self::Idle => formatter.write_str("idle"),
            Self::Http { depth } => write!(formatter, "http:{depth}"),
        }
    }
}

impl FromStr for Traffic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("no traffic {text:?}");
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let numbers = rest.split(':').filter(|number| !number.is_empty()).map(str::parse);
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().map_err(|_| unknown())?;
        match (name, &numbers[..]) {
            ("echo", &[bytes, requests, copies, replaced_percent]) if bytes > 0 && copies > 0 => {
                Ok(Self::Echo(Messages {
                    bytes: bytes as usize,
                    requests,
                    copies: copies as usize,
                    replaced_percent: replaced_percent as u32,
                }))
            }
            ("up", []) => Ok(Self::Up),
            ("down", []) => Ok(Self::Down),
            ("short", []) => Ok(Self::Short),
            ("idle", []) => Ok(Self::Idle),
            ("http", &[depth]) => Ok(Self::Http { depth: depth as usize }),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_traffic_is_read_as_it_is_written() {
        let echoes = [Traffic::echo(64), Traffic::pipeline(64, 16), Traffic::repeated(64, 16)];
        let others = [Traffic::Up, Traffic::Down, Traffic::Short, Traffic::Idle];
        let more = [Traffic::churn(64, 10), Traffic::Http { depth: 16 }];
        for traffic in echoes.into_iter().chain(others).chain(more) {
            assert_eq!(traffic.to_string().parse(), Ok(traffic));
        }
        assert!("echo:0:1:1:0".parse::<Traffic>().is_err());
        assert!("carrier-pigeon".parse::<Traffic>().is_err());
    }
}
