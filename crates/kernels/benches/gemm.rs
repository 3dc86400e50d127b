//! GFLOP/s of matrix products at the shapes of two models, beside the crate `gemm`, in alternating runs; or of one
//! precision alone, run after run, as other programs measure theirs.
//!
//! `cargo bench -p phalanx-kernels --bench gemm -- [THREADS] [small|large] [SECONDS per row] [f32|bf16]`

use half::bf16;
use phalanx_kernels::{Base, Cpu, InstructionSet, Storage, gemm, gemm_scratch_bytes};
use std::time::Instant;

/// Tokens, and the extents (input, output) of each linear layer.
type Model = (&'static str, usize, &'static [(usize, usize)]);

const MODELS: [Model; 2] = [
    ("small", 2048, &[(384, 1152), (384, 384), (384, 1536), (1536, 384), (384, 8192)]),
    ("large", 1024, &[(768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 32000)]),
];

#[derive(Clone, Copy)]
struct Product {
    name: &'static str,
    extents: [usize; 3],
    transposed: [bool; 2],
}

/// x W, dy W^T and x^T dy.
fn products(tokens: usize, input: usize, output: usize) -> [Product; 3] {
    let product = |name, extents, transposed| Product { name, extents, transposed };
    [
        product("forward", [tokens, output, input], [false, false]),
        product("backward_input", [tokens, input, output], [false, true]),
        product("backward_weight", [input, output, tokens], [true, false]),
    ]
}

/// Elements from a multiple of 64 bytes on, as an arena has them.
struct Aligned<T> {
    elements: Vec<T>,
    start: usize,
}

impl<T: Clone + Default> Aligned<T> {
    fn new(len: usize, value: impl Fn(usize) -> T) -> Self {
        let room = 64 / size_of::<T>();
        let mut elements: Vec<T> = Vec::with_capacity(len + room);
        let start = elements.as_ptr().align_offset(64);
        elements.resize(start, T::default());
        elements.extend((0..len).map(value));
        Aligned { elements, start }
    }
}

impl<T> std::ops::Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.elements[self.start..]
    }
}

impl<T> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.elements[self.start..]
    }
}

/// Operands of one product in one type, results in another.
struct Operands<S, C> {
    a: Aligned<S>,
    b: Aligned<S>,
    c: Aligned<C>,
    scratch: Aligned<u8>,
}

impl<S: Storage<Wide = f32>, C: Storage<Wide = f32>> Operands<S, C> {
    fn new([m, n, k]: [usize; 3], threads: usize) -> Self {
        let values = |len: usize| Aligned::new(len, |i| S::narrow((i % 17) as f32 / 16.0 - 0.5));
        Operands {
            a: values(m * k),
            b: values(k * n),
            c: Aligned::new(m * n, |_| C::default()),
            scratch: Aligned::new(gemm_scratch_bytes::<S>(threads, m, n, k), |_| 0),
        }
    }

    fn run(&mut self, cpu: &Cpu, product: Product) {
        let ([m, n, k], [trans_a, trans_b]) = (product.extents, product.transposed);
        let Operands { a, b, c, scratch } = self;
        gemm(cpu, m, n, k, a, trans_a, b, trans_b, c, Base::Zero, scratch);
    }
}

fn crate_gemm(cpu: &Cpu, product: Product, operands: &mut Operands<f32, f32>) {
    let ([m, n, k], [trans_a, trans_b]) = (product.extents, product.transposed);
    let (a_row, a_column) = if trans_a { (1, m) } else { (k, 1) };
    let (b_row, b_column) = if trans_b { (1, k) } else { (n, 1) };
    let threads = cpu.threads();
    let parallelism =
        if threads == 1 { ::gemm::Parallelism::None } else { ::gemm::Parallelism::Rayon(threads) };
    let (a, b, c) = (operands.a.as_ptr(), operands.b.as_ptr(), operands.c.as_mut_ptr());
    // SAFETY: the strides visit exactly the elements of the three matrices.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            n as isize,
            false,
            a,
            a_column as isize,
            a_row as isize,
            b,
            b_column as isize,
            b_row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Not a number if there are none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    // The test harness's flag for benches.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|x| x != "--bench").collect();
    let threads = arguments.first().map_or(1, |x| x.parse().expect("THREADS is a number"));
    let model = arguments.get(1).map_or("", |x| x);
    let seconds: f64 = arguments.get(2).map_or(1.0, |x| x.parse().expect("SECONDS is a number"));
    let cpu = Cpu::new(threads, InstructionSet::best()).expect("threads");
    let measured: &[usize] = match arguments.get(3).map(String::as_str) {
        None => &[0, 1, 2, 3],
        Some("f32") => &[0],
        Some("bf16") => &[2],
        Some(other) => panic!("{other} is neither f32 nor bf16"),
    };
    println!("{} with {threads} threads; GFLOP/s, medians of alternating runs", cpu.instruction_set());
    println!("| model | product | m | n | k | f32 | crate gemm | ratio | bf16 | bf16 to f32 |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, tokens, layers) in MODELS {
        if !name.contains(model) {
            continue;
        }
        for product in layers.iter().flat_map(|&(input, output)| products(tokens, input, output)) {
            let [m, n, k] = product.extents;
            let mut wide = Operands::<f32, f32>::new(product.extents, threads);
            let mut narrow = Operands::<bf16, bf16>::new(product.extents, threads);
            let mut mixed = Operands::<bf16, f32>::new(product.extents, threads);
            let mut rates = [const { Vec::new() }; 4];
            let begin = Instant::now();
            while rates[measured[0]].len() < 3 || begin.elapsed().as_secs_f64() < seconds {
                for &at in measured {
                    let mut run = || match at {
                        0 => wide.run(&cpu, product),
                        1 => crate_gemm(&cpu, product, &mut wide),
                        2 => narrow.run(&cpu, product),
                        _ => mixed.run(&cpu, product),
                    };
                    let start = Instant::now();
                    run();
                    rates[at].push(2e-9 * (m * n * k) as f64 / start.elapsed().as_secs_f64());
                }
            }
            let [own, other, narrow, mixed] = rates.map(median);
            let kind = product.name;
            println!(
                "| {name} | {kind} | {m} | {n} | {k} | {own:.1} | {other:.1} | {:.2} | {narrow:.1} | {mixed:.1} |",
                own / other
            );
        }
    }
}
