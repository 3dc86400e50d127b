//! The dependency graph of a schedule: data edges and program order, and a topological order of both.
//! What an edge means is here alone (`needs`); judging and timing are in `check` and `simulate`.

use crate::{Action, Kind, Schedule};

/// The actions that `action` waits for, as alternatives: of each pair the one that is listed counts.
///
/// Stages form a chain for now; a schedule with another stage graph would carry it and answer here.
pub(crate) fn needs(action: Action, num_stages: usize) -> impl Iterator<Item = Action> {
    let Action { kind, stage, microbatch } = action;
    let mut needs = [None; 3];
    match kind {
        Kind::Forward => needs[0] = stage.checked_sub(1).map(|before| Action::forward(before, microbatch)),
        Kind::Backward | Kind::BackwardInput => {
            needs[0] = Some(Action::forward(stage, microbatch));
            if stage + 1 < num_stages {
                needs[1] = Some(Action::backward(stage + 1, microbatch));
                needs[2] = Some(Action::backward_input(stage + 1, microbatch));
            }
        }
        Kind::BackwardWeight => {
            needs[0] = Some(Action::forward(stage, microbatch));
            needs[1] = Some(Action::backward_input(stage, microbatch));
        }
    }
    needs.into_iter().flatten()
}

/// No node.
const NONE: u32 = u32::MAX;

/// One listed action with its place and what it waits for.
pub(crate) struct Node {
    pub action: Action,
    pub rank: usize,
    needs: [u32; 4],
    first_of_rank: bool,
    /// Whether it is the first of an overlapped pair, which starts and ends as one.
    pub opens_pair: bool,
}

impl Node {
    /// Ids of the listed actions whose values it needs.
    pub fn needs(&self) -> impl Iterator<Item = usize> + '_ {
        self.needs.iter().filter(|&&need| need != NONE).map(|&need| need as usize)
    }
}

/// Every listed action, rank after rank.
pub(crate) struct Edges {
    pub nodes: Vec<Node>,
    /// For each rank, the id of its first action; then the number of nodes.
    starts: Vec<usize>,
}

impl Edges {
    /// Looks up all edges. Actions must lie inside of the schedule's counts; a doubled action is
    /// found under its first place.
    pub fn new(schedule: &Schedule) -> Edges {
        let place = |action: Action| action.place(schedule.num_microbatches);
        let mut ids = vec![NONE; schedule.num_stages * schedule.num_microbatches * Kind::ALL.len()];
        for (id, action) in schedule.ranks.iter().flatten().enumerate() {
            let first = &mut ids[place(*action)];
            *first = (*first).min(id as u32);
        }
        let mut pairs = schedule.overlaps.iter().peekable();
        let num_nodes = schedule.ranks.iter().map(Vec::len).sum();
        let mut nodes: Vec<Node> = Vec::with_capacity(num_nodes);
        let mut starts = Vec::with_capacity(schedule.num_ranks + 1);
        for (rank, actions) in schedule.ranks.iter().enumerate() {
            starts.push(nodes.len());
            for (position, &action) in actions.iter().enumerate() {
                let opens_pair = pairs.next_if(|&&pair| pair <= (rank, position)) == Some(&(rank, position))
                    && position + 1 < actions.len();
                // The first of a pair waits for what the second needs, too.
                let partner = if opens_pair { Some(actions[position + 1]) } else { None };
                let all = needs(action, schedule.num_stages)
                    .chain(partner.into_iter().flat_map(|action| needs(action, schedule.num_stages)));
                let mut needs_ids = [NONE; 4];
                for (slot, need) in needs_ids.iter_mut().zip(all) {
                    *slot = ids[place(need)];
                }
                let first_of_rank = position == 0;
                nodes.push(Node { action, rank, needs: needs_ids, first_of_rank, opens_pair });
            }
        }
        starts.push(nodes.len());
        debug_assert_eq!(nodes.len(), num_nodes);
        Edges { nodes, starts }
    }

    /// Id of the action before it on its rank.
    pub fn before(&self, id: usize) -> Option<usize> {
        (!self.nodes[id].first_of_rank).then(|| id - 1)
    }

    /// Ids in an order in which every action follows what it waits for; else a cycle, each action of
    /// which waits for the one before it, and the first for the last.
    ///
    /// Each rank runs its list until it must wait, and is woken by what it waits for.
    pub fn order(&self) -> Result<Vec<usize>, Vec<Action>> {
        let num_ranks = self.starts.len() - 1;
        let mut next = self.starts[..num_ranks].to_vec();
        let mut done = vec![false; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        // Ranks that wait for a node form a list: its head is here, the rest in `sleeping`.
        let mut sleepers = vec![NONE; self.nodes.len()];
        let mut sleeping = vec![NONE; num_ranks];
        let mut awake: Vec<usize> = (0..num_ranks).rev().collect();
        while let Some(rank) = awake.pop() {
            while next[rank] < self.starts[rank + 1] {
                let id = next[rank];
                if let Some(need) = self.nodes[id].needs().find(|&need| !done[need]) {
                    sleeping[rank] = std::mem::replace(&mut sleepers[need], rank as u32);
                    break;
                }
                done[id] = true;
                order.push(id);
                next[rank] += 1;
                let mut woken = std::mem::replace(&mut sleepers[id], NONE);
                while woken != NONE {
                    awake.push(woken as usize);
                    woken = sleeping[woken as usize];
                }
            }
        }
        if order.len() == self.nodes.len() { Ok(order) } else { Err(self.cycle(&done)) }
    }

    /// Walks backwards among the actions that never ran until one comes up again.
    fn cycle(&self, done: &[bool]) -> Vec<Action> {
        let mut seen_at = vec![None; self.nodes.len()];
        let mut path: Vec<usize> = Vec::new();
        let mut at = done.iter().position(|done| !done);
        while let Some(id) = at {
            if let Some(start) = seen_at[id] {
                let mut cycle: Vec<Action> = path[start..].iter().map(|&id| self.nodes[id].action).collect();
                cycle.reverse();
                return cycle;
            }
            seen_at[id] = Some(path.len());
            path.push(id);
            at = self.nodes[id].needs().chain(self.before(id)).find(|&need| !done[need]);
        }
        Vec::new()
    }
}
