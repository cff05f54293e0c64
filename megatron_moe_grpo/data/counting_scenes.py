"""Counting questions about CLEVR-like scenes: the scene, the question, the answer and how it is reached.

Four candidate counts and the right one among them are drawn first, uniformly, and the scene is built to fit: neither
the question's words nor the options tell anything about the answer.
Colours follow CLEVR-CoGenT, the training set of OThink-MR1's counting task: in world A cubes are gray, blue, brown or
yellow and cylinders red, green, purple or cyan; in world B the other way round; spheres have any colour in both.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from megatron_moe_grpo.data.counting_picture import COLOURS, RADII, Shape, Size, Thing, visible_shares
from megatron_moe_grpo.errors import DataError

SplitName = Literal["train", "test", "pretrain"]
WorldName = Literal["clear", "shifted"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
PALETTE_ONE = ("gray", "blue", "brown", "yellow")
PALETTE_TWO = ("red", "green", "purple", "cyan")
NUM_OPTIONS = 4
MAX_THINGS = 9
STREAMS: dict[tuple[WorldName, SplitName], int] = {
    ("clear", "train"): 11, ("clear", "test"): 12, ("clear", "pretrain"): 13,
    ("shifted", "train"): 14, ("shifted", "test"): 15, ("shifted", "pretrain"): 16,
}  # fmt: skip
MARGIN = 0.02
"""Least distance of a thing to the picture's left and right rim and to its vertical middle line."""

MAX_TRIES = 50
"""Places tried for one thing before the whole scene is drawn again."""


@dataclass(frozen=True)
class World:
    """What scenes look like."""

    palettes: dict[Shape, tuple[str, ...]]
    """Colours that things of a shape may have."""
    least_visible: float
    """The share of a thing's outline that stays in sight, at least."""
    brightness: float
    """Factor of all grey levels: the camera."""


WORLDS: dict[WorldName, World] = {
    "clear": World(
        {"cube": PALETTE_ONE, "cylinder": PALETTE_TWO, "sphere": tuple(COLOURS)}, least_visible=0.6, brightness=1.0
    ),
    "shifted": World(
        {"cube": PALETTE_TWO, "cylinder": PALETTE_ONE, "sphere": tuple(COLOURS)}, least_visible=0.3, brightness=0.75
    ),
}
"""`shifted`: CoGenT's other colours, more occlusion, a darker camera."""


@dataclass(frozen=True)
class CountingSettings:
    """How hard the questions are."""

    max_count: int = MAX_THINGS
    """Largest answer, and largest number of things in a scene."""
    colours: tuple[str, ...] = tuple(COLOURS)
    """Colours in use; each shape needs one of its own in either world."""
    shapes: tuple[Shape, ...] = SHAPES


@dataclass(frozen=True)
class Wanted:
    """What is counted: None leaves an attribute open."""

    size: Size | None = None
    colour: str | None = None
    shape: Shape | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether `thing` counts."""
        pairs = ((self.size, thing.size), (self.colour, thing.colour), (self.shape, thing.shape))
        return all(wanted in (None, seen) for wanted, seen in pairs)

    @property
    def problem(self) -> str:
        """The question in words: "How many red cubes are there?", "How many things are large?"."""
        if self.colour is None and self.shape is None and self.size is not None:
            return f"How many things are {self.size}?"
        noun = "objects" if self.shape is None else f"{self.shape}s"
        words = " ".join(word for word in (self.size, self.colour, noun) if word is not None)
        return f"How many {words} are there?"


@dataclass(frozen=True)
class Scene:
    """A question with the things that answer it."""

    wanted: Wanted
    things: tuple[Thing, ...]
    options: tuple[int, ...]
    """Four counts, the right one among them."""

    @property
    def count(self) -> int:
        """The right answer."""
        return sum(self.wanted.fits(thing) for thing in self.things)

    @property
    def rationale(self) -> str:
        """The count by halves of the picture: "2 left+1 right"."""
        left = sum(self.wanted.fits(thing) for thing in self.things if thing.x < 0.5)
        return f"{left} left+{self.count - left} right"


def make_scenes(
    split: SplitName, count: int, seed: int, world: WorldName = "clear", settings: CountingSettings | None = None
) -> list[Scene]:
    """`count` scenes of one split: a pure function of its arguments; each split and world has a stream of its own.

    Raises:
        DataError: settings that no scene can meet.
    """
    settings = settings or CountingSettings()
    _refuse_unusable(settings, WORLDS[world])
    rng = np.random.default_rng([seed, STREAMS[world, split]])
    return [_draw_scene(rng, WORLDS[world], settings) for _ in range(count)]


def _refuse_unusable(settings: CountingSettings, world: World) -> None:
    unknown = [colour for colour in settings.colours if colour not in COLOURS]
    bare = [shape for shape in settings.shapes if not set(world.palettes[shape]) & set(settings.colours)]
    if unknown or bare or not settings.shapes or not NUM_OPTIONS <= settings.max_count <= MAX_THINGS:
        raise DataError(
            "no scene can be drawn with these settings",
            got=f"max_count {settings.max_count}, colours {', '.join(settings.colours)}, shapes {settings.shapes}",
            expected=f"max_count from {NUM_OPTIONS} to {MAX_THINGS}, known colours, one at least for each shape "
            "(cubes: gray, blue, brown, yellow; cylinders: red, green, purple, cyan; shifted: the other way round)",
        )


def _draw_scene(rng: np.random.Generator, world: World, settings: CountingSettings) -> Scene:
    wanted = _draw_wanted(rng, world, settings)
    # An empty floor would be the same picture in train and test, so "How many objects" starts at one.
    least = 1 if wanted == Wanted() else 0
    options = tuple(int(value) + least for value in rng.permutation(settings.max_count + 1 - least)[:NUM_OPTIONS])
    count = options[rng.integers(NUM_OPTIONS)]
    num_others = 0 if least else int(rng.integers(count == 0, settings.max_count - count + 1))
    kinds = [_draw_kind(rng, world, settings, wanted, fits=True) for _ in range(count)]
    kinds += [_draw_kind(rng, world, settings, wanted, fits=False) for _ in range(num_others)]
    return Scene(wanted, _placed(rng, kinds, world.least_visible), options)


def _draw_wanted(rng: np.random.Generator, world: World, settings: CountingSettings) -> Wanted:
    """Size, colour, shape, any two of them that can be in this world, or nothing in particular."""
    shape = settings.shapes[rng.integers(len(settings.shapes))]
    palette = [colour for colour in settings.colours if colour in world.palettes[shape]]
    size, colour = SIZES[rng.integers(len(SIZES))], palette[rng.integers(len(palette))]
    choices = (
        Wanted(), Wanted(size=size), Wanted(colour=colour), Wanted(shape=shape), Wanted(size, colour),
        Wanted(size, None, shape), Wanted(None, colour, shape),
    )  # fmt: skip
    # A lone shape or colour makes some questions equal to "all of them": nothing else could be drawn beside them.
    usable = [choice for choice in choices if choice == Wanted() or _has_others(choice, world, settings)]
    return usable[rng.integers(len(usable))]


def _has_others(wanted: Wanted, world: World, settings: CountingSettings) -> bool:
    kinds = [(size, colour, shape) for shape in settings.shapes for colour in world.palettes[shape] for size in SIZES]
    return any(
        not wanted.fits(Thing(shape, colour, size, 0.0, 0.0))
        for size, colour, shape in kinds
        if colour in settings.colours
    )


def _draw_kind(
    rng: np.random.Generator, world: World, settings: CountingSettings, wanted: Wanted, fits: bool
) -> tuple[Shape, str, Size]:
    """Shape, colour and size of a thing that is counted, or of one that is not."""
    while True:
        shape = settings.shapes[rng.integers(len(settings.shapes))]
        palette = [colour for colour in settings.colours if colour in world.palettes[shape]]
        kind = shape, palette[rng.integers(len(palette))], SIZES[rng.integers(len(SIZES))]
        if wanted.fits(Thing(*kind, 0.0, 0.0)) == fits:
            return kind


def _placed(rng: np.random.Generator, kinds: list[tuple[Shape, str, Size]], least_visible: float) -> tuple[Thing, ...]:
    """The things at places where each stays in sight; one after the other, from the start again where no place is left.

    (Drawing all places at once, until all are in sight, can take minutes for nine large things.)
    """
    things: list[Thing] = []
    num_tries = 0
    while len(things) < len(kinds):
        kind = kinds[len(things)]
        thing = Thing(*kind, _draw_x(rng, RADII[kind[2]]), float(rng.random()))
        if min(visible_shares([*things, thing])) >= least_visible:
            things.append(thing)
            num_tries = 0
        elif num_tries == MAX_TRIES:
            things, num_tries = [], 0
        num_tries += 1
    return tuple(things)


def _draw_x(rng: np.random.Generator, radius: float) -> float:
    while True:
        x = float(rng.uniform(radius + MARGIN, 1 - radius - MARGIN))
        if abs(x - 0.5) >= MARGIN:
            return x
