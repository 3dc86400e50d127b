//! Whose memory a rank can read: that of ranks on its host, where the kernel allows it. What is read and when is in
//! `direct`.
//!
//! Between two processes of one host a socket costs a copy into the kernel and one out of it, beside its own work; a
//! read of the other's memory is one copy. Whether it works is tried, not guessed: containers, users and the kernel's
//! settings (`kernel.yama.ptrace_scope`) may all forbid it, and then the engine carries the bytes.
//! *Source:* Vienne, "Benefits of Cross Memory Attach for MPI libraries on HPC Clusters", 2014; process_vm_readv(2).

use super::link::LinkError;
use crate::store::{Store, StoreError, wait_for};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a broken seal says; no seal begins with it.
const BROKEN: u64 = 0;

/// The ranks of this host whose memory this one reads, and which of them read each other's.
///
/// Each rank has a *seal*, a number in its memory that it breaks before it lets go of what others may be reading. A
/// rank that finds a seal whole after it has read knows that it has read what was meant.
pub(crate) struct Neighbours {
    seal: Box<AtomicU64>,
    /// By rank in the world: where its seal is.
    seals: Vec<Option<Seal>>,
    /// By rank in the world: whose memory it reads.
    readers: Vec<Vec<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seal {
    process: i32,
    address: u64,
    value: u64,
}

impl Seal {
    fn to_text(self) -> String {
        format!("{} {} {}", self.process, self.address, self.value)
    }

    fn parse(text: &[u8]) -> Option<Seal> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        let seal = Seal {
            process: words.next()?.parse().ok()?,
            address: words.next()?.parse().ok()?,
            value: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(seal)
    }

    /// Whether it is there and whole.
    fn is_whole(&self) -> bool {
        let mut found = BROKEN;
        // SAFETY: `found` is ours and has 8 bytes.
        let read =
            unsafe { read_memory(self.process, self.address, (&raw mut found).cast(), size_of::<u64>()) };
        read.is_ok() && found == self.value
    }
}

impl Neighbours {
    /// Finds out, together with the other ranks, who on a host reads whose memory. With `willing` false this rank's is
    /// read by nobody. All ranks must call it; `hosts` has the host of each.
    ///
    /// # Errors
    /// Those of the store, and of waiting for what another rank should have written there.
    pub(crate) fn meet(
        store: &dyn Store,
        rank: usize,
        hosts: &[Arc<str>],
        willing: bool,
        limit: Duration,
        interrupted: &dyn Fn() -> Option<String>,
    ) -> Result<Neighbours, StoreError> {
        // Neither a rank nor a container that has the number of another's process can hit on it.
        let value = RandomState::new().hash_one(rank) | 1;
        let seal = Box::new(AtomicU64::new(value));
        let mut seals = vec![None; hosts.len()];
        let mut readers = vec![Vec::new(); hosts.len()];
        let beside: Vec<usize> =
            (0..hosts.len()).filter(|&other| other != rank && hosts[other] == hosts[rank]).collect();
        if beside.is_empty() {
            return Ok(Neighbours { seal, seals, readers });
        }
        let key = |what: &str, rank: usize| format!("{what}/{rank}");
        let address = (&raw const *seal) as u64;
        let own = Seal { process: std::process::id() as i32, address, value };
        store.set(&key("seal", rank), if willing { own.to_text() } else { String::new() }.as_bytes())?;
        for &other in &beside {
            let text = wait_for(store, &key("seal", other), limit, interrupted)?;
            seals[other] = Seal::parse(&text).filter(|seal| willing && seal.is_whole());
        }
        readers[rank] = beside.iter().copied().filter(|&other| seals[other].is_some()).collect();
        let listed: Vec<String> = readers[rank].iter().map(usize::to_string).collect();
        store.set(&key("reads", rank), listed.join(" ").as_bytes())?;
        for &other in &beside {
            let text = wait_for(store, &key("reads", other), limit, interrupted)?;
            let text = String::from_utf8_lossy(&text);
            readers[other] = text.split(' ').filter_map(|word| word.parse().ok()).collect();
        }
        Ok(Neighbours { seal, seals, readers })
    }

    /// Whether each of these ranks reads the memory of all others among them. All of them come to the same answer.
    pub(super) fn read_each_other(&self, ranks: &[usize]) -> bool {
        let reads = |a: usize, b: usize| a == b || self.readers[a].contains(&b);
        ranks.len() > 1 && ranks.iter().all(|&a| ranks.iter().all(|&b| reads(a, b)))
    }

    /// Copies `bytes` bytes at `address` of `rank`.
    ///
    /// # Safety
    /// `to` is writable for so many bytes and touched by nobody else meanwhile.
    pub(super) unsafe fn read(
        &self,
        rank: usize,
        address: u64,
        to: *mut u8,
        bytes: usize,
    ) -> Result<(), LinkError> {
        let Some(seal) = self.seals[rank] else {
            return Err(LinkError("its memory cannot be read".to_owned()));
        };
        // SAFETY: passed on.
        let read = unsafe { read_memory(seal.process, address, to, bytes) };
        read.map_err(|error| LinkError(format!("its memory cannot be read: {error}")))
    }

    /// Whether what was read from `rank` was still what that rank had meant to be read.
    pub(super) fn is_whole(&self, rank: usize) -> bool {
        self.seals[rank].is_some_and(|seal| seal.is_whole())
    }

    /// Says to all who are reading this rank's memory that it may change.
    pub(super) fn break_seal(&self) {
        self.seal.store(BROKEN, Ordering::SeqCst);
    }
}

/// Copies from another process, as long as that one lives and the kernel allows it.
///
/// # Safety
/// `to` is writable for `bytes` bytes and touched by nobody else meanwhile.
#[cfg(target_os = "linux")]
unsafe fn read_memory(process: i32, address: u64, to: *mut u8, bytes: usize) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let local = libc::iovec { iov_base: to.wrapping_add(done).cast(), iov_len: bytes - done };
        let from = (address as usize + done) as *mut libc::c_void;
        let remote = libc::iovec { iov_base: from, iov_len: bytes - done };
        // SAFETY: the kernel writes within `to`, which is the caller's; it checks the other process's addresses.
        match unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) } {
            read @ 1.. => done += read as usize,
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
unsafe fn read_memory(_: i32, _: u64, _: *mut u8, _: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    /// The ranks of these hosts; who is not willing is named.
    fn meet(hosts: &[&str], unwilling: Option<usize>) -> Vec<Neighbours> {
        let store = MemoryStore::default();
        let hosts: Vec<Arc<str>> = hosts.iter().map(|host| Arc::from(*host)).collect();
        let (store, hosts) = (&store, &hosts);
        std::thread::scope(|scope| {
            let join = |rank| {
                let limit = Duration::from_secs(5);
                let willing = unwilling != Some(rank);
                scope.spawn(move || Neighbours::meet(store, rank, hosts, willing, limit, &|| None).unwrap())
            };
            let threads: Vec<_> = (0..hosts.len()).map(join).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_of_one_host_read_each_other_and_all_know_it() {
        for ranks in meet(&["a", "b", "a", "a"], None) {
            assert!(
                ranks.read_each_other(&[0, 2, 3]) || ranks.readers[1].is_empty() && ranks.seals[0].is_none()
            );
            assert!(!ranks.read_each_other(&[0, 1]) && !ranks.read_each_other(&[1]));
        }
        let ranks = meet(&["a", "a", "a"], Some(1));
        assert!(ranks.iter().all(|r| r.read_each_other(&[2, 0]) && !r.read_each_other(&[0, 1, 2])));
    }

    #[test]
    fn what_is_read_is_what_lies_there_until_the_seal_breaks() {
        let ranks = meet(&["a", "a"], None);
        let theirs: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
        let mut ours = vec![0; theirs.len()];
        // SAFETY: `ours` has as many bytes.
        unsafe { ranks[0].read(1, theirs.as_ptr() as u64, ours.as_mut_ptr(), ours.len()) }.unwrap();
        assert_eq!(ours, theirs);
        assert!(ranks[0].is_whole(1));
        ranks[1].break_seal();
        assert!(!ranks[0].is_whole(1) && ranks[1].is_whole(0));
        // SAFETY: as above; nothing lies there, which is an error of the call.
        let nowhere = unsafe { ranks[0].read(1, 8, ours.as_mut_ptr(), 8) };
        assert!(nowhere.unwrap_err().0.contains("cannot be read"));
    }
}
