//! To which file of the process an address belongs, and where in it.

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files that are mapped at the moment. Read from `/proc`, as the dynamic linker's own list has
/// a lock that the stalled thread may hold.
#[derive(Debug, Default)]
pub(super) struct Modules {
    mappings: Vec<Mapping>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    end: usize,
    /// What has to be taken from an address to have that of the file's own tables.
    bias: usize,
    path: Arc<Path>,
}

impl Modules {
    /// None where `/proc` is not there.
    pub(super) fn of_this_process() -> Modules {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Modules::parse(&maps, is_position_independent)
    }

    fn parse(maps: &str, moves: impl Fn(&Path) -> bool) -> Modules {
        let mut mappings: Vec<Mapping> = Vec::new();
        for line in maps.lines() {
            let Some((start, end, offset, path)) = fields(line) else { continue };
            let path = match mappings.last() {
                Some(last) if *last.path == *path => Arc::clone(&last.path),
                _ => Arc::from(path),
            };
            // The kernel lists them by address, a file's beginning first.
            let bias = match mappings.last() {
                Some(last) if Arc::ptr_eq(&last.path, &path) && offset > 0 => last.bias,
                _ if moves(&path) => start.saturating_sub(offset),
                _ => 0,
            };
            mappings.push(Mapping { start, end, bias, path });
        }
        Modules { mappings }
    }

    /// The file, and the address in it as its symbol table has it.
    pub(super) fn find(&self, address: usize) -> Option<(Arc<Path>, usize)> {
        let found = self.mappings.iter().find(|it| (it.start..it.end).contains(&address))?;
        Some((Arc::clone(&found.path), address.checked_sub(found.bias)?))
    }
}

/// `55d0c0a00000-55d0c0a21000 r-xp 00002000 fe:00 1234    /usr/bin/program`
fn fields(line: &str) -> Option<(usize, usize, usize, PathBuf)> {
    let (_, path) = line.split_once('/')?;
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let offset = words.nth(1)?;
    let hexadecimal = |text| usize::from_str_radix(text, 16).ok();
    let path = PathBuf::from(format!("/{path}"));
    Some((hexadecimal(start)?, hexadecimal(end)?, hexadecimal(offset)?, path))
}

/// Whether a file is loaded wherever there is room, as all but old-fashioned programs are.
fn is_position_independent(path: &Path) -> bool {
    /// The file's type stands behind its 16 bytes of identification; 2 is a fixed program.
    const FIXED: [u8; 2] = 2_u16.to_ne_bytes();
    let mut head = [0; 18];
    // Devices are mapped too, and to open one may do something.
    if !fs::metadata(path).is_ok_and(|found| found.is_file()) {
        return true;
    }
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_err() || head[16..] != FIXED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    const MAPS: &str = "\
        55d0c0a00000-55d0c0a02000 r--p 00000000 fe:00 12 /opt/a program\n\
        55d0c0a02000-55d0c0a10000 r-xp 00002000 fe:00 12 /opt/a program\n\
        55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0 [heap]\n\
        7f0000000000-7f0000001000 r--p 00000000 fe:00 13 /lib/libc.so.6\n\
        7f0000001000-7f0000009000 r-xp 00001000 fe:00 13 /lib/libc.so.6\n\
        7f0000009000-7f000000a000 rw-p 00000000 00:00 0\n";

    #[test]
    fn an_address_is_found_in_its_file_less_the_bias() {
        let modules = Modules::parse(MAPS, |_| true);
        let (path, offset) = modules.find(0x55d0_c0a0_2345).unwrap();
        assert_eq!((&*path, offset), (Path::new("/opt/a program"), 0x2345));
        let (path, offset) = modules.find(0x7f00_0000_1004).unwrap();
        assert_eq!((&*path, offset), (Path::new("/lib/libc.so.6"), 0x1004));
        for nowhere in [0, 0x55d0_c0a1_0000, 0x55d0_c100_0000, 0x7f00_0000_9000, usize::MAX] {
            assert_eq!(modules.find(nowhere), None);
        }
    }

    #[test]
    fn maps_out_of_order_tell_nothing_and_panic_nowhere() {
        let maps = "9000-a000 r--p 0 0:1 7 /a\n1000-2000 r-xp 1000 0:1 7 /a\n";
        assert_eq!(Modules::parse(maps, |_| true).find(0x1800), None);
    }

    #[test]
    fn a_program_that_cannot_be_moved_keeps_its_addresses() {
        let modules = Modules::parse(MAPS, |path| path.starts_with("/lib"));
        assert_eq!(modules.find(0x55d0_c0a0_2345).unwrap().1, 0x55d0_c0a0_2345);
        assert_eq!(modules.find(0x7f00_0000_1004).unwrap().1, 0x1004);
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let path = std::env::temp_dir().join(format!("annulus-modules-{}", std::process::id()));
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name ends with a zero, and the call only reads it.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let (sender, answer) = channel();
        let asked = path.clone();
        // It would wait for a writer, in the place of the one thread that watches.
        std::thread::spawn(move || sender.send(is_position_independent(&asked)));
        let answer = answer.recv_timeout(Duration::from_secs(10));
        fs::remove_file(&path).unwrap();
        assert_eq!(answer, Ok(true));
    }

    #[test]
    fn this_function_is_found_in_this_program() {
        let here = this_function_is_found_in_this_program as *const () as usize;
        let (path, offset) = Modules::of_this_process().find(here).unwrap();
        assert_eq!(*path, *std::env::current_exe().unwrap());
        assert!(offset < here, "test programs are position independent");
    }
}
