//! A communicator that leaves one collective out, on every rank of every group of one kind.

use std::sync::atomic::{AtomicUsize, Ordering};

use comm::{Collective, CommError, Communicator, Pending, Reduce, Wrapper};
use memory::{DType, Region, RegionMut};
use runtime::WrapGroup;

/// Which collective to leave out: the `nth` of the groups called `group` (as a Program names them), or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drop {
    /// Name of the group's axes.
    pub group: String,
    /// Position in the order in which each such group starts collectives in a step.
    pub nth: usize,
    /// Collectives that each such group of this rank starts in a step.
    pub per_step: usize,
}

/// A group that leaves a collective out by doing its local part only. All members leave out the same one, so that their
/// numbers agree; nobody waits.
pub struct Mutant {
    inner: Box<dyn Communicator>,
    drop: Option<Drop>,
    started: AtomicUsize,
}

impl Mutant {
    /// Wraps every group of a rank; `drop` names the one that misbehaves.
    pub fn wrap<'a>(drop: Option<Drop>) -> Box<WrapGroup<'a>> {
        Box::new(move |key, inner| {
            let drop = drop.clone().filter(|d| d.group == key.to_string() && d.per_step > 0);
            Box::new(Mutant { inner, drop, started: AtomicUsize::new(0) })
        })
    }

    fn dropped(&self) -> bool {
        let position = self.started.fetch_add(1, Ordering::Relaxed);
        self.inner.world_size() > 1 && self.drop.as_ref().is_some_and(|d| position % d.per_step == d.nth)
    }
}

/// The collectives that one step of a Program starts on each kind of group, in order.
pub fn collectives(program: &plan::Program) -> Vec<(String, Vec<plan::Collective>)> {
    let mut all: Vec<(String, Vec<plan::Collective>)> =
        program.groups.iter().map(|g| (g.to_string(), vec![])).collect();
    for run in program.runs() {
        for (_, instruction) in run.instructions(&program.blocks[run.block]) {
            if let plan::Instruction::Start { group, collective, .. } = instruction {
                all[*group].1.push(*collective);
            }
        }
    }
    all
}

impl Wrapper for Mutant {
    fn inner(&self) -> &dyn Communicator {
        &*self.inner
    }

    /// A group that is split off is none of the Program's, and is left alone.
    fn around(&self, group: Box<dyn Communicator>) -> Box<dyn Communicator> {
        group
    }

    fn all_reduce<'a>(
        &self,
        data: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        if self.dropped() {
            return Ok(Pending::done(Collective::AllReduce));
        }
        self.inner.all_reduce(data, dtype, op)
    }

    fn reduce_scatter<'a>(
        &self,
        send: Region<'a>,
        mut recv: RegionMut<'a>,
        dtype: DType,
        op: Reduce,
    ) -> Result<Pending<'a>, CommError> {
        if self.dropped() {
            let n = recv.len_bytes();
            let own = self.rank() * n;
            recv.as_mut_slice::<u8>().copy_from_slice(&send.as_slice::<u8>()[own..own + n]);
            return Ok(Pending::done(Collective::ReduceScatter));
        }
        self.inner.reduce_scatter(send, recv, dtype, op)
    }

    fn all_gather<'a>(&self, send: Region<'a>, mut recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        if self.dropped() {
            let n = send.len_bytes();
            for piece in recv.as_mut_slice::<u8>().chunks_exact_mut(n) {
                piece.copy_from_slice(send.as_slice());
            }
            return Ok(Pending::done(Collective::AllGather));
        }
        self.inner.all_gather(send, recv)
    }

    fn all_to_all<'a>(&self, send: Region<'a>, mut recv: RegionMut<'a>) -> Result<Pending<'a>, CommError> {
        if self.dropped() {
            recv.as_mut_slice::<u8>().copy_from_slice(send.as_slice());
            return Ok(Pending::done(Collective::AllToAll));
        }
        self.inner.all_to_all(send, recv)
    }
}
