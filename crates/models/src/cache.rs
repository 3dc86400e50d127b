//! Keys and values of a text so far, kept from step to step: what attention's blocks read and write of them.

use graph::{Dim, Graph, ValueId};

/// The caches of one kind of attention, in every layer alike. Each sequence has slots; which key lies where is said by
/// inputs of the step, so that several continuations of one prompt share what they have in common.
#[derive(Clone, Copy)]
pub(crate) struct Cache {
    /// Slots of a sequence.
    pub slot: Dim,
    /// Slot of each new key, `[batch, seq]`; none where no keys are new.
    pub slots: Option<ValueId>,
    /// How many positions the key in each slot lies behind each query `[batch, query, slot]`, negative if the query does
    /// not see it; none where the cache is only filled.
    pub distance: Option<ValueId>,
}

impl Cache {
    /// The current block's keys and values, `new` ones `[batch, seq, kv_heads, head_dim]` in their slots.
    pub fn write(&self, g: &mut Graph, new: [ValueId; 2]) -> [ValueId; 2] {
        let dims = g.value(new[0]).dims.clone();
        let caches = self.read(g, [dims[0], dims[2], dims[3]]);
        let slots = self.slots.expect("new keys have slots");
        let write = |g: &mut Graph, name, i: usize| g.cache_write(name, caches[i], new[i], slots);
        [write(g, "key.kept", 0), write(g, "value.kept", 1)]
    }

    /// The current block's keys and values as they are; `dims`: batch, heads and their width.
    pub fn read(&self, g: &mut Graph, [batch, kv_heads, head_dim]: [Dim; 3]) -> [ValueId; 2] {
        ["key.cache", "value.cache"].map(|name| g.cache(name, &[batch, self.slot, kv_heads, head_dim]))
    }
}
