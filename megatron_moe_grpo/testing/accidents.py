"""What can happen to a run, one function each: it strikes a run that is under way, and returns where it hit."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from megatron_moe_grpo.testing.victim import Victim, checkpoints, is_saving, steps_done

Accident = Callable[[Victim, random.Random], str]
LONGEST_STEP_S, LONGEST_SAVE_S = 0.3, 0.15
MOST_STEPS_BETWEEN = 5


def kill_anywhere(victim: Victim, chance: random.Random) -> str:
    """SIGKILL to all processes at a random moment between two steps."""
    if _some_steps(victim, chance):
        victim.kill()
    return _place(victim)


def kill_inside_a_save(victim: Victim, chance: random.Random) -> str:
    """SIGKILL to all processes while a checkpoint is written."""
    if victim.wait_until(lambda: is_saving(victim.job.run)):
        time.sleep(chance.uniform(0, LONGEST_SAVE_S))
        hit = is_saving(victim.job.run)
        victim.kill()
        return "inside a save" if hit else "just after a save"
    return _place(victim)


def kill_one_process(victim: Victim, chance: random.Random) -> str:
    """SIGKILL to one worker; the launcher ends the others."""
    if _some_steps(victim, chance):
        chance.choice(victim.workers()).kill()
    return _place(victim)


def ask_to_stop(victim: Victim, chance: random.Random) -> str:
    """TERM, INT or USR1 to one worker."""
    number = chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    if _some_steps(victim, chance):
        chance.choice(victim.workers()).send_signal(number)
    return f"{_place(victim)}, {number.name}"


def freeze_one_process(victim: Victim, chance: random.Random) -> str:
    """SIGSTOP to one worker; the others have to notice.  Alone, nobody can: then it is killed, as its owner would."""
    if _some_steps(victim, chance):
        worker = chance.choice(victim.workers())
        worker.suspend()
        if victim.job.num_processes == 1:
            victim.kill()
    return _place(victim)


def flip_a_byte(victim: Victim, chance: random.Random) -> str:
    """One byte of the newest checkpoint changes while no run is there."""
    return _damage(victim, chance, _flip)


def truncate_a_file(victim: Victim, chance: random.Random) -> str:
    """A file of the newest checkpoint loses its end while no run is there."""
    return _damage(victim, chance, _truncate)


def _some_steps(victim: Victim, chance: random.Random) -> bool:
    """Lets the run do a few steps, and a part of one; False if it ended before."""
    goal = steps_done(victim.job.run) + chance.randint(1, MOST_STEPS_BETWEEN)
    is_alive = victim.wait_until(lambda: steps_done(victim.job.run) >= goal)
    if is_alive:
        time.sleep(chance.uniform(0, LONGEST_STEP_S))
    return is_alive and all(psutil.pid_exists(worker.pid) for worker in victim.workers())


def _damage(victim: Victim, chance: random.Random, change: Callable[[Path, random.Random], None]) -> str:
    enough = 2
    if not victim.wait_until(lambda: len(checkpoints(victim.job.run)) >= enough):
        return _place(victim)
    victim.kill()
    victim.wait()
    newest = checkpoints(victim.job.run)[-1]
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 0)
    hit = chance.choice(files)
    change(hit, chance)
    return f"{newest.name}/{hit.relative_to(newest)}"


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _place(victim: Victim) -> str:
    return f"after step {steps_done(victim.job.run)}"


ACCIDENTS: dict[str, Accident] = {
    "kill": kill_anywhere,
    "kill in a save": kill_inside_a_save,
    "kill one process": kill_one_process,
    "stop signal": ask_to_stop,
    "freeze": freeze_one_process,
    "flipped byte": flip_a_byte,
    "truncated file": truncate_a_file,
}
FULL_DISK = "full disk"
"""Not an accident that strikes: the run is started with it."""
