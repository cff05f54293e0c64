"""A rank that waits for the other one in a collective, for ever, under a hang watch: stuck_worker.py FOLDER."""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_moe_grpo.training.hang_watch import HangWatch

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
watch = HangWatch(3.0, folder / "stacks", dist.get_rank())
watch.on_hang = lambda reason: (folder / f"hung_{dist.get_rank()}").write_text(reason, encoding="utf-8")
with watch.watching():
    watch.beat("rollout")
    dist.barrier()
    if dist.get_rank() == 1:
        (folder / "stopped").touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.zeros(1))
