import numpy as np
import pytest

from megatron_moe_grpo.data.counting_picture import COLOURS, Thing, draw_things, visible_shares


def _changed(things: list[Thing], side: int = 64) -> np.ndarray:
    """Which pixels differ from the empty floor [side, side]."""
    empty, drawn = (np.asarray(draw_things(each, side)).astype(int) for each in ([], things))
    return np.abs(drawn - empty).sum(axis=2) > 20


@pytest.mark.parametrize("shape", ["cube", "sphere", "cylinder"])
@pytest.mark.parametrize("colour", list(COLOURS))
def test_draw_things_paints_the_thing_where_it_stands(shape: str, colour: str) -> None:
    thing = Thing(shape, colour, "large", 0.5, 0.2)
    picture = np.asarray(draw_things([thing], 64)).astype(int)
    foot, radius = round(thing.foot * 64), round(thing.radius * 64)
    inside = picture[foot - radius : foot - radius // 2, 32 - radius // 3 : 32 - radius // 6].reshape(-1, 3)
    # The tone nearest to a pixel of the body is the thing's own colour, not another one.
    distances = {name: np.abs(np.median(inside, axis=0) - tone).sum() for name, tone in COLOURS.items()}
    assert min(distances, key=distances.__getitem__) == colour
    assert not _changed([thing])[:, :12].any()


def test_draw_things_makes_large_near_things_larger() -> None:
    areas = [
        _changed([Thing("sphere", "red", size, 0.5, depth)]).sum()
        for size, depth in (("small", 0.9), ("small", 0.0), ("large", 0.0))
    ]
    assert areas == sorted(areas)
    assert areas[2] > 2 * areas[1]


def test_draw_things_darkens_every_pixel_alike() -> None:
    things = [Thing("cube", "yellow", "large", 0.4, 0.3)]
    bright, dark = (np.asarray(draw_things(things, 64, brightness)).astype(int) for brightness in (1.0, 0.5))
    assert np.abs(dark - bright / 2).max() <= 0.5


def test_visible_shares_of_things_apart_are_whole() -> None:
    things = [Thing("cube", "red", "large", 0.2, 0.1), Thing("sphere", "blue", "small", 0.8, 0.9)]
    assert visible_shares(things) == [1.0, 1.0]
    assert visible_shares([]) == []


def test_visible_shares_count_what_nearer_things_hide() -> None:
    behind, before = Thing("cube", "red", "small", 0.5, 0.1), Thing("cube", "blue", "large", 0.5, 0.0)
    hidden, whole = visible_shares([behind, before])
    assert (hidden, whole) == (0.0, 1.0)
    beside = Thing("sphere", "red", "large", 0.6, 0.01)
    share, whole = visible_shares([beside, before])
    assert 0.1 < share < 0.9
    assert whole == 1.0
