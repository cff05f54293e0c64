"""`python -m megatron_moe_grpo.testing.chaos --kills 20`: a run is disturbed again and again, and must end as another
one that was left alone: the same bytes in its last checkpoint and in metrics.jsonl.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_moe_grpo.testing.accidents import ACCIDENTS, FULL_DISK
from megatron_moe_grpo.testing.tiny_job import SAVE_EVERY, TinyJob, make_model_and_rows, tiny_job
from megatron_moe_grpo.testing.victim import Victim, checkpoints, steps_done
from megatron_moe_grpo.training.console import summary_table

# Half of a shard of the tiny model: metrics.jsonl fits, a checkpoint does not.
FULL_DISK_BYTES = 100_000
STEPS_AN_ACCIDENT = 4
SAVES_HIT = 4  # One accident in four is a kill inside a save.


@dataclass(frozen=True)
class Event:
    """One disturbed start of the run."""

    kind: str
    place: str
    exit_code: int
    status: str
    steps_lost: int
    """Steps that have to be done again."""
    seconds_to_first_step: float | None
    """From the start of the command; None: it came to none."""

    @property
    def has_hit(self) -> bool:
        """False if the run ended well all the same."""
        return self.exit_code != 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if the disturbed run ended as the other one."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m megatron_moe_grpo.testing.chaos")
    parser.add_argument("--kills", type=int, default=20, help="accidents (default 20: about ten minutes)")
    parser.add_argument("--seed", type=int, default=0, help="which accidents, and when they strike")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    parser.add_argument("--out", type=Path, help="folder to keep everything in; must not exist (default: none kept)")
    parser.add_argument("--json", type=Path, help="also write the events and the verdict here")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.out or Path(temporary) / "chaos"
        folder.mkdir(parents=True)
        events, digests = trial(folder, chosen.kills, chosen.seed, chosen.processes)
    is_same = len(set(digests.values())) == 1
    print(f"\n{_table(events)}\n")
    for name, digest in digests.items():
        print(f"sha256 of checkpoint and metrics, {name}: {digest}")
    missed = sum(not event.has_hit for event in events)
    print(f"{len(events) - missed} of {len(events)} accidents hit the run")
    print("the same" if is_same else f"DIFFERENT: replay with --seed {chosen.seed} --out FOLDER")
    if chosen.json is not None:
        facts = {"same": is_same, "digests": digests, "events": [asdict(event) for event in events]}
        chosen.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0 if is_same else 1


def trial(folder: Path, num_accidents: int, seed: int, num_processes: int) -> tuple[list[Event], dict[str, str]]:
    """Both runs; returns the accidents, and each run's digest."""
    num_steps = 6 + STEPS_AN_ACCIDENT * num_accidents
    make_model_and_rows(folder)
    alone = tiny_job(folder, "alone", num_steps, num_processes)
    _finish(alone, folder / "alone.log")
    print(f"{num_steps} steps left alone: done; the same run with {num_accidents} accidents, seed {seed}", flush=True)
    disturbed, chance = tiny_job(folder, "disturbed", num_steps, num_processes), random.Random(seed)
    events = []
    for number, kind in enumerate(_kinds(num_accidents, chance)):
        events.append(_strike(disturbed, kind, chance, folder / f"disturbed_{number:03d}.log"))
        print(f"{number + 1:3d}  {_line(events[-1])}", flush=True)
    _finish(disturbed, folder / "disturbed_last.log")
    return events, {"left alone": digest_of(alone.run), "disturbed": digest_of(disturbed.run)}


def digest_of(run: Path) -> str:
    """SHA-256 over metrics.jsonl and what the last checkpoint holds: weights, optimizer, state."""
    newest = checkpoints(run)[-1]
    files = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))["files"]
    digest = hashlib.sha256((run / "metrics.jsonl").read_bytes())
    for name in sorted(files):
        if name.endswith((".distcp", "state.json")):
            digest.update(f"{name} {files[name]['sha256']}\n".encode())
    return digest.hexdigest()


def _kinds(num_accidents: int, chance: random.Random) -> list[str]:
    """A quarter are kills inside a save, the others take turns; in random order."""
    others = [kind for kind in (*ACCIDENTS, FULL_DISK) if kind != "kill in a save"]
    num_saves = max(1, num_accidents // SAVES_HIT)
    kinds = ["kill in a save"] * num_saves
    kinds += [others[number % len(others)] for number in range(num_accidents - num_saves)]
    chance.shuffle(kinds)
    return kinds


def _strike(job: TinyJob, kind: str, chance: random.Random, log: Path) -> Event:
    victim = Victim(job, log, FULL_DISK_BYTES if kind == FULL_DISK else None)
    place = "at the next save" if kind == FULL_DISK else ACCIDENTS[kind](victim, chance)
    exit_code = victim.wait()
    saved = [int(path.name.removeprefix("step_")) for path in checkpoints(job.run)]
    lost = steps_done(job.run) - max(saved, default=0)
    if kind in ("flipped byte", "truncated file"):
        lost += SAVE_EVERY
    return Event(kind, place, exit_code, victim.status(), lost, victim.seconds_to_first_step)


def _finish(job: TinyJob, log: Path) -> None:
    victim = Victim(job, log)
    if victim.wait() != 0:
        raise SystemExit(f"the run does not end well:\n{victim.output()[-3000:]}")


def _line(event: Event) -> str:
    seconds = "-" if event.seconds_to_first_step is None else f"{event.seconds_to_first_step:.1f} s"
    return (
        f"{event.kind:16} {event.place:44} exit {event.exit_code:3d}  {event.status or 'no status':9} "
        f"{event.steps_lost} steps lost, first step after {seconds}"
    )


def _table(events: Sequence[Event]) -> str:
    rows = []
    for kind in dict.fromkeys(event.kind for event in events):
        those = [event for event in events if event.kind == kind]
        seconds = [event.seconds_to_first_step for event in those if event.seconds_to_first_step is not None]
        lost = max(event.steps_lost for event in those)
        hits = sum(event.has_hit for event in those)
        rows.append((kind, len(those), hits, lost, max(seconds) if seconds else None))
    return summary_table(rows, ("accident", "count", "hit", "most steps lost", "slowest first step, s"))


if __name__ == "__main__":
    sys.exit(main())
