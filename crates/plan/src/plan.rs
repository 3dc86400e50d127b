//! The plan: which axes split which dims, the homes of values and states, stages, schedule. Three lines of homes are
//! all there is to ZeRO.

use std::collections::HashMap;

use graph::{Dim, Graph, Place, Role, StateKind, ValueId};
use memory::DType;
use mesh::{Axis, DimDigits, Mesh, Placement};
use schedule::Schedule;

use crate::error::PlanError;
use crate::layout::Layout;

/// Bytes of a gradient bucket unless said otherwise.
pub const BUCKET_BYTES: usize = 16 << 20;

/// How a run is divided, as a user says it. Sizes are the user's: `tp` is not yet factored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parallel {
    /// Data-parallel ranks.
    pub dp: usize,
    /// Context-parallel ranks.
    pub cp: usize,
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Pipeline ranks.
    pub pp: usize,
    /// Expert-parallel ranks.
    pub ep: usize,
    /// Sequence-parallel residual stream over tp.
    pub sequence: bool,
    /// Striped instead of contiguous context parallelism.
    pub striped: bool,
    /// ZeRO stage, 0 to 3.
    pub zero: u8,
    /// Name of the pipeline schedule.
    pub schedule: String,
    /// A schedule of this many ranks, chunks and microbatches, in place of the one that has the name.
    pub given: Option<Schedule>,
    /// Stages per pipeline rank.
    pub chunks: usize,
    /// Microbatches per step.
    pub num_microbatches: usize,
    /// Gradients are reduced in buckets of at most so many bytes while the backward goes on; 0: one by one after it.
    pub bucket_bytes: usize,
    /// Rows (tokens) whose logits are held at a time, rounded up to [`STRIP_ALIGN`](crate::STRIP_ALIGN); 0: as the
    /// type of activations suits ([`Plan::logits_rows`]).
    pub logits_rows: usize,
}

impl Default for Parallel {
    /// One rank, one microbatch.
    fn default() -> Parallel {
        Parallel {
            dp: 1,
            cp: 1,
            tp: 1,
            pp: 1,
            ep: 1,
            sequence: false,
            striped: false,
            zero: 0,
            schedule: "1f1b".to_owned(),
            given: None,
            chunks: 1,
            num_microbatches: 1,
            bucket_bytes: BUCKET_BYTES,
            logits_rows: 0,
        }
    }
}

impl Parallel {
    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.dp * self.cp * self.tp * self.pp * self.ep
    }
}

/// Which of a parameter's three homes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateHome {
    /// Between steps.
    Store,
    /// Accumulated gradient, between microbatches.
    Gradient,
    /// Where the update runs and moments live.
    Optimizer,
}

/// A checked division of one graph.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sizes of all axes, tensor parallelism factored.
    pub mesh: Mesh,
    /// Order of actions per pipeline rank.
    pub schedule: Schedule,
    /// Precision of floats.
    pub float: DType,
    /// Type of what mixed precision makes narrow: `float`, unless set to a smaller one before lowering.
    pub narrow: DType,
    /// ZeRO stage.
    pub zero: u8,
    /// Bytes of a gradient bucket; 0 for none.
    pub bucket_bytes: usize,
    /// As [`Parallel::logits_rows`].
    logits_rows: usize,
    homes: [Vec<Dim>; Axis::COUNT],
    digits: Vec<DimDigits>,
    stage_of_layer: Vec<usize>,
    holders: HashMap<ValueId, Vec<usize>>,
    holders_by_name: HashMap<String, usize>,
}

impl Plan {
    /// Plans `graph` (its layers are the `Place::Layer`s, the first and last being embedding and head).
    ///
    /// # Errors
    /// Whatever cannot be split, by name, size and axis.
    pub fn new(graph: &Graph, parallel: &Parallel, float: DType) -> Result<Plan, PlanError> {
        check_range(parallel)?;
        let size = |name: &str| graph.find_dim(name).map(|d| graph.dim_info(d).size);
        let (tp, tp_inner) = factor_tensor(parallel.tp, size("kv_heads"), size("group"))?;
        let mesh = Mesh::new(&[
            (Axis::Pp, parallel.pp),
            (Axis::Dp, parallel.dp),
            (Axis::Ep, parallel.ep),
            (Axis::Cp, parallel.cp),
            (Axis::Tp, tp),
            (Axis::TpInner, tp_inner),
            (Axis::Mb, parallel.num_microbatches),
        ])
        .expect("sizes were checked");
        let homes = homes(graph, parallel);
        let digits = digits(graph, &mesh, &homes, parallel.striped);
        for axis in Axis::SPACE {
            check_axis(graph, parallel, &mesh, &homes, axis)?;
        }
        let stage_of_layer = cut_stages(graph, parallel)?;
        let make = |m: usize| schedule::generate(&parallel.schedule, parallel.pp, m, parallel.chunks);
        let is_backward =
            |id: &graph::NodeId| matches!(graph.node(*id).role, Role::BackwardInput | Role::BackwardWeight);
        let schedule = if graph.order().iter().any(is_backward) {
            match &parallel.given {
                Some(given) => {
                    given.check_fits(parallel.pp, parallel.num_microbatches, parallel.chunks)?;
                    given.clone()
                }
                None => make(parallel.num_microbatches)?,
            }
        } else {
            // Evaluation needs no particular order, but stages must lie where training has them: states are shared.
            // Where they lie does not depend on the number of microbatches, and every schedule takes this many.
            let placement = match &parallel.given {
                Some(given) => given.placement.clone(),
                None => make(2 * parallel.pp * parallel.chunks)?.placement,
            };
            Schedule::forward_only(parallel.pp, &placement, parallel.num_microbatches)?
        };
        schedule.check()?;
        let mut plan = Plan {
            mesh,
            schedule,
            float,
            narrow: float,
            zero: parallel.zero,
            bucket_bytes: parallel.bucket_bytes,
            logits_rows: parallel.logits_rows,
            homes,
            digits,
            stage_of_layer,
            holders: HashMap::new(),
            holders_by_name: HashMap::new(),
        };
        plan.holders = plan.find_holders(graph);
        plan.holders_by_name = plan.name_holders(graph);
        Ok(plan)
    }

    /// Digits of a dim.
    pub fn digits(&self, dim: Dim) -> &DimDigits {
        &self.digits[dim.index()]
    }

    /// Stage of a layer place.
    pub fn stage_of_layer(&self, layer: usize) -> usize {
        self.stage_of_layer[layer]
    }

    /// Pipeline rank of a layer place.
    pub fn pipeline_rank_of_layer(&self, layer: usize) -> usize {
        self.schedule.placement[self.stage_of_layer(layer)]
    }

    /// Pipeline ranks that hold a parameter, ascending.
    pub fn holders(&self, parameter: ValueId) -> &[usize] {
        self.holders.get(&parameter).map_or(&[], Vec::as_slice)
    }

    /// The first pipeline rank that holds a state (a moment lies with its parameter), if the graph has it.
    pub fn first_holder_of(&self, state: &str) -> Option<usize> {
        self.holders_by_name.get(state).copied()
    }

    /// Rows (tokens) whose logits are held at a time. Every strip packs the weight anew, which costs a product of fast
    /// narrow numbers as much as many of its rows.
    pub fn logits_rows(&self) -> usize {
        match (self.logits_rows, self.narrow) {
            (0, DType::BF16) => 2048,
            (0, _) => 512,
            (rows, _) => rows.next_multiple_of(crate::STRIP_ALIGN),
        }
    }

    /// Whether an axis divides anything at all.
    pub fn divides(&self, axis: Axis) -> bool {
        self.mesh.size(axis) > 1
    }

    /// Whether `axis` may split `dim`.
    pub fn may_split(&self, axis: Axis, dim: Dim) -> bool {
        if dim == Dim::FLAT {
            return axis == Axis::Dp && self.zero > 0;
        }
        self.digits(dim).has(axis)
    }

    /// Home of a value with these dims along `axis`: the first dim of the axis's list that the value has.
    pub fn home(&self, axis: Axis, dims: &[Dim]) -> Placement<Dim> {
        if !self.divides(axis) {
            return Placement::Whole;
        }
        let first = self.homes[axis.index()].iter().find(|d| dims.contains(d));
        first.map_or(Placement::Whole, |d| Placement::Shard(*d))
    }

    /// Home of a state tensor or its gradient along `axis`.
    pub fn state_home(&self, axis: Axis, dims: &[Dim], which: StateHome) -> Placement<Dim> {
        let first_sharded = match which {
            StateHome::Optimizer => 1,
            StateHome::Gradient => 2,
            StateHome::Store => 3,
        };
        if axis == Axis::Dp && self.divides(axis) && self.zero >= first_sharded {
            return Placement::Shard(Dim::FLAT);
        }
        self.home(axis, dims)
    }

    /// Layout of a state tensor between steps.
    pub fn state_layout(&self, dims: &[Dim], kind: StateKind) -> Layout {
        let home = |axis| match kind {
            StateKind::Parameter => self.state_home(axis, dims, StateHome::Store),
            StateKind::Moment => self.state_home(axis, dims, StateHome::Optimizer),
            StateKind::Cache => self.home(axis, dims),
        };
        Axis::ALL.into_iter().fold(Layout::WHOLE, |l, a| l.with(a, home(a)))
    }

    fn name_holders(&self, graph: &Graph) -> HashMap<String, usize> {
        let mut first = HashMap::new();
        for (value, state) in graph.states() {
            if let Some(rank) = self.holders(value).first() {
                first.insert(state.name.clone(), *rank);
            }
        }
        // States that only updates touch lie where their parameter does.
        for node in graph.order().iter().map(|id| graph.node(*id)) {
            let Place::Holders(parameter) = node.place else { continue };
            for value in &node.inputs {
                if let (graph::Op::State(state), Some(rank)) =
                    (&graph.producer(*value).op, self.holders(parameter).first())
                {
                    first.insert(state.name.clone(), *rank);
                }
            }
        }
        first
    }

    fn find_holders(&self, graph: &Graph) -> HashMap<ValueId, Vec<usize>> {
        let mut holders: HashMap<ValueId, Vec<usize>> = HashMap::new();
        for id in graph.order() {
            let node = graph.node(*id);
            let Place::Layer(layer) = node.place else { continue };
            for value in &node.inputs {
                let maker = graph.producer(*value);
                let state = if maker.op == graph::Op::Cast { maker.inputs[0] } else { *value };
                if matches!(graph.producer(state).op, graph::Op::State(_)) {
                    let ranks = holders.entry(state).or_default();
                    let rank = self.pipeline_rank_of_layer(layer);
                    if !ranks.contains(&rank) {
                        ranks.push(rank);
                        ranks.sort_unstable();
                    }
                }
            }
        }
        holders
    }
}

fn check_range(parallel: &Parallel) -> Result<(), PlanError> {
    if parallel.zero > 3 {
        let remedy = "ZeRO has stages 0, 1, 2 and 3".to_owned();
        return Err(PlanError::Unsupported {
            key: "parallel.zero",
            value: parallel.zero.to_string(),
            remedy,
        });
    }
    for (key, value) in
        [("parallel.num_microbatches", parallel.num_microbatches), ("parallel.chunks", parallel.chunks)]
    {
        if value == 0 {
            let remedy = "it must be at least 1".to_owned();
            return Err(PlanError::Unsupported { key, value: "0".to_owned(), remedy });
        }
    }
    Ok(())
}

/// `tp = outer x inner`: the outer factor splits key-value heads, the inner one the query heads that share one.
fn factor_tensor(
    tp: usize,
    kv_heads: Option<usize>,
    group: Option<usize>,
) -> Result<(usize, usize), PlanError> {
    let (Some(kv_heads), Some(group)) = (kv_heads, group) else { return Ok((tp, 1)) };
    let factors = |tp: usize| {
        let outer = gcd(tp, kv_heads);
        group.is_multiple_of(tp / outer).then_some((outer, tp / outer))
    };
    factors(tp).ok_or_else(|| {
        let size = kv_heads * group;
        let choices: Vec<String> =
            (1..=size).filter(|n| factors(*n).is_some()).map(|n| n.to_string()).collect();
        PlanError::CannotSplit {
            dim: "num_heads".to_owned(),
            size,
            axis: Axis::Tp,
            ranks: tp,
            choices: choices.join(", "),
        }
    })
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// For each axis, the dims it may split, most preferred first.
fn homes(graph: &Graph, parallel: &Parallel) -> [Vec<Dim>; Axis::COUNT] {
    let find = |names: &[&str]| -> Vec<Dim> { names.iter().filter_map(|n| graph.find_dim(n)).collect() };
    // A decoder beside an encoder has positions of its own.
    let positions = ["seq", "target_seq"];
    let seq: &[&str] = if parallel.sequence { &positions } else { &[] };
    let mut homes: [Vec<Dim>; Axis::COUNT] = Default::default();
    homes[Axis::Dp.index()] = find(&["batch"]);
    homes[Axis::Mb.index()] = find(&["batch"]);
    homes[Axis::Cp.index()] = find(&positions);
    homes[Axis::Tp.index()] = find(&[&["kv_heads", "mlp", "vocab"], seq].concat());
    homes[Axis::TpInner.index()] = find(&[&["group", "mlp", "vocab"], seq].concat());
    homes
}

/// Digits of every dim: those of the axes that may split it, in the order of the mesh, then the rest; striped context
/// parallelism puts the rest before cp. A renamed dim is padded like the one it comes from.
fn digits(graph: &Graph, mesh: &Mesh, homes: &[Vec<Dim>; Axis::COUNT], striped: bool) -> Vec<DimDigits> {
    let mut all: Vec<DimDigits> = (0..graph.dims().len())
        .map(|index| {
            let info = &graph.dims()[index];
            let splits = |axis: &Axis| homes[axis.index()].iter().any(|d| d.index() == index);
            // Time varies faster than space: dp's digit comes before mb's.
            let mut order: Vec<Option<Axis>> = Axis::ALL.into_iter().filter(splits).map(Some).collect();
            order.push(None);
            if striped && order.contains(&Some(Axis::Cp)) {
                order.retain(|a| *a != Some(Axis::Cp));
                order.push(Some(Axis::Cp));
            }
            DimDigits::new(info.size, &order, mesh)
        })
        .collect();
    for id in graph.order() {
        if let graph::Op::Rename { from, to } = graph.node(*id).op {
            let padded = all[from.index()].padded().max(all[to.index()].padded());
            let unsplit = |d: Dim| !homes.iter().any(|h| h.contains(&d));
            for dim in [from, to].into_iter().filter(|d| unsplit(*d)) {
                all[dim.index()] = DimDigits::unsplit(all[dim.index()].size(), padded);
            }
        }
    }
    all
}

/// Refuses an axis that would leave ranks without work.
fn check_axis(
    graph: &Graph,
    parallel: &Parallel,
    mesh: &Mesh,
    homes: &[Vec<Dim>; Axis::COUNT],
    axis: Axis,
) -> Result<(), PlanError> {
    let ranks = mesh.size(axis);
    if ranks == 1 || axis == Axis::Pp {
        return Ok(());
    }
    let dims = &homes[axis.index()];
    if dims.is_empty() {
        return Err(PlanError::NothingToSplit { axis, ranks });
    }
    for dim in dims {
        let info = graph.dim_info(*dim);
        let ranks = match axis {
            Axis::Tp | Axis::TpInner => parallel.tp,
            _ => ranks,
        };
        let splits_all = !["kv_heads", "group", "batch"].contains(&info.name.as_str());
        if splits_all && info.size < ranks {
            return Err(PlanError::TooManyRanks { dim: info.name.clone(), size: info.size, axis, ranks });
        }
    }
    Ok(())
}

/// Layers to stages: as equal as possible, the larger shares first, since the last stage also has the head.
fn cut_stages(graph: &Graph, parallel: &Parallel) -> Result<Vec<usize>, PlanError> {
    let places = graph.order().iter().filter_map(|id| match graph.node(*id).place {
        Place::Layer(layer) => Some(layer),
        _ => None,
    });
    let last = places.max().unwrap_or(1);
    let layers = last - 1;
    let stages = parallel.pp * parallel.chunks;
    if stages > 1 && stages > layers {
        return Err(PlanError::TooManyStages { stages, layers });
    }
    let mut stage_of_layer = vec![0];
    for (stage, layers) in graph::cut(layers, stages).enumerate() {
        stage_of_layer.extend(std::iter::repeat_n(stage, layers.len()));
    }
    stage_of_layer.push(stages - 1);
    Ok(stage_of_layer)
}
