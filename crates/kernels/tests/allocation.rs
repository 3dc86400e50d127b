//! Kernels allocate nothing: a counting allocator watches every entry point but `gemm`, whose
//! engine allocates and says so.

use phalanx_kernels::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: forwards to the system allocator; counting touches only a thread-local integer that needs
// neither allocation nor destruction.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn kernels_allocate_nothing() {
    let (rows, width) = (6, 10);
    let len = rows * width;
    let (a, b): (Vec<f32>, Vec<f32>) = (vec![0.5; len], vec![0.25; len]);
    let mut out: [Vec<f32>; 3] = [vec![0.0; len], vec![0.0; len], vec![0.0; len]];
    let [x, y, z] = &mut out;
    let index: Vec<u32> = (0..width as u32).collect();
    let ids = vec![1_i32; rows];
    let cpu = Cpu::single();
    let mut half = vec![half::bf16::ZERO; len];
    let key = Key::new(1, 2, "allocation");
    let shape = AttentionShape {
        batch: 1,
        q_len: rows,
        k_len: rows,
        kv_heads: 1,
        group: 1,
        head_dim: width,
        q_index: &index[..rows],
        k_index: &index[..rows],
        k_size: rows,
        causal: true,
        scale: 0.3,
        dropout: None,
    };
    let (table, bias_rows) = ([0.5, 0.25, 0.125], [0, 1, 2]);
    let bias = RelativeBias { table: &table, rows: &bias_rows };
    let mut d_table = [0.0; 3];
    let mut scratch = vec![0.0; relative_attention_scratch(&shape, 3, 3, 1)];
    let adam_step = AdamStep {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.9,
        eps: 1e-8,
        weight_decay: 0.0,
        bias_correction1: 0.1,
        bias_correction2: 0.1,
        l2: false,
    };
    let sgd_step = SgdStep { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.0 };
    let (column, row) = (&a[..rows], &a[..width]);

    let before = ALLOCATIONS.get();
    add(&cpu, &a, &b, x);
    add_bias(&cpu, &a, row, x);
    accumulate(&cpu, &a, x);
    cast(&cpu, &a, &mut half);
    sum(&cpu, &a, 2, 3, width, &mut x[..2 * width]);
    weighted_sum(&cpu, &a, column, 1, rows, width, &mut x[..width]);
    spread(&cpu, row, column, 1, rows, width, x);
    std::hint::black_box(sum_squares(&cpu, &a));
    pack(&cpu, &a, 2, 3, width, x);
    unpack(&cpu, &a, 2, 3, width, x);
    gelu(&cpu, &a, x);
    gelu_backward(&cpu, &a, &b, x);
    swiglu(&cpu, &a, &b, x);
    swiglu_backward(&cpu, &a, &b, &a, x, y);
    for kind in [NormKind::Layer, NormKind::Rms] {
        norm_forward(&cpu, kind, 1e-5, &a, row, Some(row), x);
        add_norm_forward(&cpu, kind, 1e-5, &a, &b, row, None, x, y);
        norm_backward_input(&cpu, kind, 1e-5, &a, row, &b, x);
        norm_backward_weight(&cpu, kind, 1e-5, &a, &b, &mut x[..width]);
    }
    embedding_forward(&cpu, &ids, &index, &a, width, x);
    embedding_backward(&cpu, &ids, &index, &a, width, x);
    rotary(&cpu, &a, &ids, 1, &[1.0, 0.5, 0.25, 0.125, 0.0625], 1.0, false, x);
    pointwise(&cpu, PointwiseKind::GeluErf, &a, x);
    pointwise_backward(&cpu, PointwiseKind::GeluErf, &a, &b, x);
    multiply(&cpu, &a, &b, x);
    dropout(&cpu, &a, x, 0.5, &key, |row| (row * width) as u64, &index);
    normal_fill(&cpu, &key, 3, 0.1, x);
    row_max(&cpu, &a, &index, width, &mut x[..rows]);
    sum_exp(&cpu, &a, column, &ids, &index, &index, width, &mut x[..rows], &mut y[..rows]);
    token_loss(&cpu, column, column, column, column, &mut x[..rows]);
    token_loss_backward(&cpu, column, column, column, &mut x[..rows], &mut y[..rows]);
    sum_exp_backward(&cpu, x, column, &ids, &index, &index, width, column, column);
    adam_with_copy(&cpu, &adam_step, 1.0, x, &a, y, z, Some(&mut half));
    sgd_with_copy(&cpu, &sgd_step, 1.0, x, &a, y, Some(&mut half));
    adam_in_place(&cpu, &adam_step, 1.0, x, &a, y, z);
    sgd_in_place(&cpu, &sgd_step, 1.0, x, &a, y);
    attention_forward(&cpu, &shape, &a, &b, &a, x, &mut y[..rows], &mut scratch);
    attention_backward(&cpu, &shape, &a, &b, &a, &b, column, &a, x, y, z, &mut scratch);
    relative_attention_forward(&cpu, &shape, &bias, &a, &b, &a, x, &mut y[..rows], &mut scratch);
    let d_table = &mut d_table[..];
    relative_attention_backward(
        &cpu,
        &shape,
        &bias,
        &a,
        &b,
        &a,
        &b,
        column,
        &a,
        x,
        y,
        z,
        d_table,
        &mut scratch,
    );
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
