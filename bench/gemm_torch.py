#!/usr/bin/env python3
"""Matrix products by PyTorch (MKL for f32, oneDNN for bf16): gemm_torch.py f32|bf16 THREADS SECONDS M,N,K...

Each shape is a linear layer's forward product `[m, k] x [k, n]`. For it and its two backward products, prints
`| product | m | n | k | GFLOP/s |`, the median of runs over SECONDS; m, n and k are each product's own.
"""
import statistics
import sys
import time

import torch


def gflops(product, flops, seconds):
    for _ in range(2):
        product()
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        product()
        times.append(time.perf_counter() - started)
    return flops / statistics.median(times) / 1e9


def main():
    precision, threads, seconds, *shapes = sys.argv[1:]
    torch.set_num_threads(int(threads))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for shape in shapes:
        m, n, k = map(int, shape.split(","))
        x, dy = (torch.rand(m, width).to(dtype) for width in (k, n))
        w = torch.rand(n, k).to(dtype)
        y, dx, dw = (torch.empty(*size, dtype=dtype) for size in ((m, n), (m, k), (n, k)))
        for name, a, b, out, own in (
            ("forward", x, w.t(), y, (m, n, k)),
            ("backward_input", dy, w, dx, (m, k, n)),
            ("backward_weight", dy.t(), x, dw, (k, n, m)),
        ):
            speed = gflops(lambda: torch.matmul(a, b, out=out), 2 * m * n * k, float(seconds))
            print(f"| {name} | {own[0]} | {own[1]} | {own[2]} | {speed:.1f} |", flush=True)


if __name__ == "__main__":
    main()
