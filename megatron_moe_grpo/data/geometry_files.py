"""The geometry questions as files: the figures of `geometry_figures.py` in the layout of `drawn_questions.py`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_moe_grpo.data.cameras import CAMERAS, CameraName
from megatron_moe_grpo.data.drawn_questions import DrawnQuestion, write_drawn_set
from megatron_moe_grpo.data.geometry_figures import KINDS, Figure, FigureKind, SplitName, make_figures
from megatron_moe_grpo.data.geometry_picture import draw_figure
from megatron_moe_grpo.errors import DataError

DEFAULT_SIDE = 64
LEAST_SIDE = 64
"""Labels of two digits fill a cell of the label grid there."""
NOISE_STREAMS: dict[SplitName, int] = {"train": 24, "test": 25, "pretrain": 26}
"""Random streams of the cameras' noise."""


def write_geometry(
    out: Path,
    counts: dict[SplitName, int],
    seed: int,
    kinds: tuple[FigureKind, ...] = KINDS,
    angle_step: int = 10,
    side: int = DEFAULT_SIDE,
    on_drawn: Callable[[], object] = lambda: None,
) -> None:
    """Writes every split as the clear and the washed-out camera see it; the same arguments give the same bytes.

    Args:
        counts: questions of each split; the pretrain split is made for the clear camera alone.
        angle_step: angles are its multiples, degrees.
        side: of the pictures, pixels.
        on_drawn: called after every picture (for a progress bar).
    Raises:
        DataError: `out` exists, or kinds, a step, counts or a side that cannot be.
    """
    if side < LEAST_SIDE or min(counts.values(), default=0) < 1:
        raise DataError(
            "counts or side cannot be used",
            got=f"{counts}, side {side}",
            expected=f"a question at least in each split, pictures of {LEAST_SIDE} pixels at least",
        )
    figures = {split: make_figures(split, count, seed, kinds, angle_step) for split, count in counts.items()}
    cameras: tuple[CameraName, ...] = ("clear", "washed_out")
    splits = {
        (camera, split): _questions(figures[split], split, camera, seed, side, on_drawn)
        for camera in cameras
        for split in counts
        if camera == "clear" or split != "pretrain"
    }
    summary = {"task": "geometry", "seed": seed, "side": side, "kinds": list(kinds), "angle_step": angle_step}
    write_drawn_set(out, splits, summary)


def _questions(
    figures: list[Figure],
    split: SplitName,
    camera: CameraName,
    seed: int,
    side: int,
    on_drawn: Callable[[], object],
) -> Iterator[DrawnQuestion]:
    for index, figure in enumerate(figures):
        rng = np.random.default_rng([seed, NOISE_STREAMS[split], index])
        levels = CAMERAS[camera](np.asarray(draw_figure(figure.drawing, side)) / 255, rng)
        yield DrawnQuestion(
            picture=Image.fromarray(np.rint(levels * 255).astype(np.uint8)),
            problem=figure.case.problem,
            solution=figure.case.solution,
            problem_type="geometry",
            rationale=figure.case.rationale,
            facts=(("kind", figure.kind), ("parameters", " ".join(figure.case.parameters))),
        )
        on_drawn()
