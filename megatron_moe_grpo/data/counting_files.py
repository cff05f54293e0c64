"""The counting questions as files: the scenes of `counting_scenes.py` in the layout of `drawn_questions.py`."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from megatron_moe_grpo.data.counting_picture import draw_things
from megatron_moe_grpo.data.counting_scenes import WORLDS, CountingSettings, Scene, SplitName, WorldName, make_scenes
from megatron_moe_grpo.data.drawn_questions import DrawnQuestion, write_drawn_set
from megatron_moe_grpo.errors import DataError

DEFAULT_SIDE = 64
LEAST_SIDE = 32


def write_counting(
    out: Path,
    counts: dict[SplitName, int],
    seed: int,
    settings: CountingSettings | None = None,
    side: int = DEFAULT_SIDE,
    on_drawn: Callable[[], object] = lambda: None,
) -> None:
    """Writes every split of both worlds; the same arguments give the same bytes.

    Args:
        counts: questions of each split, in each world; the pretrain split is made for the clear world alone.
        side: of the pictures, pixels.
        on_drawn: called after every picture (for a progress bar).
    Raises:
        DataError: `out` exists, or settings, counts or a side that cannot be.
    """
    settings = settings or CountingSettings()
    if side < LEAST_SIDE or min(counts.values(), default=0) < 1:
        raise DataError(
            "counts or side cannot be used",
            got=f"{counts}, side {side}",
            expected=f"a question at least in each split, pictures of {LEAST_SIDE} pixels at least",
        )
    worlds: tuple[WorldName, ...] = ("clear", "shifted")
    splits = {
        (world, split): _questions(make_scenes(split, count, seed, world, settings), world, side, on_drawn)
        for world in worlds
        for split, count in counts.items()
        if world == "clear" or split != "pretrain"
    }
    write_drawn_set(out, splits, {"task": "counting", "seed": seed, "side": side, **asdict(settings)})


def _questions(
    scenes: list[Scene], world: WorldName, side: int, on_drawn: Callable[[], object]
) -> Iterator[DrawnQuestion]:
    for scene in scenes:
        yield DrawnQuestion(
            picture=draw_things(scene.things, side, WORLDS[world].brightness),
            problem=scene.wanted.problem,
            solution=str(scene.count),
            problem_type="counting",
            rationale=scene.rationale,
            options=tuple(str(option) for option in scene.options),
        )
        on_drawn()
