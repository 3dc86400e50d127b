//! GB/s (or GFLOP/s, for attention; elements, for random numbers) of every kernel but the matrix product, in each type, at the shapes of a
//! small model.
//!
//! `cargo bench -p phalanx-kernels --bench fused -- [THREADS] [PART OF A NAME]`
//!
//! Bytes are what the kernel must read and write; a sum written in place counts twice.

use half::{bf16, f16};
use phalanx_kernels::*;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

/// Tokens, width of the residual, of the feed-forward layer, and of the vocabulary.
const ROWS: usize = 2048;
const WIDTH: usize = 384;
const HIDDEN: usize = 1536;
const VOCAB: usize = 8192;
const PARAMETERS: usize = 1 << 22;
const SECONDS: f64 = 0.2;

const ADAM: AdamStep = AdamStep {
    lr: 1e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    bias_correction1: 0.5,
    bias_correction2: 0.5,
    l2: false,
};

struct Bench {
    cpu: Cpu,
    filter: String,
    of: &'static str,
}

impl Bench {
    /// Prints the median rate of `work`, which moves (or computes) `amount`.
    fn time(&self, name: &str, amount: usize, mut work: impl FnMut(&Cpu)) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut seconds = Vec::new();
        let start = Instant::now();
        work(&self.cpu);
        while start.elapsed().as_secs_f64() < SECONDS || seconds.len() < 5 {
            let start = Instant::now();
            work(&self.cpu);
            seconds.push(start.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        let rate = amount as f64 * 1e-9 / median;
        println!("{:<5} {name:<34} {:>9.3} ms {rate:>8.2} G/s", self.of, median * 1e3);
    }
}

/// Elements that start at a cache line, as the buffers of a run do.
struct Aligned<S> {
    buffer: Vec<S>,
    start: usize,
}

impl<S> Deref for Aligned<S> {
    type Target = [S];

    fn deref(&self) -> &[S] {
        &self.buffer[self.start..self.buffer.len() - (64 - self.start)]
    }
}

impl<S> DerefMut for Aligned<S> {
    fn deref_mut(&mut self) -> &mut [S] {
        let end = self.buffer.len() - (64 - self.start);
        &mut self.buffer[self.start..end]
    }
}

/// Values between -2 and 2.
fn values<S: Storage>(len: usize) -> Aligned<S> {
    let key = Key::new(1, 1, "bench");
    let period: Vec<f64> = (0..4099).map(|i| key.uniform(i) * 4.0 - 2.0).collect();
    let buffer = vec![S::default(); len + 64];
    let mut values = Aligned { start: buffer.as_ptr().align_offset(64), buffer };
    for (i, x) in values.iter_mut().enumerate() {
        *x = S::narrow(S::Wide::from_f64(period[i % period.len()]));
    }
    values
}

fn elementwise<S: Storage<Wide = f32>>(bench: &Bench) {
    let size = size_of::<S>();
    let len = ROWS * WIDTH;
    let (a, b, wide) = (values::<S>(len), values::<S>(len), values::<f32>(len));
    let (mut x, mut y) = (values::<S>(len), values::<S>(len));
    let (gain, mut d_gain) = (values::<f32>(WIDTH), values::<f32>(WIDTH));
    bench.time("add", 3 * len * size, |cpu| add(cpu, &a, &b, &mut x));
    bench.time("add_bias", 2 * len * size, |cpu| add_bias(cpu, &a, &gain, &mut x));
    bench.time("accumulate", 3 * len * size, |cpu| accumulate(cpu, &a, &mut x));
    bench.time("cast", len * (4 + size), |cpu| cast(cpu, &wide, &mut x));
    bench.time("pack", 2 * len * size, |cpu| pack(cpu, &a, ROWS, 2, WIDTH / 2, &mut x));
    for (name, kind, bias) in [("layer", NormKind::Layer, Some(&gain[..])), ("rms", NormKind::Rms, None)] {
        bench.time(&format!("norm {name}"), 2 * len * size, |cpu| {
            norm_forward(cpu, kind, 1e-5, &a, &gain, bias, &mut x);
        });
        bench.time(&format!("add_norm {name}"), 4 * len * size, |cpu| {
            add_norm_forward(cpu, kind, 1e-5, &a, &b, &gain, bias, &mut x, &mut y);
        });
        bench.time(&format!("norm_input {name}"), 3 * len * size, |cpu| {
            norm_backward_input(cpu, kind, 1e-5, &a, &gain, &b, &mut x);
        });
        bench.time(&format!("norm_weight {name}"), 2 * len * size, |cpu| {
            norm_backward_weight(cpu, kind, 1e-5, &a, &b, &mut d_gain);
        });
    }
    let positions: Vec<i32> = (0..ROWS as i32).collect();
    let frequencies: Vec<f64> = (0..32).map(|i| 1e4f64.powf(-f64::from(i) / 32.0)).collect();
    bench.time("rotary", 2 * len * size, |cpu| {
        rotary(cpu, &a, &positions, 6, &frequencies, 1.0, false, &mut x)
    });
    let (key, inner) = (Key::new(1, 2, "mask"), (0..WIDTH as u32).collect::<Vec<_>>());
    bench.time("dropout", 2 * len * size, |cpu| {
        dropout(cpu, &a, &mut x, 0.1, &key, |row| (row * WIDTH) as u64, &inner);
    });
    bench.time("sum", len * size, |cpu| sum(cpu, &a, 1, ROWS, WIDTH, &mut d_gain));
    bench.time("sum_squares", len * size, |cpu| {
        std::hint::black_box(sum_squares(cpu, &a));
    });
    let ids: Vec<i32> = (0..ROWS as i32).map(|i| (i * i) % VOCAB as i32).collect();
    let local_row: Vec<u32> = (0..VOCAB as u32).collect();
    let (table, mut d_table) = (values::<S>(VOCAB * WIDTH), values::<f32>(VOCAB * WIDTH));
    bench.time("embedding", 2 * len * size, |cpu| {
        embedding_forward(cpu, &ids, &local_row, &table, WIDTH, &mut x);
    });
    bench.time("embedding_backward", len * (size + 8) + d_table.len() * 4, |cpu| {
        embedding_backward(cpu, &ids, &local_row, &a, WIDTH, &mut d_table);
    });
}

fn random(bench: &Bench) {
    let (key, mut x) = (Key::new(1, 0, "bench"), values::<f32>(PARAMETERS));
    bench.time("normal_fill", PARAMETERS, |cpu| normal_fill(cpu, &key, 0, 0.02, &mut x));
}

fn activations<S: Storage<Wide = f32>>(bench: &Bench) {
    let size = size_of::<S>();
    let len = ROWS * HIDDEN;
    let (a, b, c) = (values::<S>(len), values::<S>(len), values::<S>(len));
    let (mut x, mut y) = (values::<S>(len), values::<S>(len));
    bench.time("gelu", 2 * len * size, |cpu| gelu(cpu, &a, &mut x));
    bench.time("gelu_backward", 3 * len * size, |cpu| gelu_backward(cpu, &a, &b, &mut x));
    bench.time("swiglu", 3 * len * size, |cpu| swiglu(cpu, &a, &b, &mut x));
    bench.time("swiglu_backward", 5 * len * size, |cpu| swiglu_backward(cpu, &a, &b, &c, &mut x, &mut y));
}

fn loss<S: Storage<Wide = f32>>(bench: &Bench) {
    let bytes = ROWS * VOCAB * size_of::<S>();
    let logits = values::<S>(ROWS * VOCAB);
    let mut d_logits = values::<S>(ROWS * VOCAB);
    let ids: Vec<i32> = (0..ROWS as i32).collect();
    let index: Vec<u32> = (0..VOCAB as u32).collect();
    let [mut max, mut sums, mut target] = [(); 3].map(|()| values::<f32>(ROWS));
    bench.time("row_max", bytes, |cpu| row_max(cpu, &logits, &index, VOCAB, &mut max));
    bench.time("sum_exp", bytes, |cpu| {
        sum_exp(cpu, &logits, &max, &ids, &index, &index, VOCAB, &mut sums, &mut target);
    });
    bench.time("sum_exp_backward", 2 * bytes, |cpu| {
        sum_exp_backward(cpu, &mut d_logits, &max, &ids, &index, &index, VOCAB, &sums, &target);
    });
}

/// Operations are the products alone, of the keys that are seen: 2 products forward, 5 backward.
fn attention<S: Storage<Wide = f32>>(bench: &Bench) {
    for (batch, len, heads, head_dim) in [
        (8, 256, 6, 64),
        (4, 256, 12, 64),
        (1, 64, 6, 64),
        (1, 1024, 6, 64),
        (1, 2048, 6, 64),
        (8, 256, 6, 32),
        (8, 256, 6, 80),
        (8, 256, 6, 128),
    ] {
        attention_at::<S>(bench, [batch, len, heads, head_dim]);
    }
}

fn attention_at<S: Storage<Wide = f32>>(bench: &Bench, [batch, len, heads, head_dim]: [usize; 4]) {
    let index: Vec<u32> = (0..len as u32).collect();
    let shape = AttentionShape {
        batch,
        q_len: len,
        k_len: len,
        kv_heads: heads,
        group: 1,
        head_dim,
        q_index: &index,
        k_index: &index,
        k_size: len,
        causal: true,
        scale: 1.0 / (head_dim as f64).sqrt(),
        dropout: None,
    };
    let elements = batch * len * heads * head_dim;
    let [q, k, v, d_o] = [(); 4].map(|()| values::<S>(elements));
    let [mut o, mut dq, mut dk, mut dv] = [(); 4].map(|()| values::<S>(elements));
    let mut lse = values::<f32>(batch * len * heads);
    let mut scratch = vec![0.0; attention_scratch(&shape, bench.cpu.threads())];
    let product = batch * heads * (len * (len + 1) / 2) * head_dim * 2;
    let name = |pass: &str| format!("{pass} {batch}x{len}x{heads}x{head_dim}");
    bench.time(&name("attention"), 2 * product, |cpu| {
        attention_forward(cpu, &shape, &q, &k, &v, &mut o, &mut lse, &mut scratch);
    });
    bench.time(&name("attention_backward"), 5 * product, |cpu| {
        attention_backward(cpu, &shape, &q, &k, &v, &o, &lse, &d_o, &mut dq, &mut dk, &mut dv, &mut scratch);
    });
    let buckets = RelativeBuckets { num: 32, max_distance: 128, bidirectional: false };
    let (table, rows) = (values::<f32>(32 * heads), buckets.rows(len));
    let bias = RelativeBias { table: &table, rows: &rows };
    let mut d_table = values::<f32>(32 * heads);
    let mut scratch = vec![0.0; relative_attention_scratch(&shape, 32, rows.len(), bench.cpu.threads())];
    bench.time(&name("relative_attention"), 2 * product, |cpu| {
        relative_attention_forward(cpu, &shape, &bias, &q, &k, &v, &mut o, &mut lse, &mut scratch);
    });
    bench.time(&name("relative_attention_backward"), 5 * product, |cpu| {
        relative_attention_backward(
            cpu,
            &shape,
            &bias,
            &q,
            &k,
            &v,
            &o,
            &lse,
            &d_o,
            &mut dq,
            &mut dk,
            &mut dv,
            &mut d_table,
            &mut scratch,
        );
    });
}

fn optimizers<S: Storage<Wide = f32>>(bench: &Bench) {
    let [mut p, mut g, mut m, mut v] = [(); 4].map(|()| values::<f32>(PARAMETERS));
    v.iter_mut().chain(g.iter_mut()).for_each(|x| *x = x.abs());
    let mut copy = values::<S>(PARAMETERS);
    let size = size_of::<S>();
    bench.time("adam", PARAMETERS * 28, |cpu| adam_in_place(cpu, &ADAM, 1.0, &mut p, &g, &mut m, &mut v));
    bench.time("adam_with_copy", PARAMETERS * (28 + size), |cpu| {
        adam_with_copy(cpu, &ADAM, 1.0, &mut p, &g, &mut m, &mut v, Some(&mut copy));
    });
    let sgd = SgdStep { lr: 1e-3, momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    bench.time("sgd_with_copy", PARAMETERS * (20 + size), |cpu| {
        sgd_with_copy(cpu, &sgd, 1.0, &mut p, &g, &mut m, Some(&mut copy));
    });
}

fn all<S: Storage<Wide = f32>>(cpu: &Cpu, filter: &str, of: &'static str) {
    let bench = Bench { cpu: cpu.clone(), filter: filter.to_owned(), of };
    elementwise::<S>(&bench);
    activations::<S>(&bench);
    loss::<S>(&bench);
    attention::<S>(&bench);
    optimizers::<S>(&bench);
}

fn main() {
    // `cargo bench` adds a flag of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let threads = args.first().map_or(1, |arg| arg.parse().expect("a number of threads"));
    let filter = args.get(1).map_or("", String::as_str);
    let cpu = Cpu::new(threads, InstructionSet::best()).expect("threads");
    println!("{threads} threads, {}", cpu.instruction_set());
    random(&Bench { cpu: cpu.clone(), filter: filter.to_owned(), of: "f32" });
    all::<f32>(&cpu, filter, "f32");
    all::<bf16>(&cpu, filter, "bf16");
    all::<f16>(&cpu, filter, "f16");
}
