#!/usr/bin/env python3
"""Trains the bench's model data-parallel over Gloo, one thread a rank: ddp_torch.py SETTINGS f32|bf16 WORLD

The settings' batch is one rank's. Rank 0 prints one JSON line a step until the bench ends all.
"""
import os
import socket
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gpt_torch import Bench


def rank_main(rank, world, port, settings, precision):
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    bench = Bench(settings, precision)
    optimizer = bench.optimizer()
    model = torch.nn.parallel.DistributedDataParallel(bench.model, gradient_as_bucket_view=True)
    size = bench.settings["batch"]
    step = 0
    while True:
        started = time.perf_counter()
        tokens, targets = bench.batch(step, rank * size, size, world * size)
        loss = bench.loss(model, tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value, step = loss.item(), step + 1
        seconds = time.perf_counter() - started
        if rank == 0:
            print(f'{{"step":{step},"loss":{value},"step_seconds":{seconds}}}', flush=True)


def main():
    settings, precision, world = sys.argv[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_main, (int(world), port, settings, precision), nprocs=int(world))


if __name__ == "__main__":
    main()
