//! What a file system knows of a file.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the file system knew of a file when it was asked: see
/// [`File::metadata`](super::File::metadata).
#[derive(Clone)]
pub struct Metadata(Box<libc::statx>);

impl Metadata {
    pub(super) fn new(answer: Box<libc::statx>) -> Metadata {
        Metadata(answer)
    }

    /// The length in bytes. Files of `/proc` have 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "as in the standard library")]
    pub fn len(&self) -> u64 {
        self.0.stx_size
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.is_a(libc::S_IFREG)
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.is_a(libc::S_IFDIR)
    }

    fn is_a(&self, kind: libc::mode_t) -> bool {
        self.mode() & libc::S_IFMT == kind
    }

    /// Kind and permissions, as `st_mode` in `inode(7)`.
    #[must_use]
    pub fn mode(&self) -> u32 {
        u32::from(self.0.stx_mode)
    }

    /// When the contents were last changed.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        time(&self.0.stx_mtime)
    }

    /// When the file was last read, as far as the file system keeps that.
    #[must_use]
    pub fn accessed(&self) -> SystemTime {
        time(&self.0.stx_atime)
    }

    /// When the file was made, where the file system keeps that.
    #[must_use]
    pub fn created(&self) -> Option<SystemTime> {
        (self.0.stx_mask & libc::STATX_BTIME != 0).then(|| time(&self.0.stx_btime))
    }

    /// The number of the file, unique in its file system while the file is there.
    #[must_use]
    pub fn ino(&self) -> u64 {
        self.0.stx_ino
    }

    /// The owner and the group.
    #[must_use]
    pub fn owner(&self) -> (u32, u32) {
        (self.0.stx_uid, self.0.stx_gid)
    }
}

fn time(stamp: &libc::statx_timestamp) -> SystemTime {
    let seconds = Duration::from_secs(stamp.tv_sec.unsigned_abs());
    let begun = if stamp.tv_sec < 0 { UNIX_EPOCH - seconds } else { UNIX_EPOCH + seconds };
    begun + Duration::from_nanos(stamp.tv_nsec.into())
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("mode", &format_args!("{:o}", self.mode()))
            .field("len", &self.len())
            .field("modified", &self.modified())
            .finish_non_exhaustive()
    }
}
