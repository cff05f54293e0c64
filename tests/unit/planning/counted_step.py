"""One rank of a real step whose collectives are counted: `torchrun ... counted_step.py OUT`.

torch.distributed's functions are wrapped from outside, before anything of Megatron is imported and keeps them.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

# Function -> the argument that holds what a rank passes in.
INPUTS = {
    "all_reduce": ("all-reduce", "tensor", 0),
    "all_gather_into_tensor": ("all-gather", "input_tensor", 1),
    "all_gather": ("all-gather", "tensor", 1),
    "reduce_scatter_tensor": ("reduce-scatter", "input", 1),
    "reduce_scatter": ("reduce-scatter", "input_list", 1),
    "all_to_all_single": ("all-to-all", "input", 1),
    "send": ("send", "tensor", 0),
    "broadcast": ("broadcast", "tensor", 0),
}


class Counted:
    """Bytes passed to collectives of more than one rank, by phase and kind."""

    def __init__(self) -> None:
        self.phase = ""
        self.num_bytes: Counter[str] = Counter()
        self._is_inside = False

    def wrap(self, name: str) -> None:
        """Puts a counting function into the place of one of torch.distributed's."""
        function, (kind, argument, place) = vars(dist)[name], INPUTS[name]

        def counting(*arguments: Any, **named: Any) -> Any:
            # Some are made of others.
            if self._is_inside:
                return function(*arguments, **named)
            self._is_inside = True
            try:
                if dist.get_world_size(named.get("group")) > 1:
                    given = named[argument] if argument in named else arguments[place]
                    tensors = given if isinstance(given, list) else [given]
                    self.num_bytes[f"{self.phase}: {kind}"] += sum(tensor.nbytes for tensor in tensors)
                return function(*arguments, **named)
            finally:
                self._is_inside = False

        setattr(dist, name, counting)

    def wrap_pairs(self) -> None:
        """Sends between pipeline stages, which Megatron hands over in lists."""
        function = dist.batch_isend_irecv

        def counting(operations: list) -> Any:
            sent = [operation for operation in operations if operation.op is dist.isend]
            self.num_bytes[f"{self.phase}: send"] += sum(operation.tensor.nbytes for operation in sent)
            return function(operations)

        dist.batch_isend_irecv = counting


def count_cases(counted: Counted, out: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Every case's bytes and kept activations, one file a rank."""
    from saved_tensors import counting_saved_bytes
    from small_run import small_run

    from megatron_moe_grpo.mcore.parallel import start_parallel, stop_parallel

    found = {}
    for name, case in cases.items():
        run = small_run(out / case["folder"], **case["settings"])
        # A store of its own for each case: process groups of different layouts would meet in one.
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = f"file://{out.resolve()}/{name}.store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
        layout = start_parallel(run.config.parallel, seed=0)
        counted.num_bytes.clear()
        counted.phase = "start"
        trained = run.build(layout)
        counted.phase = "rollout"
        rollouts = run.roll_out(trained.module, layout)
        counted.phase = "update"
        with counting_saved_bytes(trained.module) as saved:
            run.accumulate(trained, layout, rollouts)
        trained.optimizer.step()
        found[name] = {"stage": layout.pipeline_rank, "saved": saved.most, "bytes": dict(counted.num_bytes)}
        stop_parallel()
    (out / f"rank_{os.environ['RANK']}.json").write_text(json.dumps(found))


def main(work: Callable[[Counted, Path, dict], None]) -> None:
    """Wraps, then works."""
    counted = Counted()
    for name in INPUTS:
        counted.wrap(name)
    counted.wrap_pairs()
    out = Path(sys.argv[1])
    work(counted, out, json.loads((out / "cases.json").read_text()))


if __name__ == "__main__":
    main(count_cases)
