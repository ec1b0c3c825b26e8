#!/bin/sh
# DeepSpeed 0.19.8 (torch 2.13.0): ZeRO stage 3 of a small model (0.14 million parameters), two processes on CPU.
# Expected: its buffers fit the model, since reduce_bucket_size (5e8) is documented as the number of elements reduced
#           at a time; and parameters below stage3_param_persistence_threshold, which are kept whole to save
#           communication, cost none, or one call a step for all of them.
# Seen:     1. each engine allocates the bucket in full when it is made: 2 GB in fp32, for 0.6 MB of parameters.
#           2. after each step every one of these parameters is gathered by a call of its own: 41 calls for 41 norms'
#              weights and biases. With threshold 0 one call in the forward pass gathers all parameters.
# Why it matters: small networks with many norms and biases, as for ECGs, need more memory and many more calls than
#           without partitions, where one hopes to save both; two engines (student and teacher) need it twice.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 deepspeed==0.19.8 numpy==2.4.6
cd "$folder"
cat > work.py <<'PYTHON'
import gc
import logging
import os
import sys

import torch

ZERO = {"defaults": {}, "threshold 0, bucket 200,000": {"stage3_param_persistence_threshold": 0}}
ZERO["threshold 0, bucket 200,000"]["reduce_bucket_size"] = 200_000


def held():
    """Bytes of all tensors that are alive"""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


def calls(do):
    """(all-gathers of `do`, its result)"""
    with torch.profiler.profile() as profile:
        result = do()
    return sum(event.count for event in profile.key_averages() if "allgather" in event.key), result


def train(deepspeed, zero):
    """(bytes of parameters, bytes that the engine holds, all-gathers in forward, backward and step)"""
    before = held()
    model = torch.nn.Sequential(*[torch.nn.LayerNorm(256) for _ in range(20)], torch.nn.Linear(256, 512))
    size = sum(parameter.nbytes for parameter in model.parameters())
    config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3, **zero}}
    config |= {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
    optimizer = torch.optim.AdamW(model.parameters())
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    after = held() - before
    for _ in range(3):  # the first pass only records the order of layers
        forward, loss = calls(lambda: engine(torch.randn(4, 256)).square().mean())
        backward, _ = calls(lambda: engine.backward(loss))
        step, _ = calls(engine.step)
    return size, after, forward, backward, step


def work(rank, queue):
    import deepspeed

    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29650"}
    logging.disable(logging.CRITICAL)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # nothing to compile
    deepspeed.init_distributed("gloo")
    seen = [train(deepspeed, zero) for zero in ZERO.values()]
    if rank == 0:
        queue.put((deepspeed.__version__, seen))
    torch.distributed.barrier()


if __name__ == "__main__":
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(work, (queue,), nprocs=2)
    version, seen = queue.get()
    print(f"deepspeed {version}, torch {torch.__version__}")
    print("expected: some MB held; at most one all-gather in forward, backward and step each")
    for name, (size, after, *gathers) in zip(ZERO, seen):
        print(f"{name}: parameters {size / 1e6:.2f} MB, held {after / 1e6:.1f} MB, all-gathers {gathers}")
    default, small = seen
    as_seen = default[1] >= 2e9 and default[4] == 41 and small[1] < 1e7 and sum(small[2:]) <= 3
    sys.exit(0 if as_seen else "this has changed")
PYTHON
"$folder/venv/bin/python" -W ignore work.py 2>"$folder/log" || { tail -n 5 "$folder/log"; exit 1; }
