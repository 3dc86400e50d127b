#!/usr/bin/env python3
"""Trains the bench's model: train_torch.py SETTINGS f32|bf16 eager|compile THREADS

Prints one JSON line a step, as `phalanx train --metrics` does, until the bench ends it.
"""
import sys
import time

import torch

from gpt_torch import Bench


def main():
    settings, precision, mode, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    bench = Bench(settings, precision)
    optimizer = bench.optimizer()
    # The loss is compiled too: it is where a compiler can save most.
    loss_of = torch.compile(bench.loss) if mode == "compile" else bench.loss
    size = bench.settings["batch"]
    step = 0
    while True:
        started = time.perf_counter()
        tokens, targets = bench.batch(step, 0, size, size)
        loss = loss_of(bench.model, tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value, step = loss.item(), step + 1
        seconds = time.perf_counter() - started
        print(f'{{"step":{step},"loss":{value},"step_seconds":{seconds}}}', flush=True)


if __name__ == "__main__":
    main()
