//! How a file is opened.

use std::error::Error;
use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::file::File;
use super::operations::Open;
use crate::io::carry;

/// How a file is opened: as `std::fs::OpenOptions`.
///
/// # Examples
///
/// ```
/// use annulus_runtime::fs::OpenOptions;
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("annulus-log-{}", std::process::id()));
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let log = OpenOptions::new().append(true).create(true).open(&path).await?;
/// log.write_all_at("a line\n", 0).await?;
/// log.write_all_at("another\n", 0).await?;
/// assert_eq!(std::fs::read(&path)?, b"a line\nanother\n");
/// # std::fs::remove_file(&path)
/// # })
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until `open` is called"]
pub struct OpenOptions {
    read: bool,
    write: bool,
    append: bool,
    truncate: bool,
    create: bool,
    create_new: bool,
    mode: u32,
    custom_flags: i32,
}

impl OpenOptions {
    /// Nothing is allowed yet: say at least one of `read`, `write` and `append`.
    #[expect(clippy::new_without_default, reason = "as in the standard library")]
    pub fn new() -> OpenOptions {
        OpenOptions {
            read: false,
            write: false,
            append: false,
            truncate: false,
            create: false,
            create_new: false,
            mode: 0o666,
            custom_flags: 0,
        }
    }

    /// To be read.
    pub fn read(mut self, read: bool) -> OpenOptions {
        self.read = read;
        self
    }

    /// To be written.
    pub fn write(mut self, write: bool) -> OpenOptions {
        self.write = write;
        self
    }

    /// To be written at its end only, wherever that is by then.
    pub fn append(mut self, append: bool) -> OpenOptions {
        self.append = append;
        self
    }

    /// Emptied.
    pub fn truncate(mut self, truncate: bool) -> OpenOptions {
        self.truncate = truncate;
        self
    }

    /// Made if it is not there.
    pub fn create(mut self, create: bool) -> OpenOptions {
        self.create = create;
        self
    }

    /// Made; an error if it is there already.
    pub fn create_new(mut self, create_new: bool) -> OpenOptions {
        self.create_new = create_new;
        self
    }

    /// The permissions of a file that is made, less those that the process's umask takes away.
    /// Default: `0o666`.
    pub fn mode(mut self, mode: u32) -> OpenOptions {
        self.mode = mode;
        self
    }

    /// More flags of `open(2)`, such as `O_DIRECT`, `O_DIRECTORY`, `O_NOFOLLOW`. Those that the
    /// other options stand for are not taken from here.
    pub fn custom_flags(mut self, flags: i32) -> OpenOptions {
        self.custom_flags = flags;
        self
    }

    /// Opens the file. It is closed on exec.
    ///
    /// An open never waits for another end: a FIFO is open at once to be read, and an error
    /// (`ENXIO`) to be written while nobody reads. A file on which another process has a lease
    /// (`F_SETLEASE`) is `WouldBlock` until that has given way.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`, with the path in their text. They have the [`kind`](io::Error::kind) of
    /// what the system answered; [`OpenError`] has its errno. `InvalidInput` for options that
    /// contradict each other, and for a path with a zero byte.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// A file whose open was dropped is closed again; it may have been made or emptied. On epoll
    /// an open that has begun holds its thread until the file system answers.
    pub async fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        self.request(path.as_ref(), None).await
    }

    /// Opens a file by a path that must not lead out of a directory: not by `..`, not by a
    /// beginning `/`, and not by a symbolic link, wherever in the path it stands; links that stay
    /// within are followed. Since Linux 5.6 the kernel sees to that itself, while it walks
    /// (`openat2(2)`, `RESOLVE_BENEATH`), so that nobody can exchange a part in between.
    ///
    /// ```
    /// use annulus_runtime::fs::{File, OpenOptions};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # annulus_runtime::Runtime::new()?.block_on(async {
    /// let root = File::open("/proc/self").await?;
    /// let reading = OpenOptions::new().read(true);
    /// reading.open_beneath(&root, "task/../comm").await?;
    /// let error = reading.open_beneath(&root, "../version").await.unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::CrossesDevices);
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `CrossesDevices` (`EXDEV`) for a path that leads out; `FilesystemLoop` (`ELOOP`) for a link
    /// of `/proc` that stands for a file itself; `Unsupported` (`ENOSYS`) before Linux 5.6, and
    /// where a seccomp filter does not know the call; `WouldBlock` if directories are moved
    /// meanwhile, which may be tried again. Otherwise as [`open`](OpenOptions::open).
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    ///
    /// # Cancel safety
    ///
    /// As [`open`](OpenOptions::open).
    pub async fn open_beneath(&self, directory: &File, path: impl AsRef<Path>) -> io::Result<File> {
        self.request(path.as_ref(), Some(directory)).await
    }

    async fn request(&self, path: &Path, directory: Option<&File>) -> io::Result<File> {
        let opened = match self.operation(path, directory) {
            Ok(open) => carry(open).await,
            Err(error) => Err(error),
        };
        opened.map_err(|error| {
            io::Error::new(error.kind(), OpenError { path: path.to_owned(), error })
        })
    }

    fn operation(&self, path: &Path, directory: Option<&File>) -> io::Result<Open> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let flags = self.flags()?;
        // The second of these has O_DIRECTORY in it, which alone makes nothing.
        let has = |bits: libc::c_int| flags & bits == bits;
        let makes = has(libc::O_CREAT) || has(libc::O_TMPFILE);
        let beneath = directory.map(|directory| {
            // SAFETY: the struct holds integers only, for which all zeros is a value.
            let mut how: Box<libc::open_how> = Box::new(unsafe { std::mem::zeroed() });
            how.flags = flags as u64;
            // This call refuses a mode that has no meaning.
            how.mode = if makes { u64::from(self.mode) } else { 0 };
            how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
            (directory.shared(), how)
        });
        Ok(Open { path, flags, mode: self.mode, beneath })
    }

    fn flags(&self) -> io::Result<libc::c_int> {
        let access = match (self.read, self.write || self.append) {
            (true, false) => libc::O_RDONLY,
            (false, true) => libc::O_WRONLY,
            (true, true) => libc::O_RDWR,
            (false, false) => return Err(contradiction("neither to be read nor to be written")),
        };
        let makes = self.create || self.create_new;
        if (self.truncate || makes) && !(self.write || self.append) {
            return Err(contradiction("to be made or emptied, and not to be written"));
        }
        if self.truncate && self.append && !self.create_new {
            return Err(contradiction("to be emptied, and to be appended to"));
        }
        let flag = |wanted: bool, flag: libc::c_int| if wanted { flag } else { 0 };
        Ok(access
            | flag(self.append, libc::O_APPEND)
            | flag(makes, libc::O_CREAT)
            | flag(self.create_new, libc::O_EXCL)
            | flag(self.truncate && !self.create_new, libc::O_TRUNC)
            | (self.custom_flags & !libc::O_ACCMODE)
            // Nobody's thread waits in an open for a FIFO's other end, without a way to stop it.
            | libc::O_NONBLOCK
            | libc::O_CLOEXEC)
    }
}

fn contradiction(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Why a file could not be opened: which one, and what the system answered. It is within the
/// [`io::Error`] that an open gives.
///
/// ```
/// use annulus_runtime::fs::{File, OpenError};
///
/// # fn main() -> std::io::Result<()> {
/// # annulus_runtime::Runtime::new()?.block_on(async {
/// let error = File::open("/no/such/file").await.unwrap_err();
/// let inside = error.get_ref().and_then(|error| error.downcast_ref::<OpenError>());
/// assert_eq!(inside.and_then(|error| error.raw_os_error()), Some(2)); // ENOENT
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Debug)]
pub struct OpenError {
    path: PathBuf,
    error: io::Error,
}

impl OpenError {
    /// The path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The errno, if the system gave one.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot open {:?}: {}", self.path, self.error)
    }
}

impl Error for OpenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}
