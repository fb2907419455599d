//! What options of the benchmarks take.

pub const SECONDS_MAX: f64 = 3600.0;

pub fn number<T>(option: &str, text: &str, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("{option} takes a number from {least} to {most}, not {text:?}")),
    }
}
