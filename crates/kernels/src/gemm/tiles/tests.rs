//! Blocking, packing and edges with a model of the unit, which runs on every machine. The unit itself is tested
//! beside the other instruction sets.

use super::square::Order;
use super::*;
use crate::gemm::tests::Scratch;
use crate::testing::random;
use proptest::prelude::*;
use std::cell::Cell;

thread_local! {
    /// Whether this thread is inside `ready`.
    static READY: Cell<bool> = const { Cell::new(false) };
}

/// What the instructions do, as their definitions have it.
struct Model;

impl Unit for Model {
    unsafe fn ready(work: impl FnOnce()) {
        assert!(!READY.replace(true));
        work();
        assert!(READY.replace(false));
    }

    unsafe fn multiply(block: &Block) {
        assert!(READY.get());
        assert!(block.ahead_rows <= MOST_AHEAD);
        if !block.round.is_null() {
            // SAFETY: as below.
            unsafe { Model::round(&*block.round.cast(), block.round_to, block.round_stride) };
        }
        for row in 0..SIDE {
            for column in 0..SIDE {
                // SAFETY: the same accesses as the instructions make.
                unsafe {
                    let mut sum = if block.from.is_null() {
                        0.0
                    } else {
                        *block.from.add(row * block.from_stride + column)
                    };
                    for step in 0..block.steps {
                        let a = block.a.add(step * block.a_step + row * block.a_stride);
                        let b = block.b.add(step * SQUARE);
                        for depth in 0..STEP {
                            sum += (*a.add(depth)).to_f32()
                                * (*b.add(Order::Pairs.place(column, depth))).to_f32();
                        }
                    }
                    *block.to.add(row * block.to_stride + column) = sum;
                }
            }
        }
    }

    unsafe fn pack(order: Order, from: *const bf16, stride: usize, to: *mut bf16) {
        for row in 0..32 {
            for column in 0..32 {
                let (lane, depth) = if order.reads_depths() { (column, row) } else { (row, column) };
                // SAFETY: the same accesses as the instructions make.
                unsafe { *to.add(order.place(lane, depth)) = *from.add(row * stride + column) };
            }
        }
    }

    unsafe fn round(sums: &Sums, to: *mut bf16, stride: usize) {
        for (row, sums) in sums.0.iter().enumerate() {
            for (column, &sum) in sums.iter().enumerate() {
                // SAFETY: the same accesses as the instructions make.
                unsafe { *to.add(row * stride + column) = bf16::from_f32(sum) };
            }
        }
    }
}

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Zero,
    Current,
    Row,
}

const KINDS: [Kind; 3] = [Kind::Zero, Kind::Current, Kind::Row];

#[derive(Debug, Clone, Copy)]
struct Case {
    extents: [usize; 3],
    threads: usize,
    trans_a: bool,
    trans_b: bool,
    base: Kind,
    packed: bool,
}

fn check<C: Storage<Wide = f32>>(case: Case, rounding: f32) {
    let Case { extents: [m, n, k], threads, trans_a, trans_b, base, packed } = case;
    let accumulate = base == Kind::Current;
    let cpu = Cpu::new(threads, InstructionSet::Scalar).unwrap();
    let values = |seed, len| random::<f32>(seed, len).into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let (a, b) = (values(1, m * k), values(2, k * n));
    let view = |data, transposed, row, column| View {
        data,
        stride: if transposed { row } else { column },
        transposed,
    };
    let (left, right) = (view(&a, trans_a, m, k), view(&b, trans_b, k, n));
    let before: Vec<C> = if accumulate {
        random::<f32>(3, m * n).into_iter().map(C::narrow).collect()
    } else {
        vec![C::narrow(f32::NAN); m * n]
    };
    let bias = random::<f32>(4, n);
    let mut c = before.clone();
    let mut scratch = Scratch::new(threads * scratch_bytes([m, n, k]));
    let mut whole = vec![bf16::NAN; packed_len(k, n)];
    let output = Output { start: c.as_mut_ptr(), stride: n, accumulate };
    // SAFETY: the model needs no instructions.
    unsafe {
        let right = if packed {
            pack_whole::<Model>(&cpu, [k, n], right, &mut whole);
            Right::Packed(&whole[..])
        } else {
            Right::Plain(right)
        };
        let bias = (base == Kind::Row).then_some(&bias[..]);
        multiply::<Model, C>(&cpu, [m, n, k], left, right, output, bias, scratch.bytes());
    }
    for i in 0..m {
        for j in 0..n {
            let mut sum = match base {
                Kind::Zero => 0.0,
                Kind::Current => before[i * n + j].widen(),
                Kind::Row => bias[j],
            };
            let mut magnitude = sum.abs();
            for p in 0..k {
                let x = a[i * left.row_stride() + p * left.column_stride()].to_f32();
                let y = b[p * right.row_stride() + j * right.column_stride()].to_f32();
                sum += x * y;
                magnitude += (x * y).abs();
            }
            let (is, allowed) = (c[i * n + j].widen(), 1e-5 * magnitude + rounding * sum.abs());
            assert!((is - sum).abs() <= allowed, "{case:?}: ({i}, {j}) is {is}, not {sum}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn blocks_agree_with_the_definition(
        m in 1usize..100,
        n in 1usize..100,
        k in 1usize..100,
        flags in any::<[bool; 3]>(),
        base in 0usize..3,
        even_depth: bool,
    ) {
        let ([trans_a, trans_b, packed], base) = (flags, KINDS[base]);
        let k = if even_depth { k.next_multiple_of(32) } else { k };
        let case = Case { extents: [m, n, k], threads: 1, trans_a, trans_b, base, packed };
        check::<f32>(case, 0.0);
        check::<bf16>(case, 1.0 / 256.0);
        check::<f16>(case, 1.0 / 2048.0);
    }
}

/// Several blocks, cuts, chunks, threads, and groups of rows packed before their blocks.
#[test]
fn large_products_agree_with_the_definition() {
    let large = [
        [500, 420, 544],
        [33, 420, 1100],
        [420, 65, 1056],
        [420, 33, 4200],
        [40, 70, 8200],
        [1060, 33, 7300],
    ];
    for (at, extents) in large.into_iter().enumerate() {
        for flags in (at % 3..8).step_by(3) {
            let [trans_a, trans_b, packed] = [flags & 1, flags & 2, flags & 4].map(|flag| flag != 0);
            let base = KINDS[(at + flags) % 3];
            let case = Case { extents, threads: 1 + at % 3, trans_a, trans_b, base, packed };
            check::<f32>(case, 0.0);
        }
    }
}
