//! A communicator over a link of given speed: whatever it moves takes wall time and no processor.

use std::time::{Duration, Instant};

use comm::{Collective, CommError, Communicator, Pending, Reduce, Wrapper};
use memory::{DType, Region, RegionMut};
use runtime::WrapGroup;

/// A group whose operations take `bytes / bytes_per_second` each, where a rank's bytes are those that a ring would send.
/// The time passes when an operation is started: a communication thread spends it, or the rank itself.
pub struct Throttled {
    inner: Box<dyn Communicator>,
    bytes_per_second: f64,
}

impl Throttled {
    /// Wraps every group of a rank.
    pub fn wrap<'a>(bytes_per_second: f64) -> Box<WrapGroup<'a>> {
        Box::new(move |_, inner| Box::new(Throttled { inner, bytes_per_second }))
    }

    /// Seconds of an operation in whose course each of `ranks` sends `rounds * (ranks - 1) / ranks` of `bytes`.
    pub fn seconds(bytes: usize, rounds: usize, ranks: usize, bytes_per_second: f64) -> f64 {
        (rounds * bytes * (ranks - 1)) as f64 / ranks as f64 / bytes_per_second
    }

    /// Completes `pending`, not before the link could have.
    fn complete(
        &self,
        operation: Collective,
        (bytes, rounds): (usize, usize),
        start: impl FnOnce() -> Result<(), CommError>,
    ) -> Result<Pending<'static>, CommError> {
        let begun = Instant::now();
        start()?;
        let seconds = Throttled::seconds(bytes, rounds, self.inner.world_size(), self.bytes_per_second);
        std::thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(begun.elapsed()));
        Ok(Pending::done(operation))
    }
}

impl Wrapper for Throttled {
    fn inner(&self) -> &dyn Communicator {
        &*self.inner
    }

    fn around(&self, inner: Box<dyn Communicator>) -> Box<dyn Communicator> {
        Box::new(Throttled { inner, bytes_per_second: self.bytes_per_second })
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let work = (data.len_bytes(), 2);
        self.complete(Collective::AllReduce, work, || self.inner.all_reduce(data, dtype, op)?.wait())
    }

    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        let work = (send.len_bytes(), 1);
        let start = || self.inner.reduce_scatter(send, recv, dtype, op)?.wait();
        self.complete(Collective::ReduceScatter, work, start)
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let work = (recv.len_bytes(), 1);
        self.complete(Collective::AllGather, work, || self.inner.all_gather(send, recv)?.wait())
    }

    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        let work = (send.len_bytes(), 1);
        self.complete(Collective::AllToAll, work, || self.inner.all_to_all(send, recv)?.wait())
    }

    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        let work = (data.len_bytes(), 1);
        self.complete(Collective::Broadcast, work, || self.inner.broadcast(data, root)?.wait())
    }
}
