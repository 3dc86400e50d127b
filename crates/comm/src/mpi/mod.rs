//! MPI as a link. **Fail-stop**: once a rank has died, MPI itself may hang or end the job, so a failed world ends its
//! process; the launcher starts the job anew.
//!
//! Only point-to-point messages are used, never blocking ones: a rank polls, and so can be woken by the watch like with
//! any other engine. A call that does not come back (a peer stopped in the middle of a shared-memory copy) is seen by
//! the watchdog, which lives outside of MPI. Bytes travel in buffers of the link's own, because MPI cannot be told to
//! let go of memory: after a failure they are leaked, and what the caller lent is free. Every return code is checked.

use crate::wire::Watch;
use crate::wire::link::{Link, LinkError};
use crate::{JoinError, OnStuck};
use mpi::ffi;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A poll first only looks, so often, then sleeps between looks.
const EAGER: u32 = 2000;
const PAUSE: Duration = Duration::from_micros(50);
/// How long one wait lasts before its caller looks whether the world has failed.
const PATIENCE: Duration = Duration::from_millis(10);
/// A call that is away for longer, in a world that has failed, will not come back.
const STUCK: Duration = Duration::from_secs(3);
/// Tags wrap around here, within what every MPI allows; the messages of one tag arrive in order, and so many are never
/// under way.
const TAGS: u64 = 1 << 14;

/// All calls into MPI, one at a time: it was asked for `MPI_THREAD_SERIALIZED`.
static CALLS: Mutex<()> = Mutex::new(());

fn calls() -> MutexGuard<'static, ()> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process among those that MPI started.
#[derive(Clone, Copy, Debug)]
pub struct MpiPlace {
    /// Its number.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
    /// Whether all of them share memory.
    pub is_one_host: bool,
}

fn failed(action: &'static str, code: c_int) -> LinkError {
    let mut text = [0u8; 1024];
    let mut len: c_int = 0;
    // SAFETY: the buffer is larger than MPI_MAX_ERROR_STRING of OpenMPI (256) and MPICH (512 or 1024).
    let explained = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut len) };
    let words = String::from_utf8_lossy(&text[..(len.max(0) as usize).min(text.len())]).into_owned();
    match explained == ffi::MPI_SUCCESS as c_int {
        true => LinkError(format!("{action}: {words}")),
        false => LinkError(format!("{action}: error {code}")),
    }
}

fn check(action: &'static str, code: c_int) -> Result<(), LinkError> {
    if code == ffi::MPI_SUCCESS as c_int { Ok(()) } else { Err(failed(action, code)) }
}

fn refused(error: LinkError) -> JoinError {
    JoinError::Failed { rank: 0, reason: format!("MPI: {}", error.0) }
}

/// Starts MPI in this process, once.
///
/// # Errors
/// If MPI does not start, or cannot be used from several threads.
pub fn start() -> Result<MpiPlace, JoinError> {
    let _calls = calls();
    let mut provided: c_int = 0;
    let mut started: c_int = 0;
    // SAFETY: MPI_Initialized may be called at any time; the others follow the order that MPI demands, under the
    // lock, with pointers to locals.
    unsafe {
        check("MPI_Initialized", ffi::MPI_Initialized(&mut started)).map_err(refused)?;
        if started == 0 {
            let (argc, argv) = (std::ptr::null_mut(), std::ptr::null_mut());
            let wanted = ffi::RSMPI_THREAD_SERIALIZED;
            check("MPI_Init_thread", ffi::MPI_Init_thread(argc, argv, wanted, &mut provided))
                .map_err(refused)?;
            if provided < wanted {
                return Err(refused(LinkError("this MPI cannot be called from several threads".to_owned())));
            }
        }
        let world = ffi::RSMPI_COMM_WORLD;
        // Errors are to come back as codes.
        check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(world, ffi::RSMPI_ERRORS_RETURN))
            .map_err(refused)?;
        let (mut rank, mut size, mut near): (c_int, c_int, c_int) = (0, 0, 0);
        check("MPI_Comm_rank", ffi::MPI_Comm_rank(world, &mut rank)).map_err(refused)?;
        check("MPI_Comm_size", ffi::MPI_Comm_size(world, &mut size)).map_err(refused)?;
        let mut host = ffi::RSMPI_COMM_NULL;
        let (shared, info) = (ffi::RSMPI_COMM_TYPE_SHARED, ffi::RSMPI_INFO_NULL);
        check("MPI_Comm_split_type", ffi::MPI_Comm_split_type(world, shared, 0, info, &mut host))
            .map_err(refused)?;
        check("MPI_Comm_size", ffi::MPI_Comm_size(host, &mut near)).map_err(refused)?;
        check("MPI_Comm_free", ffi::MPI_Comm_free(&mut host)).map_err(refused)?;
        Ok(MpiPlace { rank: rank as usize, world_size: size as usize, is_one_host: near == size })
    }
}

/// Whether MPI has been started in this process.
pub fn is_started() -> bool {
    let _calls = calls();
    let mut started: c_int = 0;
    // SAFETY: may be asked at any time.
    unsafe { ffi::MPI_Initialized(&mut started) == ffi::MPI_SUCCESS as c_int && started != 0 }
}

/// Ends MPI in this process, if all went well: an MPI that was not ended takes the job down.
pub fn finish() {
    let _calls = calls();
    let (mut started, mut finished): (c_int, c_int) = (0, 0);
    // SAFETY: the two questions may be asked at any time; MPI is ended at most once, under the lock.
    unsafe {
        let asked = ffi::MPI_Initialized(&mut started) | ffi::MPI_Finalized(&mut finished);
        if asked == ffi::MPI_SUCCESS as c_int && started != 0 && finished == 0 {
            ffi::MPI_Finalize();
        }
    }
}

/// Rank 0's text, on every rank: the one thing that is said before there is a store.
///
/// # Errors
/// MPI's own.
pub fn tell(text: String) -> Result<String, JoinError> {
    const CAPACITY: usize = 256;
    let mut bytes = [0u8; CAPACITY];
    let len = text.len().min(CAPACITY);
    bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
    let _calls = calls();
    // SAFETY: the buffer has the size that is said; MPI has been started.
    let code = unsafe {
        let data = bytes.as_mut_ptr().cast();
        ffi::MPI_Bcast(data, CAPACITY as c_int, ffi::RSMPI_UINT8_T, 0, ffi::RSMPI_COMM_WORLD)
    };
    check("MPI_Bcast", code).map_err(refused)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(CAPACITY);
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// One rank's lines over MPI.
pub(crate) struct MpiLink {
    communicator: ffi::MPI_Comm,
    watch: Arc<Watch>,
}

// SAFETY: an MPI communicator is a handle; every use of it takes the lock.
unsafe impl Send for MpiLink {}
// SAFETY: as above.
unsafe impl Sync for MpiLink {}

/// A message under way, with the memory that MPI uses for it.
pub(crate) struct MpiTransfer {
    request: ffi::MPI_Request,
    /// Leaked if MPI may still use it.
    buffer: Option<Box<[u8]>>,
    /// Where a received message goes, and how long it may be.
    target: Option<(*mut u8, usize)>,
}

// SAFETY: the request is a handle that is used under the lock; the target is the caller's memory, good until the
// transfer is done or dropped (see `Link`).
unsafe impl Send for MpiTransfer {}

impl Drop for MpiTransfer {
    fn drop(&mut self) {
        // Not done: MPI keeps the buffer for good. The caller's memory it never knew.
        std::mem::forget(self.buffer.take());
    }
}

impl MpiLink {
    /// Lines apart from all others of this process, and the watchdog over calls that do not come back.
    pub(crate) fn new(watch: &Arc<Watch>, on_stuck: OnStuck) -> Result<MpiLink, LinkError> {
        let watchdog = Arc::clone(watch);
        std::thread::spawn(move || {
            while !watchdog.is_closing() {
                let stuck = watchdog.stuck_for().filter(|away| *away > STUCK);
                if let (Some(away), Some(failure)) = (stuck, watchdog.failure()) {
                    let away = away.as_secs_f64();
                    on_stuck(&format!("rank {}: stuck in MPI for {away:.1} s: {failure}", watchdog.rank));
                    return;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let mut communicator = ffi_null();
        // SAFETY: all ranks make their links in the same order; the pointer is to a local.
        let code = watch.calling(|| {
            let _calls = calls();
            unsafe { ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut communicator) }
        });
        check("MPI_Comm_dup", code)?;
        Ok(MpiLink { communicator, watch: Arc::clone(watch) })
    }
}

fn ffi_null() -> ffi::MPI_Comm {
    // SAFETY: a constant.
    unsafe { ffi::RSMPI_COMM_NULL }
}

impl Link for MpiLink {
    type Transfer = MpiTransfer;

    unsafe fn send(
        &self,
        to: usize,
        channel: u64,
        data: *const u8,
        bytes: usize,
    ) -> Result<MpiTransfer, LinkError> {
        // SAFETY: the caller's promise: `bytes` readable bytes.
        let buffer: Box<[u8]> = unsafe { std::slice::from_raw_parts(data, bytes) }.into();
        // SAFETY: the transfer keeps the buffer until MPI is done with it, or leaks it; pieces are far below 2 GiB.
        let (code, request) = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let code = self.watch.calling(|| {
                let _calls = calls();
                let (data, len, tag) = (buffer.as_ptr().cast(), bytes as c_int, (channel % TAGS) as c_int);
                ffi::MPI_Isend(
                    data,
                    len,
                    ffi::RSMPI_UINT8_T,
                    to as c_int,
                    tag,
                    self.communicator,
                    &mut request,
                )
            });
            (code, request)
        };
        check("MPI_Isend", code)?;
        Ok(MpiTransfer { request, buffer: Some(buffer), target: None })
    }

    unsafe fn recv(
        &self,
        from: usize,
        channel: u64,
        data: *mut u8,
        bytes: usize,
    ) -> Result<MpiTransfer, LinkError> {
        let mut buffer = vec![0u8; bytes].into_boxed_slice();
        // SAFETY: as in `send`; nobody else touches the buffer meanwhile.
        let (code, request) = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let code = self.watch.calling(|| {
                let _calls = calls();
                let (data, len, tag) =
                    (buffer.as_mut_ptr().cast(), bytes as c_int, (channel % TAGS) as c_int);
                ffi::MPI_Irecv(
                    data,
                    len,
                    ffi::RSMPI_UINT8_T,
                    from as c_int,
                    tag,
                    self.communicator,
                    &mut request,
                )
            });
            (code, request)
        };
        check("MPI_Irecv", code)?;
        Ok(MpiTransfer { request, buffer: Some(buffer), target: Some((data, bytes)) })
    }

    fn wait(&self, transfer: &mut MpiTransfer) -> Result<bool, LinkError> {
        let begun = Instant::now();
        for look in 0u32.. {
            let mut done: c_int = 0;
            let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
            // SAFETY: the request is alive and ours; the pointers are to locals.
            let code = self.watch.calling(|| {
                let _calls = calls();
                unsafe { ffi::MPI_Test(&mut transfer.request, &mut done, status.as_mut_ptr()) }
            });
            check("MPI_Test", code)?;
            if done != 0 {
                if let (Some(buffer), Some((target, bytes))) = (transfer.buffer.take(), transfer.target) {
                    // SAFETY: the caller's promise: `bytes` writable bytes until we say that we are done. What is
                    // behind the end of a shorter message is copied as the zeros that the buffer began with.
                    unsafe { std::ptr::copy_nonoverlapping(buffer.as_ptr(), target, bytes) }
                }
                transfer.buffer = None;
                return Ok(true);
            }
            if begun.elapsed() > PATIENCE {
                break;
            }
            match look {
                0..EAGER => std::thread::yield_now(),
                _ => std::thread::sleep(PAUSE),
            }
        }
        Ok(false)
    }
}

impl Drop for MpiLink {
    fn drop(&mut self) {
        // In a failed world the communicator stays: freeing it could hang, and the process is about to end.
        if !self.watch.has_failed() {
            let _calls = calls();
            // SAFETY: made by `new`, freed nowhere else; MPI waits for what is still under way by itself.
            unsafe { ffi::MPI_Comm_free(&mut self.communicator) };
        }
    }
}
