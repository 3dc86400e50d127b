//! [`Wrapper`]: a communicator around another, for faults, mutants, slow links and virtual time. It says only what it does
//! otherwise. No backend lives here.

use crate::{AbortHandle, CommError, Communicator, OperationRecord, Pending, Reduce};
use memory::{DType, Region, RegionMut};

/// A communicator around another: what it does not do itself is done by the one inside, under the contract of
/// [`Communicator`], which it has by this.
pub trait Wrapper: Send {
    /// The communicator inside.
    fn inner(&self) -> &dyn Communicator;

    /// The same wrapper around a group that the one inside has split off.
    fn around(&self, group: Box<dyn Communicator>) -> Box<dyn Communicator>;

    /// See [`Communicator::all_reduce`].
    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        self.inner().all_reduce(data, dtype, op)
    }

    /// See [`Communicator::reduce_scatter`].
    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        self.inner().reduce_scatter(send, recv, dtype, op)
    }

    /// See [`Communicator::all_gather`].
    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        self.inner().all_gather(send, recv)
    }

    /// See [`Communicator::all_to_all`].
    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        self.inner().all_to_all(send, recv)
    }

    /// See [`Communicator::broadcast`].
    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        self.inner().broadcast(data, root)
    }

    /// See [`Communicator::send`].
    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        self.inner().send(data, to, tag)
    }

    /// See [`Communicator::recv`].
    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        self.inner().recv(data, from, tag)
    }

    /// See [`Communicator::barrier`].
    fn barrier(&self) -> Result<(), CommError> {
        self.inner().barrier()
    }

    /// See [`Communicator::split`].
    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError> {
        Ok(self.around(self.inner().split(members, name)?))
    }

    /// See [`Communicator::completes_at_start`].
    fn completes_at_start(&self) -> bool {
        self.inner().completes_at_start()
    }
}

impl<W: Wrapper> Communicator for W {
    fn rank(&self) -> usize {
        self.inner().rank()
    }

    fn world_size(&self) -> usize {
        self.inner().world_size()
    }

    fn name(&self) -> &str {
        self.inner().name()
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        Wrapper::all_reduce(self, data, dtype, op)
    }

    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        Wrapper::reduce_scatter(self, send, recv, dtype, op)
    }

    fn all_gather<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        Wrapper::all_gather(self, send, recv)
    }

    fn all_to_all<'a>(&self, send: Region<'a>, recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        Wrapper::all_to_all(self, send, recv)
    }

    fn broadcast<'a>(&self, data: RegionMut<'a>, root: usize) -> Result<Pending<'a>, CommError> {
        Wrapper::broadcast(self, data, root)
    }

    fn send<'a>(&self, data: Region<'a>, to: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        Wrapper::send(self, data, to, tag)
    }

    fn recv<'a>(&self, data: RegionMut<'a>, from: usize, tag: u64) -> Result<Pending<'a>, CommError> {
        Wrapper::recv(self, data, from, tag)
    }

    fn barrier(&self) -> Result<(), CommError> {
        Wrapper::barrier(self)
    }

    fn split(&self, members: &[usize], name: &str) -> Result<Box<dyn Communicator>, CommError> {
        Wrapper::split(self, members, name)
    }

    fn completes_at_start(&self) -> bool {
        Wrapper::completes_at_start(self)
    }

    fn abort_handle(&self) -> AbortHandle {
        self.inner().abort_handle()
    }

    fn recent_operations(&self) -> Vec<OperationRecord> {
        self.inner().recent_operations()
    }
}
