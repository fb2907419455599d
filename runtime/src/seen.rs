//! An entry as the kernel sees it, and memory of which an entry could name too much. Only in builds
//! for tests.

use std::sync::OnceLock;

use io_uring::squeue::Entry;

/// `struct io_uring_sqe`, as Linux has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Fields {
    pub(crate) opcode: u8,
    pub(crate) flags: u8,
    pub(crate) ioprio: u16,
    pub(crate) fd: i32,
    pub(crate) off: u64,
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) op_flags: u32,
    pub(crate) user_data: u64,
    pub(crate) buf_index: u16,
    pub(crate) personality: u16,
    pub(crate) file_index: i32,
    pub(crate) addr3: u64,
    pub(crate) reserved: u64,
}

const _: () = assert!(size_of::<Fields>() == 64 && size_of::<Entry>() == 64);

impl Fields {
    pub(crate) fn of(entry: &Entry) -> Fields {
        // SAFETY: both have 64 bytes, and these are integers. An entry is the kernel's struct.
        unsafe { std::ptr::from_ref(entry).cast::<Fields>().read_unaligned() }
    }
}

/// The beginning of an address range of [`HUGE_BYTES`] zeros, which stays for ever. Nobody touches
/// it, so that it costs no memory.
pub(crate) fn huge() -> *mut u8 {
    static START: OnceLock<usize> = OnceLock::new();
    let start = *START.get_or_init(|| {
        let (any, prot) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { libc::mmap(any, HUGE_BYTES, prot, flags, -1, 0) };
        assert!(start != libc::MAP_FAILED, "room for an address range");
        start as usize
    });
    start as *mut u8
}

/// More than one request can carry, and than a signed length of 32 bits can say.
pub(crate) const HUGE_BYTES: usize = 3 << 30;
