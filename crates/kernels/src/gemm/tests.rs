//! Products of every instruction set and type against sums in f64.

use super::*;
use crate::cpu::InstructionSet;
use crate::float::Float;
use crate::testing::random;
use half::{bf16, f16};
use proptest::prelude::*;

/// Scratch, aligned as it must be, in which every float of every type is NaN.
pub(super) struct Scratch {
    memory: Vec<u8>,
    bytes: usize,
}

impl Scratch {
    pub(super) fn new(bytes: usize) -> Scratch {
        Scratch { memory: vec![0xff; bytes + 63], bytes }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(64);
        &mut self.memory[start..start + self.bytes]
    }
}

/// One processor per instruction set of this machine and number of threads.
fn cpus() -> Vec<Cpu> {
    let (available, missing): (Vec<_>, Vec<_>) =
        InstructionSet::ALL.into_iter().partition(|set| set.is_available());
    if !missing.is_empty() {
        eprintln!("skipped, for this machine has none: {missing:?}");
    }
    let cpu = |set| [1, 3].map(|threads| Cpu::new(threads, set).unwrap());
    available.into_iter().flat_map(cpu).collect()
}

fn narrow<S: Storage>(values: Vec<f64>) -> Vec<S> {
    values.into_iter().map(|x| S::narrow(S::Wide::from_f64(x))).collect()
}

fn value<S: Storage>(x: S) -> f64 {
    x.widen().to_f64()
}

/// What a product is added to, without the numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Zero,
    Current,
    Row,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    trans_a: bool,
    trans_b: bool,
    base: Kind,
    /// Elements before the first of each matrix, so that none is aligned.
    offset: usize,
}

fn cases(largest: usize) -> impl Strategy<Value = Case> {
    (0..largest, 0..largest, 0..largest, any::<[bool; 2]>(), 0usize..3, 0usize..5).prop_map(
        |(m, n, k, [trans_a, trans_b], base, offset)| Case {
            m,
            n,
            k,
            trans_a,
            trans_b,
            base: [Kind::Zero, Kind::Current, Kind::Row][base],
            offset,
        },
    )
}

/// What rounding a result to f16 may cost where it is subnormal: half of the distance between two of them.
const HALF_SUBNORMAL_F16: f64 = 1.0 / (1 << 25) as f64;

/// `rounding`: what rounding the result may cost, relative and absolute; the sums themselves are allowed
/// `sum_epsilon` of the sum of magnitudes.
fn check<S: Storage, C: Storage<Wide = S::Wide>>(
    cpu: &Cpu,
    case: Case,
    sum_epsilon: f64,
    [relative, absolute]: [f64; 2],
) {
    let Case { m, n, k, trans_a, trans_b, base: kind, offset } = case;
    let a: Vec<S> = narrow(random(1, offset + m * k));
    let b: Vec<S> = narrow(random(2, offset + k * n));
    let before: Vec<C> = match kind {
        Kind::Current => narrow(random(3, offset + m * n)),
        _ => narrow(vec![f64::NAN; offset + m * n]),
    };
    let row: Vec<S::Wide> = narrow(random(4, n));
    let base = match kind {
        Kind::Zero => Base::Zero,
        Kind::Current => Base::Current,
        Kind::Row => Base::Row(&row),
    };
    let mut scratch = Scratch::new(gemm_scratch_bytes::<S>(cpu.threads(), m, n, k));
    let mut packed = vec![S::narrow(S::Wide::from_f64(f64::NAN)); packed_len::<S>(k, n)];
    pack_weight(cpu, k, n, &b[offset..], trans_b, &mut packed);
    let mut run = |prepacked: bool| {
        let mut c = before.clone();
        let (a, b, c_part) = (&a[offset..], &b[offset..], &mut c[offset..]);
        scratch.bytes().fill(0xff);
        if prepacked {
            gemm_prepacked(cpu, m, n, k, a, trans_a, &packed, c_part, base, scratch.bytes());
        } else {
            gemm(cpu, m, n, k, a, trans_a, b, trans_b, c_part, base, scratch.bytes());
        }
        c
    };
    let (c, again, prepacked) = (run(false), run(false), run(true));
    let few = (m <= FEW_ROWS && !trans_a).then(|| {
        let mut c = before.clone();
        let c_part = &mut c[offset..];
        gemm_few_rows(cpu, [m, n, k], &a[offset..], &b[offset..], trans_b, c_part, base);
        c
    });
    for i in 0..m {
        for j in 0..n {
            let at = offset + i * n + j;
            let start = match kind {
                Kind::Zero => 0.0,
                Kind::Current => value(before[at]),
                Kind::Row => value(row[j]),
            };
            let terms = (0..k).map(|p| {
                let x = a[offset + if trans_a { p * m + i } else { i * k + p }];
                let y = b[offset + if trans_b { j * k + p } else { p * n + j }];
                value(x) * value(y)
            });
            let (sum, magnitude) =
                terms.fold((start, start.abs()), |(sum, all), term| (sum + term, all + term.abs()));
            let allowed = sum_epsilon * magnitude + relative * sum.abs() + absolute;
            let set = cpu.instruction_set();
            for found in [Some(&c), few.as_ref()].into_iter().flatten().map(|c| value(c[at])) {
                let error = (found - sum).abs();
                assert!(error <= allowed, "{case:?} on {set}: ({i}, {j}) is {found}, not {sum}");
            }
            let all = [c[at], again[at], prepacked[at]].map(value);
            assert!(
                all[0] == all[1] && all[0] == all[2],
                "{case:?} on {set}: ({i}, {j}) differs between runs: {all:?}"
            );
        }
    }
    // What lies before c is not c's.
    assert!(c[..offset].iter().zip(&before).all(|(x, y)| x == y || value(*x).is_nan()));
}

fn check_types(cpu: &Cpu, case: Case) {
    check::<f64, f64>(cpu, case, 1e-14, [0.0; 2]);
    check::<f32, f32>(cpu, case, 1e-5, [0.0; 2]);
    check::<f32, bf16>(cpu, case, 1e-5, [1.0 / 256.0, 0.0]);
    check::<bf16, f32>(cpu, case, 1e-5, [0.0; 2]);
    check::<bf16, bf16>(cpu, case, 1e-5, [1.0 / 256.0, 0.0]);
    check::<f16, f32>(cpu, case, 1e-5, [0.0; 2]);
    check::<f16, f16>(cpu, case, 1e-5, [1.0 / 2048.0, HALF_SUBNORMAL_F16]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn agrees_with_the_definition(case in cases(80)) {
        cpus().iter().for_each(|cpu| check_types(cpu, case));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn few_rows_agree_with_the_definition(case in cases(80), m in 0..=FEW_ROWS, more in 0usize..1200) {
        let case = Case { m, n: case.n + more, trans_a: false, ..case };
        cpus().iter().for_each(|cpu| check_types(cpu, case));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn agrees_when_one_extent_takes_several_blocks(case in cases(20), long in 0usize..3) {
        let mut case = case;
        *[&mut case.m, &mut case.n, &mut case.k][long] += 1500;
        cpus().iter().for_each(|cpu| check_types(cpu, case));
    }
}

#[test]
fn agrees_when_every_extent_takes_several_blocks() {
    let kinds = [(false, false, Kind::Current), (false, true, Kind::Row), (true, false, Kind::Zero)];
    for (trans_a, trans_b, base) in kinds {
        let case = Case { m: 203, n: 131, k: 1041, trans_a, trans_b, base, offset: 1 };
        cpus().iter().for_each(|cpu| check_types(cpu, case));
    }
}

#[test]
fn agrees_when_columns_take_several_blocks() {
    let kinds = [(false, true, Kind::Current), (true, false, Kind::Row)];
    for (trans_a, trans_b, base) in kinds {
        let case = Case { m: 110, n: 590, k: 530, trans_a, trans_b, base, offset: 1 };
        cpus().iter().for_each(|cpu| check_types(cpu, case));
    }
}

#[test]
fn agrees_when_rows_and_columns_take_several_blocks() {
    for (trans_a, base) in [(false, Kind::Row), (true, Kind::Current)] {
        let case = Case { m: 1070, n: 590, k: 390, trans_a, trans_b: false, base, offset: 1 };
        let single = cpus().into_iter().filter(|cpu| cpu.threads() == 1);
        single.for_each(|cpu| check::<f32, f32>(&cpu, case, 1e-5, [0.0; 2]));
    }
}

/// A NaN or infinity in row 5 of a and in column 7 of b reaches that row and that column, and nothing else.
fn check_propagation<S: Storage, C: Storage<Wide = S::Wide>>(cpu: &Cpu, bad: f64) {
    let (m, n, k) = (37, 53, 41);
    let a_of = |i: usize, p: usize| if (i, p) == (5, 40) { bad } else { 1.0 + (i + p) as f64 };
    let b_of = |p: usize, j: usize| if (p, j) == (39, 7) { bad } else { 1.0 + (p * j) as f64 };
    let a: Vec<S> = narrow((0..m * k).map(|at| a_of(at / k, at % k)).collect());
    let b: Vec<S> = narrow((0..k * n).map(|at| b_of(at / n, at % n)).collect());
    let mut c: Vec<C> = vec![C::default(); m * n];
    let mut scratch = Scratch::new(gemm_scratch_bytes::<S>(cpu.threads(), m, n, k));
    gemm(cpu, m, n, k, &a, false, &b, false, &mut c, Base::Zero, scratch.bytes());
    for (at, &x) in c.iter().enumerate() {
        let (x, reached) = (value(x), at / n == 5 || at % n == 7);
        let expected = if !reached { x.is_finite() } else { x.is_nan() && bad.is_nan() || x == bad };
        assert!(expected, "{bad} on {}: element {at} is {x}", cpu.instruction_set());
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for cpu in &cpus() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            check_propagation::<f64, f64>(cpu, bad);
            check_propagation::<f32, f32>(cpu, bad);
            check_propagation::<bf16, f32>(cpu, bad);
            check_propagation::<bf16, bf16>(cpu, bad);
            check_propagation::<f16, f32>(cpu, bad);
        }
    }
}

#[test]
fn needs_no_scratch_for_nothing() {
    assert_eq!(gemm_scratch_bytes::<f32>(4, 0, 7, 7), 0);
    assert_eq!(gemm_scratch_bytes::<bf16>(4, 7, 7, 0), 0);
}

/// What is too large for the caches is written past them where its rows are whole lines, and has the same bits.
#[test]
fn where_a_large_result_lies_does_not_change_it() {
    let [m, n, k] = [2050, 4128, 8];
    assert!(m * n * size_of::<bf16>() > tiles::STREAMED);
    let (a, b): (Vec<bf16>, Vec<bf16>) = (narrow(random(1, m * k)), narrow(random(2, k * n)));
    for cpu in cpus() {
        let mut scratch = Scratch::new(gemm_scratch_bytes::<bf16>(cpu.threads(), m, n, k));
        let mut run = |offset: usize| {
            let mut memory = vec![bf16::NAN; m * n + 64];
            let start = memory.as_ptr().align_offset(64) + offset;
            let c = &mut memory[start..start + m * n];
            gemm(&cpu, m, n, k, &a, false, &b, false, c, Base::Zero, scratch.bytes());
            c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let (lines, elsewhere) = (run(0), run(1));
        assert!(lines == elsewhere, "{} with {} threads", cpu.instruction_set(), cpu.threads());
        assert!(lines.iter().all(|bits| !bf16::from_bits(*bits).is_nan()));
    }
}
