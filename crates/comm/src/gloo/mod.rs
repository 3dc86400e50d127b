//! Gloo's TCP transport as a link, through a thin C face (`shim.cc`).
//!
//! Gloo's device thread is the communication thread of a rank: it moves the bytes of every transfer under way. Of
//! Gloo's collectives none is used: they cannot be woken, take another order on every rank, and have no groups.

use crate::store::{Store, wait_for};
use crate::wire::Watch;
use crate::wire::link::{Link, LinkError};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::IpAddr;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

/// A wait is woken so often, to see whether it may go on. Gloo's own timeouts would close every connection.
const ALARM: Duration = Duration::from_millis(10);
/// Room for the words of an exception.
const MESSAGE_BYTES: usize = 1024;

type Put = unsafe extern "C" fn(*mut c_void, *const c_char, usize);

#[repr(C)]
struct StoreCalls {
    table: *mut c_void,
    set: unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, usize) -> c_int,
    get: unsafe extern "C" fn(*mut c_void, *const c_char, Put, *mut c_void) -> c_int,
}

unsafe extern "C" {
    fn phalanx_gloo_context(
        rank: c_int,
        size: c_int,
        address: *const c_char,
        timeout_ms: i64,
        calls: *const StoreCalls,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut c_void;
    fn phalanx_gloo_context_free(context: *mut c_void);
    fn phalanx_gloo_post(
        context: *mut c_void,
        receives: c_int,
        data: *mut c_void,
        len: usize,
        peer: c_int,
        slot: u64,
        message: *mut c_char,
        capacity: usize,
    ) -> *mut c_void;
    fn phalanx_gloo_wait(
        transfer: *mut c_void,
        receives: c_int,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
    fn phalanx_gloo_wake(transfer: *mut c_void, receives: c_int);
    fn phalanx_gloo_transfer_free(transfer: *mut c_void);
}

/// Calls with room for a message; `None` from the body means that the message says why.
fn explained<T>(body: impl FnOnce(*mut c_char, usize) -> Option<T>) -> Result<T, LinkError> {
    let mut message = [0; MESSAGE_BYTES];
    body(message.as_mut_ptr(), MESSAGE_BYTES).ok_or_else(|| {
        // SAFETY: the shim ends the message with a zero within its capacity; it was zero to begin with.
        let text = unsafe { CStr::from_ptr(message.as_ptr()) };
        // Gloo begins with the place in its own source, in brackets.
        let text = text.to_string_lossy();
        LinkError(text.split_once("] ").map_or(&*text, |(_, words)| words).to_owned())
    })
}

/// What the callbacks of one rendezvous need.
struct Table {
    store: Arc<dyn Store>,
    watch: Arc<Watch>,
    limit: Duration,
}

unsafe extern "C" fn set(table: *mut c_void, key: *const c_char, value: *const c_char, len: usize) -> c_int {
    // SAFETY: `table` is the one that `GlooLink::connect` passed and keeps alive; key and value are the shim's for
    // the length of this call.
    let (table, key, value) = unsafe {
        (&*table.cast::<Table>(), CStr::from_ptr(key), std::slice::from_raw_parts(value.cast::<u8>(), len))
    };
    let key = format!("gloo/{}", key.to_string_lossy());
    c_int::from(table.store.set(&key, value).is_err())
}

unsafe extern "C" fn get(table: *mut c_void, key: *const c_char, put: Put, to: *mut c_void) -> c_int {
    // SAFETY: as in `set`.
    let (table, key) = unsafe { (&*table.cast::<Table>(), CStr::from_ptr(key)) };
    let key = format!("gloo/{}", key.to_string_lossy());
    let interrupted = || table.watch.has_failed().then(|| "the world has failed".to_owned());
    match wait_for(&*table.store, &key, table.limit, &interrupted) {
        Ok(value) => {
            // SAFETY: the shim's function copies from the value, and `to` is what it gave us for it.
            unsafe { put(to, value.as_ptr().cast(), value.len()) };
            0
        }
        Err(_) => 1,
    }
}

/// A Gloo context: one rank's connections to all others.
struct Context(NonNull<c_void>);

// SAFETY: Gloo's contexts and pairs take their own locks; posting and polling may happen in any thread. It is freed
// once, by the last owner.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `phalanx_gloo_context`, freed nowhere else; every transfer holds the context alive.
        unsafe { phalanx_gloo_context_free(self.0.as_ptr()) }
    }
}

/// Who waits, for the alarm.
#[derive(Default)]
struct Waiters(Mutex<Vec<Waiter>>);

#[derive(Clone, Copy, PartialEq, Eq)]
struct Waiter {
    buffer: NonNull<c_void>,
    receives: bool,
}

// SAFETY: waking a buffer takes its own lock, in any thread; the list's lock keeps the buffer alive meanwhile.
unsafe impl Send for Waiter {}

impl Waiters {
    fn list(&self) -> MutexGuard<'_, Vec<Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all who wait, until the link is gone.
    fn ring(weak: &Weak<Waiters>) {
        while let Some(waiters) = weak.upgrade() {
            for waiter in waiters.list().iter() {
                // SAFETY: a waiter leaves the list, under its lock, before its buffer can be freed.
                unsafe { phalanx_gloo_wake(waiter.buffer.as_ptr(), c_int::from(waiter.receives)) }
            }
            drop(waiters);
            std::thread::sleep(ALARM);
        }
    }
}

/// One rank's lines over TCP.
pub(crate) struct GlooLink {
    context: Arc<Context>,
    waiters: Arc<Waiters>,
}

/// An unbound buffer with one operation under way.
pub(crate) struct GlooTransfer {
    buffer: NonNull<c_void>,
    receives: bool,
    // After the buffer: a buffer may not outlive its context.
    _context: Arc<Context>,
}

// SAFETY: the buffer takes its own lock; it is polled and freed by its owner alone.
unsafe impl Send for GlooTransfer {}

impl Drop for GlooTransfer {
    fn drop(&mut self) {
        // SAFETY: made by `phalanx_gloo_post`, freed nowhere else. Waits until Gloo's thread has let go of it; what
        // arrives for it later is dropped.
        unsafe { phalanx_gloo_transfer_free(self.buffer.as_ptr()) }
    }
}

impl GlooLink {
    /// Connects this rank to all others, exchanging addresses through the store. It gives up when the world fails.
    pub(crate) fn connect(
        store: Arc<dyn Store>,
        watch: &Arc<Watch>,
        address: IpAddr,
        limit: Duration,
    ) -> Result<GlooLink, LinkError> {
        let (sender, receiver) = mpsc::channel();
        let table = Table { store, watch: Arc::clone(watch), limit };
        let (rank, size) = (watch.rank as c_int, watch.size() as c_int);
        // In a thread of its own: it waits for connections that a rank which dies meanwhile never makes.
        std::thread::spawn(move || {
            let address = CString::new(address.to_string()).unwrap_or_default();
            let calls = StoreCalls { table: (&raw const table).cast_mut().cast(), set, get };
            let connected = explained(|message, capacity| {
                // SAFETY: all pointers are valid for the length of the call; the callbacks are made for this table.
                let context = unsafe {
                    phalanx_gloo_context(
                        rank,
                        size,
                        address.as_ptr(),
                        limit.as_millis() as i64,
                        &raw const calls,
                        message,
                        capacity,
                    )
                };
                NonNull::new(context).map(GlooLink::over)
            });
            // If nobody waits any more, the link is dropped here.
            let _ = sender.send(connected);
        });
        loop {
            match receiver.recv_timeout(Duration::from_millis(10)) {
                Ok(connected) => return connected,
                Err(mpsc::RecvTimeoutError::Timeout) if !watch.has_failed() => {}
                Err(_) => return Err(LinkError("the world failed while it was connecting".to_owned())),
            }
        }
    }

    fn over(context: NonNull<c_void>) -> GlooLink {
        let link = GlooLink { context: Arc::new(Context(context)), waiters: Arc::default() };
        let waiters = Arc::downgrade(&link.waiters);
        std::thread::spawn(move || Waiters::ring(&waiters));
        link
    }

    fn post(
        &self,
        receives: bool,
        data: *mut u8,
        bytes: usize,
        peer: usize,
        slot: u64,
    ) -> Result<GlooTransfer, LinkError> {
        explained(|message, capacity| {
            // SAFETY: the context lives; the memory is good until the transfer is done or dropped (see `Link`).
            let buffer = unsafe {
                phalanx_gloo_post(
                    self.context.0.as_ptr(),
                    c_int::from(receives),
                    data.cast(),
                    bytes,
                    peer as c_int,
                    slot,
                    message,
                    capacity,
                )
            };
            let buffer = NonNull::new(buffer)?;
            Some(GlooTransfer { buffer, receives, _context: Arc::clone(&self.context) })
        })
    }
}

impl Link for GlooLink {
    type Transfer = GlooTransfer;

    unsafe fn send(
        &self,
        to: usize,
        channel: u64,
        data: *const u8,
        bytes: usize,
    ) -> Result<GlooTransfer, LinkError> {
        self.post(false, data.cast_mut(), bytes, to, channel)
    }

    unsafe fn recv(
        &self,
        from: usize,
        channel: u64,
        data: *mut u8,
        bytes: usize,
    ) -> Result<GlooTransfer, LinkError> {
        self.post(true, data, bytes, from, channel)
    }

    fn wait(&self, transfer: &mut GlooTransfer) -> Result<bool, LinkError> {
        let waiter = Waiter { buffer: transfer.buffer, receives: transfer.receives };
        self.waiters.list().push(waiter);
        let outcome = explained(|message, capacity| {
            let receives = c_int::from(transfer.receives);
            // SAFETY: the transfer is alive and ours.
            let done = unsafe { phalanx_gloo_wait(transfer.buffer.as_ptr(), receives, message, capacity) };
            (done >= 0).then_some(done == 1)
        });
        self.waiters.list().retain(|other| *other != waiter);
        outcome
    }
}
