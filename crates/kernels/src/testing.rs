//! What kernel tests share: random inputs, poisoned outputs, comparison, finite differences, and a harness that
//! runs a kernel on every processor and in every type. Compiled for tests alone.

use crate::cpu::{Cpu, InstructionSet};
use crate::float::Float;
use crate::random::Key;
use crate::storage::Storage;
use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::any::TypeId;

/// Standard normal values, a pure function of `seed` and position.
pub(crate) fn random<T: Float>(seed: u64, len: usize) -> Vec<T> {
    let key = Key::new(seed, 0, "test");
    (0..len as u64).map(|i| T::from_f64(key.normal(i))).collect()
}

/// An output buffer full of NaN: whatever a kernel fails to write shows.
pub(crate) fn poisoned<T: Float>(len: usize) -> Vec<T> {
    vec![T::from_f64(f64::NAN); len]
}

/// Asserts |actual - expected| <= tolerance * max(1, |expected|) everywhere; equal infinities pass.
#[track_caller]
pub(crate) fn assert_close<T: Float>(actual: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, &e)) in actual.iter().zip(expected).enumerate() {
        let a = a.to_f64();
        let equal = a == e || (a - e).abs() <= tolerance * e.abs().max(1.0);
        assert!(equal, "element {i}: {a:e}, expected {e:e}");
    }
}

/// The gradient of `f` at `x` by central differences.
pub(crate) fn finite_difference(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (step, at) = (1e-5, x[i]);
            x[i] = at + step;
            let up = f(&x);
            x[i] = at - step;
            let down = f(&x);
            x[i] = at;
            (up - down) / (2.0 * step)
        })
        .collect()
}

/// Inner product, the usual scalar to differentiate a kernel's output through.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// One thread of plain instructions: what definitions are checked on, and every other processor against.
pub(crate) fn scalar() -> Cpu {
    Cpu::new(1, InstructionSet::Scalar).expect("one thread")
}

/// One and three threads of every instruction set of this machine, made once per test.
pub(crate) fn cpus() -> &'static [Cpu] {
    thread_local! {
        static CPUS: &'static [Cpu] = {
            let mut cpus = Vec::new();
            for set in InstructionSet::ALL {
                if set.is_available() {
                    cpus.extend([1, 3].map(|threads| Cpu::new(threads, set).expect("threads")));
                } else {
                    eprintln!("SKIPPED: {set} is not available on this machine");
                }
            }
            cpus.leak()
        };
    }
    CPUS.with(|cpus| *cpus)
}

/// How many elements a kernel reads and writes, in the type under test and in its wide type.
pub(crate) struct Lengths {
    pub(crate) narrow: Vec<usize>,
    pub(crate) wide: Vec<usize>,
    pub(crate) narrow_out: Vec<usize>,
    pub(crate) wide_out: Vec<usize>,
}

/// A kernel at a drawn shape.
pub(crate) trait Kernel: std::fmt::Debug {
    fn lengths(&self) -> Lengths;
    fn run<S: Storage>(
        &self,
        cpu: &Cpu,
        narrow: &[&[S]],
        wide: &[&[S::Wide]],
        narrow_out: &mut [&mut [S]],
        wide_out: &mut [&mut [S::Wide]],
    );
    /// Whether a NaN anywhere in the inputs shows in the outputs. Not if a mask may hide it.
    fn shows_nan(&self) -> bool;
    /// Whether bf16 is rounded in between on tiles: an element may then be off by more than rounding it costs, for it is
    /// a sum of rounded terms that may cancel, but an output as a whole is not. (How much an element may be off is for
    /// a test beside the kernel.)
    fn rounds_on_tiles(&self) -> bool;
}

/// Declares a test that draws shapes and runs a kernel at each: see [`check`].
macro_rules! kernel_test {
    (
        $name:ident($($shape:ident in $strategy:expr),+), shows_nan: $shows_nan:expr,
        $(rounds_on_tiles: $rounds:expr,)?
        ($($x:ident[$x_len:expr]),*; $($w:ident[$w_len:expr]),*)
            -> ($($o:ident[$o_len:expr]),*; $($p:ident[$p_len:expr]),*),
        |$cpu:ident| $run:expr
    ) => {
        #[test]
        #[allow(unused_variables, unused_mut, reason = "no kernel has operands of all four kinds")]
        fn $name() {
            #[derive(Debug, Clone, Copy)]
            struct Shape {
                $($shape: usize),+
            }
            impl Kernel for Shape {
                fn lengths(&self) -> Lengths {
                    let Shape { $($shape),+ } = *self;
                    Lengths {
                        narrow: vec![$($x_len),*],
                        wide: vec![$($w_len),*],
                        narrow_out: vec![$($o_len),*],
                        wide_out: vec![$($p_len),*],
                    }
                }
                fn run<S: Storage>(
                    &self,
                    $cpu: &Cpu,
                    x: &[&[S]],
                    w: &[&[S::Wide]],
                    o: &mut [&mut [S]],
                    p: &mut [&mut [S::Wide]],
                ) {
                    let Shape { $($shape),+ } = *self;
                    let (mut x, mut w, mut o, mut p) = (x.iter(), w.iter(), o.iter_mut(), p.iter_mut());
                    $(let $x: &[S] = x.next().unwrap();)*
                    $(let $w: &[S::Wide] = w.next().unwrap();)*
                    $(let $o: &mut [S] = o.next().unwrap();)*
                    $(let $p: &mut [S::Wide] = p.next().unwrap();)*
                    $run
                }
                fn shows_nan(&self) -> bool {
                    let Shape { $($shape),+ } = *self;
                    $shows_nan
                }
                fn rounds_on_tiles(&self) -> bool {
                    [$($rounds)?].contains(&true)
                }
            }
            let shapes = ($($strategy,)+).prop_map(|($($shape,)+)| Shape { $($shape),+ });
            $crate::testing::check_shapes(shapes);
        }
    };
}
pub(crate) use kernel_test;

/// What is done to the inputs of a drawn shape.
#[derive(Debug, Clone, Copy)]
struct Draw {
    seed: u64,
    /// Elements before the first of each slice, so that none is aligned.
    offset: usize,
    /// An input's element that is not finite: which one, counted over all inputs, and its value.
    stain: Option<(prop::sample::Index, f64)>,
}

/// Runs [`check`] on drawn shapes and inputs.
pub(crate) fn check_shapes<K: Kernel>(shapes: impl Strategy<Value = K>) {
    let stain = (any::<prop::sample::Index>(), prop::sample::select(vec![f64::NAN, f64::INFINITY]));
    let draws = (0..1000u64, 0..5usize, prop::option::weighted(0.4, stain));
    let draws = draws.prop_map(|(seed, offset, stain)| Draw { seed, offset, stain });
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(24) });
    let result = runner.run(&(shapes, draws), |(kernel, draw)| {
        check(&kernel, draw);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// A kernel on every processor and in every type agrees with itself in `f64` on plain instructions, from equal
/// inputs, gives the same bits twice, and is finite just where that is.
fn check<K: Kernel>(kernel: &K, draw: Draw) {
    check_type::<f64, K>(kernel, draw, 1e-11, 1e-11);
    check_type::<f32, K>(kernel, draw, 1e-4, 1e-4);
    check_type::<bf16, K>(kernel, draw, 8e-3, 1e-4);
    check_type::<f16, K>(kernel, draw, 1e-3, 1e-4);
}

/// The tolerances are for results in `S` and in its wide type.
fn check_type<S: Storage, K: Kernel>(kernel: &K, draw: Draw, narrow_tolerance: f64, wide_tolerance: f64) {
    let lengths = kernel.lengths();
    let total: usize = lengths.narrow.iter().chain(&lengths.wide).sum();
    let mut stain = draw.stain.filter(|_| total > 0).map(|(index, value)| (index.index(total), value));
    let mut values = |lengths: &[usize], round: fn(f64) -> f64, seed: u64| -> Vec<Vec<f64>> {
        let draw_one = |(i, &len): (usize, &usize)| {
            let mut values =
                random::<f64>(draw.seed + seed + i as u64, len).into_iter().map(round).collect::<Vec<_>>();
            match &mut stain {
                Some((at, value)) if *at < len => (values[*at], stain) = (*value, None),
                Some((at, _)) => *at -= len,
                None => {}
            }
            values
        };
        lengths.iter().enumerate().map(draw_one).collect()
    };
    let narrow = values(&lengths.narrow, |x| S::narrow(Float::from_f64(x)).widen().to_f64(), 0);
    let wide = values(&lengths.wide, |x| S::Wide::from_f64(x).to_f64(), 100);
    let expected = run_as::<f64, K>(kernel, &scalar(), draw.offset, &narrow, &wide);
    if kernel.shows_nan() && total > 0 && draw.stain.is_some_and(|(_, value)| value.is_nan()) {
        assert!(expected.iter().flatten().flatten().any(|x| x.is_nan()), "a NaN is lost");
    }
    for cpu in cpus() {
        let on_tiles =
            cpu.instruction_set() == InstructionSet::Amx && TypeId::of::<S>() == TypeId::of::<bf16>();
        let rounds = on_tiles && kernel.rounds_on_tiles();
        let actual = run_as::<S, K>(kernel, cpu, draw.offset, &narrow, &wide);
        let again = run_as::<S, K>(kernel, cpu, draw.offset, &narrow, &wide);
        let bits = |x: &[Vec<Vec<f64>>; 2]| -> Vec<u64> {
            x.iter().flatten().flatten().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(&actual), bits(&again), "not the same bits twice on {cpu:?}");
        let tolerances = [(narrow_tolerance, rounds), (wide_tolerance, false)];
        for ((actual, expected), (tolerance, rounds)) in actual.iter().zip(&expected).zip(tolerances) {
            for (output, (actual, expected)) in actual.iter().zip(expected).enumerate() {
                let finite = || actual.iter().zip(expected).filter(|(_, e)| e.is_finite());
                let error: f64 = finite().map(|(a, e)| (a - e).powi(2)).sum();
                let allowed: f64 = finite().map(|(_, e)| (tolerance * e.abs().max(1.0)).powi(2)).sum();
                let as_a_whole = rounds && error <= allowed;
                for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
                    let close = (a - e).abs() <= tolerance * e.abs().max(1.0) || as_a_whole;
                    let same = if e.is_finite() { close } else { !a.is_finite() };
                    let name = std::any::type_name::<S>();
                    assert!(same, "output {output}, element {i}: {a:e}, expected {e:e}; {name}, {cpu:?}");
                }
            }
        }
    }
}

/// The narrow and the wide outputs of a kernel, from poison, on slices that start at `offset`.
fn run_as<S: Storage, K: Kernel>(
    kernel: &K,
    cpu: &Cpu,
    offset: usize,
    narrow: &[Vec<f64>],
    wide: &[Vec<f64>],
) -> [Vec<Vec<f64>>; 2] {
    fn store<S: Storage>(values: &[f64], offset: usize) -> Vec<S> {
        let values = values.iter().map(|&x| S::narrow(Float::from_f64(x)));
        std::iter::repeat_n(S::default(), offset).chain(values).collect()
    }
    fn poison<S: Storage>(lengths: &[usize], offset: usize) -> Vec<Vec<S>> {
        let nan = S::narrow(Float::from_f64(f64::NAN));
        lengths.iter().map(|len| vec![nan; offset + len]).collect()
    }
    fn load<S: Storage>(outputs: &[Vec<S>], offset: usize) -> Vec<Vec<f64>> {
        outputs.iter().map(|out| out[offset..].iter().map(|x| x.widen().to_f64()).collect()).collect()
    }
    let lengths = kernel.lengths();
    let x: Vec<Vec<S>> = narrow.iter().map(|x| store(x, offset)).collect();
    let w: Vec<Vec<S::Wide>> = wide.iter().map(|w| store(w, offset)).collect();
    let (mut o, mut p) = (poison::<S>(&lengths.narrow_out, offset), poison(&lengths.wide_out, offset));
    kernel.run::<S>(
        cpu,
        &x.iter().map(|x| &x[offset..]).collect::<Vec<_>>(),
        &w.iter().map(|w| &w[offset..]).collect::<Vec<_>>(),
        &mut o.iter_mut().map(|o| &mut o[offset..]).collect::<Vec<_>>(),
        &mut p.iter_mut().map(|p| &mut p[offset..]).collect::<Vec<_>>(),
    );
    [load(&o, offset), load(&p, offset)]
}
