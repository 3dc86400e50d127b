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

/// One listed action with its place and what it waits for.
pub(crate) struct Node {
    pub action: Action,
    pub rank: usize,
    /// Ids of the listed actions whose values it needs.
    pub needs: Vec<usize>,
    /// Id of the action before it on its rank.
    pub before: Option<usize>,
}

/// Every listed action, rank after rank.
pub(crate) struct Edges {
    pub nodes: Vec<Node>,
}

impl Edges {
    /// Looks up all edges. Actions must lie inside of the schedule's counts; a doubled action is
    /// found under its first place.
    pub fn new(schedule: &Schedule) -> Edges {
        const ABSENT: usize = usize::MAX;
        let place = |action: Action| {
            (action.stage * schedule.num_microbatches + action.microbatch) * Kind::ALL.len()
                + action.kind.index()
        };
        let mut ids = vec![ABSENT; schedule.num_stages * schedule.num_microbatches * Kind::ALL.len()];
        let mut id = 0;
        for action in schedule.ranks.iter().flatten() {
            if ids[place(*action)] == ABSENT {
                ids[place(*action)] = id;
            }
            id += 1;
        }
        let mut nodes: Vec<Node> = Vec::with_capacity(id);
        for (rank, actions) in schedule.ranks.iter().enumerate() {
            for (position, &action) in actions.iter().enumerate() {
                let found = needs(action, schedule.num_stages).map(|need| ids[place(need)]);
                let needs = found.filter(|&id| id != ABSENT).collect();
                let before = (position > 0).then(|| nodes.len() - 1);
                nodes.push(Node { action, rank, needs, before });
            }
        }
        Edges { nodes }
    }

    /// Ids in an order in which every action follows what it waits for; else a cycle, each action of
    /// which waits for the one before it, and the first for the last.
    pub fn order(&self) -> Result<Vec<usize>, Vec<Action>> {
        let mut waiting: Vec<usize> =
            self.nodes.iter().map(|node| node.needs.len() + usize::from(node.before.is_some())).collect();
        let mut followers: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.nodes.iter().enumerate() {
            for &need in node.needs.iter().chain(&node.before) {
                followers[need].push(id);
            }
        }
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(|&id| waiting[id] == 0).collect();
        let mut next = 0;
        while next < order.len() {
            for &follower in &followers[order[next]] {
                waiting[follower] -= 1;
                if waiting[follower] == 0 {
                    order.push(follower);
                }
            }
            next += 1;
        }
        if order.len() == self.nodes.len() { Ok(order) } else { Err(self.cycle(&waiting)) }
    }

    /// Walks backwards among the actions still waiting until one comes up again.
    fn cycle(&self, waiting: &[usize]) -> Vec<Action> {
        let mut seen_at = vec![None; self.nodes.len()];
        let mut path = Vec::new();
        let mut at = waiting.iter().position(|&count| count > 0);
        while let Some(id) = at {
            if let Some(start) = seen_at[id] {
                let mut cycle: Vec<Action> =
                    path[start..].iter().map(|&id: &usize| self.nodes[id].action).collect();
                cycle.reverse();
                return cycle;
            }
            seen_at[id] = Some(path.len());
            path.push(id);
            let node = &self.nodes[id];
            at = node.needs.iter().chain(&node.before).copied().find(|&need| waiting[need] > 0);
        }
        Vec::new()
    }
}
