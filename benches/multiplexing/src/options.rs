//! The command line.

use std::path::PathBuf;

pub(crate) const USAGE: &str = "\
cargo run --release -p multiplexing -- [OPTIONS]

  --quick         small numbers, few rounds: does it run at all?
  --only A,B,..   of ready, interest, herd, echo, edges, wakes (default: all)
  --out DIR       where the curves go, as SVG and JSON (default: target/multiplexing)";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Part {
    Ready,
    Interest,
    Herd,
    Echo,
    Edges,
    Wakes,
}

const PARTS: [(&str, Part); 6] = [
    ("ready", Part::Ready),
    ("interest", Part::Interest),
    ("herd", Part::Herd),
    ("echo", Part::Echo),
    ("edges", Part::Edges),
    ("wakes", Part::Wakes),
];

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Effort {
    Quick,
    Full,
}

impl Effort {
    pub(crate) fn choose<T>(self, quick: T, full: T) -> T {
        match self {
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) effort: Effort,
    pub(crate) parts: Vec<Part>,
    pub(crate) out: PathBuf,
}

impl Options {
    /// # Errors
    /// A sentence for the user.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut options = Self {
            effort: Effort::Full,
            parts: PARTS.map(|(_, part)| part).to_vec(),
            out: PathBuf::from("target/multiplexing"),
        };
        let mut arguments = arguments.iter();
        while let Some(option) = arguments.next() {
            let mut value =
                || arguments.next().map(String::as_str).ok_or(format!("{option} needs a value"));
            match option.as_str() {
                "--quick" => options.effort = Effort::Quick,
                "--only" => {
                    options.parts = value()?.split(',').map(part).collect::<Result<_, _>>()?;
                }
                "--out" => options.out = PathBuf::from(value()?),
                _ => return Err(format!("no option {option:?}")),
            }
        }
        Ok(options)
    }
}

fn part(name: &str) -> Result<Part, String> {
    let found = PARTS.iter().find(|(known, _)| *known == name);
    found.map(|&(_, part)| part).ok_or(format!("no part {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::{Effort, Options, Part};

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn everything_is_measured_unless_told_otherwise() {
        let options = parse("").expect("no option is fine");
        assert_eq!((options.parts.len(), options.effort), (6, Effort::Full));
        let options = parse("--only wakes,herd --quick --out /x").expect("known options");
        assert_eq!(options.parts, [Part::Wakes, Part::Herd]);
        assert_eq!((options.effort, options.out.to_str()), (Effort::Quick, Some("/x")));
    }

    #[test]
    fn what_is_unknown_is_named() {
        assert_eq!(parse("--only kqueue"), Err("no part \"kqueue\"".to_owned()));
        assert_eq!(parse("--loud"), Err("no option \"--loud\"".to_owned()));
        assert_eq!(parse("--out"), Err("--out needs a value".to_owned()));
    }
}
