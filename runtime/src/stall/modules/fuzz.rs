//! A `/proc/PID/maps` of any content.

use super::Modules;
use crate::choices::Choices;

/// Maps of these bytes, and addresses that are looked for there.
pub(crate) fn maps(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let addresses = [choices.number() as usize, choices.magnitude() as usize, 0, usize::MAX];
    let moves = choices.is_heads();
    let text = String::from_utf8_lossy(choices.rest()).into_owned();
    let modules = Modules::parse(&text, |_| moves);
    for mapping in &modules.mappings {
        let around = [mapping.start, mapping.end.saturating_sub(1), mapping.end];
        for address in around.into_iter().chain(addresses) {
            if let Some((path, _)) = modules.find(address) {
                assert!(path.is_absolute());
                assert!(modules.mappings.iter().any(|it| (it.start..it.end).contains(&address)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::maps;
    use crate::choices::{with_kept, with_seeds};

    #[test]
    fn maps_may_be_anything() {
        with_kept("maps", maps);
        with_seeds(1000, maps);
        // Lines that are some, in any order, with any bounds.
        with_seeds(2000, |bytes| {
            let mut text = bytes[..bytes.len().min(11)].to_vec();
            for line in bytes.chunks_exact(4) {
                let (start, end, offset, file) = (line[0], line[1], line[2], line[3] % 3);
                text.extend(format!("{start:x}-{end:x} r-xp {offset:x} 0:1 7 /{file}\n").bytes());
            }
            maps(&text);
        });
    }
}
