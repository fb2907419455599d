//! Files: what is written is read, at every position, on every shard, and nothing is left behind by
//! what is dropped.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use annulus::buf::{IoBuf, IoBufMut};
use annulus::fs::{File, OpenError, OpenOptions};
use annulus::time::{self, sleep, timeout};
use annulus::{Runtime, Shard};

use common::bytes::Keyed;
use common::each_driver;
use common::process::{
    Scratch, in_own_process, is_open, is_root, make_no_thread, open_descriptors,
};
use common::steps::{eventually, eventually_blocking, poll_once, race};

mod common;

each_driver! {
    async fn what_is_written_is_read() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        let options = OpenOptions::new().read(true).write(true).create_new(true);
        let file = options.open(&path).await.unwrap();
        // More than a page cache hands over at once, and no round number.
        let bytes = Keyed(1).bytes(0, 3 * 1024 * 1024 + 7);
        let (written, bytes) = file.write_all_at(bytes, 11).await.unwrap();
        assert_eq!(written, bytes.len());
        file.sync_data().await.unwrap();
        file.sync_all().await.unwrap();
        let (count, back) = file.read_exact_at(vec![0; written], 11).await.unwrap();
        assert_eq!(count, written);
        Keyed(1).check(0, &back);
        let metadata = file.metadata().await.unwrap();
        assert!(metadata.is_file() && !metadata.is_dir());
        assert_eq!(metadata.len(), 11 + written as u64);
        let age = SystemTime::now().duration_since(metadata.modified()).unwrap_or_default();
        assert!(age < Duration::from_secs(60), "{metadata:?}");
        file.set_len(5).await.unwrap();
        assert_eq!(file.metadata().await.unwrap().len(), 5);
        file.close().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), [0; 5]);
        assert_eq!(options.open(&path).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(File::create(&path).await.unwrap().metadata().await.unwrap().len(), 0);
    }

    async fn reads_end_where_the_file_does() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        fs::write(&path, b"hello").unwrap();
        let file = File::open(&path).await.unwrap();
        let (count, bytes) = file.read_at(Vec::with_capacity(64), 3).await.unwrap();
        assert_eq!((count, &*bytes), (2, &b"lo"[..]));
        // What a buffer held before does not count.
        let (count, bytes) = file.read_at(b"some text".to_vec(), 5).await.unwrap();
        assert_eq!((count, &*bytes), (0, &b""[..]));
        assert_eq!(file.read_at(vec![0; 8], 1 << 40).await.unwrap().0, 0);
        assert_eq!(file.read_at(Vec::new(), 0).await.unwrap().0, 0);
        assert_eq!(file.read_at(vec![7; 8].slice(3..3), 0).await.unwrap().0, 0);
        let (count, part) = file.read_at(vec![7; 8].slice(2..4), 1).await.unwrap();
        assert_eq!((count, part.into_inner()), (2, vec![7, 7, b'e', b'l', 7, 7, 7, 7]));
        let short = file.read_exact_at(Vec::with_capacity(6), 1).await.unwrap_err();
        assert_eq!((short.error.kind(), &*short.buffer), (ErrorKind::UnexpectedEof, &b"ello"[..]));
        for offset in [u64::MAX, u64::MAX - 1, 1 << 63] {
            let error = file.read_at(vec![0; 8], offset).await.unwrap_err();
            assert_eq!(error.error.raw_os_error(), Some(libc::EINVAL), "read at {offset}");
            assert_eq!(error.buffer.len(), 8);
            // Else the eight would pass for what was read before the error.
            let error = file.read_exact_at(vec![0; 8], offset).await.unwrap_err();
            assert_eq!(error.error.raw_os_error(), Some(libc::EINVAL), "read at {offset}");
            assert!(error.buffer.is_empty());
        }
    }

    // Its length does not fit an entry of the ring: taken for 0, the answer would be an end.
    async fn a_buffer_of_four_gib_brings_no_end() {
        let file = File::open("/proc/self/comm").await.unwrap();
        for length in [4 << 30, 2 << 30, (2 << 30) - 1] {
            let (count, buffer) = file.read_at(Huge::new(length), 0).await.unwrap();
            assert!(count > 0 && buffer.as_slice()[count - 1] == b'\n', "{length}: {count}");
        }
    }

    async fn writes_that_append_find_the_end() {
        let scratch = Scratch::new();
        let path = scratch.path("log");
        let log = OpenOptions::new().append(true).create(true).open(&path).await.unwrap();
        for line in ["one\n", "two\n", ""] {
            assert_eq!(log.write_all_at(line, 0).await.unwrap(), (line.len(), line));
        }
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        let error = log.read_at(vec![0; 8], 0).await.unwrap_err().error;
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "a read of what is to be written");
    }

    async fn refusals_name_the_path_and_keep_the_errno() {
        let scratch = Scratch::new();
        let missing = scratch.path("not \"here\"");
        let error = File::open(&missing).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = format!("cannot open {missing:?}: No such file or directory (os error 2)");
        assert_eq!(error.to_string(), text);
        let inside = error.get_ref().unwrap().downcast_ref::<OpenError>().unwrap();
        assert_eq!((inside.path(), inside.raw_os_error()), (&*missing, Some(libc::ENOENT)));
        let zero = Path::new("a\0b");
        assert_eq!(File::open(zero).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        for options in [
            OpenOptions::new(),
            OpenOptions::new().read(true).create(true),
            OpenOptions::new().append(true).truncate(true),
        ] {
            let error = options.open(&missing).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{options:?}");
        }
        assert!(!missing.exists());
        let folder = File::open(scratch.path("")).await.unwrap();
        let error = folder.read_at(vec![0; 8], 0).await.unwrap_err().error;
        assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
        let error = File::create(scratch.path("")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
        let locked = scratch.path("locked");
        fs::write(&locked, b"").unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
        match File::open(&locked).await {
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
            Ok(_) => assert!(is_root(), "a file that nobody may read was opened"),
        }
    }

    // io_uring with a thread of its own in the kernel keeps what the process once could
    // (CVE-2024-22017). A ring that the program itself submits to does not.
    fn a_process_that_gave_up_its_rights_opens_nothing_by_them(driver: Driver) {
        if !is_root() {
            let test = "a_process_that_gave_up_its_rights_opens_nothing_by_them";
            return common::leave_out(test, "rights can only be given up by root");
        }
        in_own_process("a_process_that_gave_up_its_rights_opens_nothing_by_them", driver, || {
            let scratch = Scratch::new();
            let secret = scratch.path("secret");
            fs::write(&secret, b"of root").unwrap();
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
            let runtime = common::runtime(driver);
            runtime.block_on(async {
                // The ring and the threads of the pool are there before the rights go.
                File::open(&secret).await.unwrap().close().await.unwrap();
                act_as(NOBODY);
                let error = File::open(&secret).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            });
            act_as(0);
        });
    }

    async fn a_file_of_proc_is_read_piece_by_piece() {
        let file = File::open("/proc/self/maps").await.unwrap();
        let mut text = Vec::new();
        loop {
            // The kernel gives whole lines, and so fewer bytes than fit.
            let (count, piece) = file.read_at(vec![0; 1000], text.len() as u64).await.unwrap();
            text.extend_from_slice(&piece);
            if count == 0 {
                break;
            }
        }
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with('\n') && text.contains("[stack]"), "{text}");
    }

    // A thread that waits for the other end could not be stopped.
    async fn a_fifo_holds_nobody_up() {
        let scratch = Scratch::new();
        let path = scratch.path("fifo");
        make_fifo(&path);
        // The second time all of the path is in the kernel's cache.
        for _ in 0..2 {
            let reader = File::open(&path).await.unwrap();
            let error = reader.read_at(vec![0; 8], 0).await.unwrap_err().error;
            assert_eq!(error.kind(), ErrorKind::NotSeekable);
            let writer = OpenOptions::new().write(true).open(&path).await.unwrap();
            let error = writer.write_at("text", 0).await.unwrap_err().error;
            assert_eq!(error.kind(), ErrorKind::NotSeekable);
            drop(reader);
            drop(writer);
            let error = OpenOptions::new().write(true).open(&path).await.unwrap_err();
            let inside = error.get_ref().unwrap().downcast_ref::<OpenError>().unwrap();
            assert_eq!(inside.raw_os_error(), Some(libc::ENXIO));
        }
    }

    #[alone]
    async fn opens_that_are_dropped_leave_no_descriptor() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        fs::write(&path, b"hello").unwrap();
        // What makes threads and descriptors has done so.
        File::open(&path).await.unwrap().close().await.unwrap();
        let before = open_descriptors();
        for round in 0..300 {
            let options = OpenOptions::new().read(true).write(true).create(round % 2 == 0);
            let opening = pin!(options.open(&path));
            cut(opening, Duration::from_micros(round % 50)).await;
        }
        eventually("the files are closed", || open_descriptors() == before).await;
        for round in 0..300 {
            let file = File::open(&path).await.unwrap();
            let mut closing = pin!(file.close());
            let closed = round % 3 > 0 && poll_once(closing.as_mut()).await.is_ready();
            // A number that is closed twice would be another's: this one's.
            let other = fs::File::open(&path).unwrap();
            if round % 3 > 1 && !closed {
                let _dropped = timeout(Duration::from_micros(round % 50), closing).await;
            }
            assert_eq!(other.metadata().unwrap().len(), 5);
        }
        eventually("the files are closed", || open_descriptors() == before).await;
    }

    // What an exact read into a slice has read so far is not all that there is room for.
    async fn a_slice_is_filled_by_as_many_reads_as_it_takes() {
        let file = File::open("/proc/kallsyms").await.unwrap();
        let (short, _) = file.read_at(vec![0; 1 << 16], 0).await.unwrap();
        assert!(short < 1 << 15, "the kernel hands out so much at once: {short}");
        let wanted = (1 << 15) + 7;
        let slice = vec![0; 1 << 16].slice(9..9 + wanted);
        let (count, slice) = file.read_exact_at(slice, 3).await.unwrap();
        assert_eq!((count, slice.len()), (wanted, wanted));
        let same = fs::read("/proc/kallsyms").unwrap();
        assert_eq!(&slice[..], &same[3..3 + wanted]);

        let scratch = Scratch::new();
        let path = scratch.path("file");
        fs::write(&path, b"hello").unwrap();
        let file = File::open(&path).await.unwrap();
        let failed = file.read_exact_at(vec![0; 100].slice(10..20), 1).await.unwrap_err();
        assert_eq!(failed.error.kind(), ErrorKind::UnexpectedEof);
        assert_eq!(&failed.buffer[..], b"ello");
        let (count, slice) = file.read_at(vec![0; 100].slice(10..20), 2).await.unwrap();
        assert_eq!((count, &slice[..]), (3, &b"llo"[..]));
    }

    // Where the file system is asked at the close, a ring needs a thread for it.
    fn a_close_for_which_there_is_no_thread_closes(driver: Driver) {
        in_own_process("a_close_for_which_there_is_no_thread_closes", driver, || {
            let scratch = Scratch::new();
            let runtime = common::runtime(driver);
            let file = fs::File::create(asked_at_the_close(&scratch).join("file")).unwrap();
            let number = file.as_raw_fd();
            runtime.block_on(async {
                let file = File::from_std(file).unwrap();
                make_no_thread();
                thread::Builder::new().spawn(|| ()).unwrap_err();
                file.close().await.unwrap();
            });
            assert!(!is_open(number));
        });
    }

    // Its number is another's by then.
    #[alone]
    fn a_close_that_outlives_its_runtime_closes_once(driver: Driver) {
        let runtime = common::runtime(driver);
        let file = fs::File::open("/proc/self/stat").unwrap();
        let number = file.as_raw_fd();
        let mut closing = Box::pin(File::from_std(file).unwrap().close());
        runtime.block_on(async {
            let _ = poll_once(closing.as_mut()).await;
            eventually("the file is closed", || !is_open(number)).await;
        });
        drop(runtime);
        let other = fs::File::open("/proc/self/stat").unwrap();
        // SAFETY: the number is nobody's, and becomes this file's.
        let other = match unsafe { libc::fcntl(other.as_raw_fd(), libc::F_DUPFD, number) } {
            same if same == number => same,
            failed => panic!("{failed} for {number}"),
        };
        drop(closing);
        assert!(is_open(other));
        // SAFETY: it was made above, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(other) });
    }

    #[alone]
    fn an_open_that_outlives_its_runtime_leaves_no_descriptor(driver: Driver) {
        drop(common::runtime(driver));
        let before = open_descriptors();
        for answered in [true, false, true] {
            let runtime = common::runtime(driver);
            let mut opening = Box::pin(File::open("/proc/self/stat"));
            runtime.block_on(async {
                let idle = open_descriptors();
                // A thread of the pool may be faster than the poll.
                let opened = poll_once(opening.as_mut()).await;
                if answered && opened.is_pending() {
                    eventually("the file is open", || open_descriptors() > idle).await;
                }
            });
            drop(runtime);
            drop(opening);
            eventually_blocking("the file is closed", || open_descriptors() <= before);
        }
    }

    #[alone]
    async fn reads_and_writes_that_are_dropped_keep_their_buffers_until_they_have_ended() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let before = open_descriptors();
        let live = Arc::new(AtomicUsize::new(0));
        for round in 0..300 {
            let options = OpenOptions::new().read(true).write(true);
            let file = options.open(&path).await.unwrap();
            if round % 2 == 0 {
                let reading = pin!(file.read_at(Watched::new(&live), round));
                cut(reading, Duration::from_micros(round % 100)).await;
            } else {
                let writing = pin!(file.write_all_at(Watched::new(&live), round));
                cut(writing, Duration::from_micros(round % 100)).await;
            }
            drop(file);
        }
        eventually("the buffers are freed", || live.load(Ordering::Relaxed) == 0).await;
        eventually("the files are closed", || open_descriptors() == before).await;
        assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 7));
    }

    #[alone]
    fn the_end_of_a_runtime_leaves_nothing_behind(driver: Driver) {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let before = open_descriptors();
        let live = Arc::new(AtomicUsize::new(0));
        for _ in 0..20 {
            let runtime = common::runtime(driver);
            runtime.block_on(async {
                let file = Arc::new(File::open(&path).await.unwrap());
                for _ in 0..20 {
                    let (file, path) = (Arc::clone(&file), path.clone());
                    let buffer = Watched::new(&live);
                    drop(annulus::spawn(async move {
                        let _opened = File::open(path).await;
                        let _read = file.read_at(buffer, 0).await;
                        file.sync_all().await
                    }));
                }
                annulus::task::yield_now().await;
            });
        }
        let over = || live.load(Ordering::Relaxed) == 0 && open_descriptors() == before;
        eventually_blocking("buffers and descriptors are free", over);
    }

    async fn many_at_once_do_not_disturb_each_other() {
        const PIECE: usize = 10_000;
        const COUNT: u64 = 200;
        let scratch = Scratch::new();
        let options = OpenOptions::new().read(true).write(true).create(true);
        let file = Arc::new(options.open(scratch.path("file")).await.unwrap());
        let mut pieces = Vec::new();
        for piece in 0..COUNT {
            let file = Arc::clone(&file);
            pieces.push(annulus::spawn(async move {
                let offset = piece * PIECE as u64;
                let bytes = Keyed(9).bytes(offset, PIECE);
                file.write_all_at(bytes, offset).await.unwrap();
                let (_, bytes) = file.read_exact_at(vec![0; PIECE], offset).await.unwrap();
                Keyed(9).check(offset, &bytes);
            }));
        }
        for piece in pieces {
            piece.await.unwrap();
        }
        let whole = vec![0; PIECE * COUNT as usize];
        Keyed(9).check(0, &file.read_exact_at(whole, 0).await.unwrap().1);
    }

    fn a_file_is_used_on_every_shard(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).shards(3).build().unwrap();
        let scratch = Scratch::new();
        let path = scratch.path("file");
        runtime.block_on(async {
            let options = OpenOptions::new().read(true).write(true).create(true);
            let file = Arc::new(options.open(&path).await.unwrap());
            for (number, shard) in (0..).zip(Shard::all()) {
                let file = Arc::clone(&file);
                let written = shard.spawn_with(move || async move {
                    file.write_all_at(vec![number; 1000], u64::from(number) * 1000).await
                });
                written.await.unwrap().unwrap();
            }
            // Made here, closed there.
            let file = Arc::into_inner(file).unwrap();
            let all = Shard::all()[1].spawn_with(move || async move {
                let (_, bytes) = file.read_exact_at(vec![0; 3000], 0).await?;
                file.close().await.map(|()| bytes)
            });
            let bytes = all.await.unwrap().unwrap();
            assert!((0..3000).all(|at| bytes[at] == (at / 1000) as u8));
        });
    }

    async fn what_is_not_in_the_page_cache_is_waited_for() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        fs::write(&path, Keyed(5).bytes(0, 1 << 20)).unwrap();
        let opened = File::open(&path).await.unwrap();
        let given = fs::File::open(&path).unwrap();
        annulus::runtime::set_nonblocking(given.as_fd(), true).unwrap();
        for file in [opened, File::from_std(given).unwrap()] {
            file.sync_all().await.unwrap();
            // SAFETY: the call takes integers and touches no memory.
            let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
            assert_eq!(flags & libc::O_NONBLOCK, 0, "whoever gets the file may not expect that");
            // SAFETY: as above.
            let advised =
                unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            assert_eq!(advised, 0);
            Keyed(5).check(0, &file.read_exact_at(vec![0; 1 << 20], 0).await.unwrap().1);
        }
    }

    async fn files_of_the_standard_library_come_and_go() {
        let scratch = Scratch::new();
        let path = scratch.path("file");
        let mut std_file =
            fs::OpenOptions::new().read(true).append(true).create(true).open(&path).unwrap();
        std_file.write_all(b"hello").unwrap();
        let file = File::from_std(std_file).unwrap();
        assert_eq!(file.read_at(vec![0; 8], 1).await.unwrap().1, b"ello");
        let mut std_file = file.into_std().unwrap();
        std_file.write_all(b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello!");
        // The kernel may still hold the descriptor of what was dropped.
        let file = File::from_std(std_file).unwrap();
        let _dropped = poll_once(pin!(file.sync_all())).await;
        file.into_std().unwrap().write_all(b"!").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello!!");
    }

    async fn nothing_leads_out_of_a_directory() {
        let scratch = Scratch::new();
        let root = scratch.path("root");
        fs::create_dir_all(root.join("inner")).unwrap();
        fs::write(root.join("inner/file"), b"within").unwrap();
        fs::write(scratch.path("secret"), b"secret").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink(scratch.path("secret"), root.join("far")).unwrap();
        symlink("inner/file", root.join("link")).unwrap();
        symlink("..", root.join("inner/up")).unwrap();
        let folder = File::open(&root).await.unwrap();
        let reading = OpenOptions::new().read(true);
        for path in ["inner/file", "inner/../link", "inner/up/inner/file", "./link"] {
            let file = reading.open_beneath(&folder, path).await.unwrap();
            assert_eq!(file.read_at(vec![0; 16], 0).await.unwrap().1, b"within");
        }
        let absolute = root.join("inner/file");
        for path in ["../secret", "inner/../../secret", "out", "far", "/etc/passwd", "..",
            "inner/up/../secret", absolute.to_str().unwrap()]
        {
            let error = reading.open_beneath(&folder, path).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CrossesDevices, "{path}: {error}");
        }
        let inner = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY);
        let inner = inner.open_beneath(&folder, "inner").await.unwrap();
        assert!(inner.metadata().await.unwrap().is_dir());
        let making = OpenOptions::new().write(true).create(true).mode(0o600);
        making.open_beneath(&folder, "new").await.unwrap();
        let mode = fs::metadata(root.join("new")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    // Work on files takes real time: a paused clock waits for it.
    fn a_paused_clock_does_not_run_away_from_a_file(driver: Driver) {
        let runtime = Runtime::builder().driver(driver).start_paused(true).build().unwrap();
        let scratch = Scratch::new();
        let path = scratch.path("file");
        runtime.block_on(async {
            let begun = time::Instant::now();
            let hour = Duration::from_secs(3600);
            for _ in 0..50 {
                let work = async {
                    let file = File::create(&path).await?;
                    file.write_all_at(vec![1; 100_000], 0).await?;
                    file.sync_all().await
                };
                timeout(hour, work).await.expect("the clock ran away").unwrap();
            }
            assert_eq!(begun.elapsed(), Duration::ZERO);
        });
    }

    // While files are busy the shard is not.
    async fn timers_fire_while_files_are_synced() {
        let scratch = Scratch::new();
        let file = File::create(scratch.path("file")).await.unwrap();
        let writing = async {
            for round in 0..20 {
                file.write_all_at(vec![1; 1 << 20], round << 20).await.unwrap();
                file.sync_all().await.unwrap();
            }
        };
        let latest = async {
            let mut latest = Duration::ZERO;
            loop {
                let before = Instant::now();
                sleep(Duration::from_millis(1)).await;
                latest = latest.max(before.elapsed());
                assert!(latest < Duration::from_secs(2), "a timer was {latest:?} late");
            }
        };
        race(writing, latest).await;
    }
}

/// Polls a future, and drops it after this time if it is not over by then.
async fn cut(mut future: Pin<&mut impl Future>, after: Duration) {
    // On epoll the first poll may find a thread of the pool done already.
    if poll_once(future.as_mut()).await.is_pending() {
        let _dropped = timeout(after, future).await;
    }
}

fn make_fifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path ends with a zero and lives for the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}

/// A buffer that counts itself while it is there, and spoils its memory when it goes.
struct Watched {
    bytes: Vec<u8>,
    live: Arc<AtomicUsize>,
}

impl Watched {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::Relaxed);
        Self { bytes: vec![7; 100_000], live: Arc::clone(live) }
    }
}

// SAFETY: the bytes are on the heap.
unsafe impl IoBuf for Watched {
    fn as_slice(&self) -> &[u8] {
        &self.bytes
    }
}

// SAFETY: as above; all of them are written.
unsafe impl IoBufMut for Watched {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: as the caller says.
        unsafe { self.bytes.as_uninit() }
    }

    unsafe fn set_init(&mut self, _count: usize) {}
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A write that is still under way would write this.
        self.bytes.fill(0);
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory that is there when it is touched.
struct Huge {
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping is nobody else's, and no thread's.
unsafe impl Send for Huge {}

impl Huge {
    fn new(length: usize) -> Self {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { start: start.cast(), length }
    }
}

// SAFETY: the mapping stays where it is.
unsafe impl IoBuf for Huge {
    fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping has this length, and holds zeros where nothing was written.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

// SAFETY: as above.
unsafe impl IoBufMut for Huge {
    unsafe fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: as above; bytes only are written.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.length) }
    }

    unsafe fn set_init(&mut self, _count: usize) {}
}

impl Drop for Huge {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length and this value is its only owner.
        unsafe { libc::munmap(self.start.cast(), self.length) };
    }
}

const NOBODY: libc::uid_t = 65_534;

/// Gives all threads of the process the rights of this user, with a way back for root.
fn act_as(user: libc::uid_t) {
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::setresuid(user, user, 0) };
    assert_eq!(result, 0, "act as user {user}");
}

/// A folder whose file system has something to do when a file is closed, where one can be had: an
/// overlay, seen by this thread only.
fn asked_at_the_close(scratch: &Scratch) -> PathBuf {
    let place = scratch.path("place");
    fs::create_dir(&place).unwrap();
    // SAFETY: the call takes no pointer.
    if !is_root() || unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return place;
    }
    let is_mounted = |kind: &CStr, at: &Path, flags: libc::c_ulong, options: &str| {
        let at = CString::new(at.as_os_str().as_bytes()).unwrap();
        let options = CString::new(options).unwrap();
        // SAFETY: all texts end with a zero and live for the call.
        let answer = unsafe {
            let (kind, options) = (kind.as_ptr(), options.as_ptr());
            libc::mount(kind, at.as_ptr(), kind, flags, options.cast())
        };
        answer == 0
    };
    // Nothing of this is seen outside.
    let apart = is_mounted(c"none", Path::new("/"), libc::MS_REC | libc::MS_PRIVATE, "");
    if !apart || !is_mounted(c"tmpfs", &place, 0, "mode=0777") {
        return place;
    }
    for part in ["lower", "upper", "work", "both"] {
        fs::create_dir(place.join(part)).unwrap();
        fs::set_permissions(place.join(part), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let of = |part: &str| place.join(part).display().to_string();
    let (both, options) = (place.join("both"), (of("lower"), of("upper"), of("work")));
    let options = format!("lowerdir={},upperdir={},workdir={}", options.0, options.1, options.2);
    // A kernel without overlays (a module) closes at once.
    if is_mounted(c"overlay", &both, 0, &options) { both } else { place }
}
