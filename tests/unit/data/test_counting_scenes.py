from collections import Counter, defaultdict

import pytest

from megatron_moe_grpo.data.counting_picture import Thing, visible_shares
from megatron_moe_grpo.data.counting_scenes import WORLDS, CountingSettings, Scene, Wanted, make_scenes
from megatron_moe_grpo.errors import DataError

NUM_TRAIN, NUM_TEST = 800, 400


@pytest.fixture(scope="module")
def train_scenes() -> list[Scene]:
    return make_scenes("train", NUM_TRAIN, seed=0)


@pytest.fixture(scope="module")
def shifted_scenes() -> list[Scene]:
    return make_scenes("test", NUM_TEST, seed=0, world="shifted")


def _counted_from_words(scene: Scene) -> int:
    """The answer, worked out from the question's words alone."""
    words = scene.wanted.problem.rstrip("?").split()
    if words[:3] == ["How", "many", "things"]:
        return sum(thing.size == words[-1] for thing in scene.things)
    *attributes, noun = words[2:-2]
    return sum(
        noun in ("objects", f"{thing.shape}s") and set(attributes) <= {thing.size, thing.colour}
        for thing in scene.things
    )


def test_every_scene_has_the_count_its_words_ask_for(train_scenes: list[Scene], shifted_scenes: list[Scene]) -> None:
    for scene in train_scenes + shifted_scenes:
        assert scene.count == _counted_from_words(scene)
        assert scene.count in scene.options
        assert len(set(scene.options)) == 4
        assert 1 <= len(scene.things) <= 9


def test_rationale_counts_the_halves_of_the_picture() -> None:
    things = tuple(Thing("cube", "red", "small", x, 0.5) for x in (0.1, 0.2, 0.9))
    other = Thing("sphere", "red", "small", 0.8, 0.1)
    assert Scene(Wanted(shape="cube"), (*things, other), (0, 1, 2, 3)).rationale == "2 left+1 right"


def test_questions_are_worded_as_people_ask() -> None:
    wanted = [
        Wanted(), Wanted(size="large"), Wanted(colour="red", shape="cube"), Wanted("small", "cyan"),
        Wanted("small", None, "sphere"),
    ]  # fmt: skip
    assert [each.problem for each in wanted] == [
        "How many objects are there?", "How many things are large?", "How many red cubes are there?",
        "How many small cyan objects are there?", "How many small spheres are there?",
    ]  # fmt: skip


def test_answers_are_uniform(train_scenes: list[Scene]) -> None:
    counts = Counter(scene.count for scene in train_scenes if scene.wanted != Wanted())
    expected = counts.total() / 10
    # 99.9 % quantile of chi-square, 9 degrees of freedom.
    assert sum((counts[count] - expected) ** 2 / expected for count in range(10)) < 27.9


def test_a_blind_majority_answer_scores_as_chance(train_scenes: list[Scene]) -> None:
    by_problem: dict[str, Counter[int]] = defaultdict(Counter)
    for scene in train_scenes:
        by_problem[scene.wanted.problem][scene.count] += 1
    best = {problem: counts.most_common(1)[0][0] for problem, counts in by_problem.items()}
    held_out = make_scenes("test", NUM_TEST, seed=0)
    share = sum(best.get(scene.wanted.problem) == scene.count for scene in held_out) / NUM_TEST
    # Chance 0.1, standard error 0.012.
    assert 0.05 < share < 0.15
    places = Counter(scene.options.index(scene.count) for scene in train_scenes)
    # 99.9 % quantile of chi-square, 3 degrees of freedom.
    assert sum((places[place] - NUM_TRAIN / 4) ** 2 / (NUM_TRAIN / 4) for place in range(4)) < 16.3


@pytest.mark.parametrize("world", ["clear", "shifted"])
def test_colours_keep_to_the_world(world: str, train_scenes: list[Scene], shifted_scenes: list[Scene]) -> None:
    scenes = train_scenes if world == "clear" else shifted_scenes
    seen = {(thing.shape, thing.colour) for scene in scenes for thing in scene.things}
    assert seen == {(shape, colour) for shape, palette in WORLDS[world].palettes.items() for colour in palette}
    # The other world's cubes and cylinders are new; only spheres keep their colours.
    assert not set(WORLDS["clear"].palettes["cube"]) & set(WORLDS["shifted"].palettes["cube"])


def test_every_thing_stays_in_sight(train_scenes: list[Scene], shifted_scenes: list[Scene]) -> None:
    clear = min(min(visible_shares(scene.things)) for scene in train_scenes[:300])
    shifted = min(min(visible_shares(scene.things)) for scene in shifted_scenes[:300])
    assert clear >= 0.6
    assert 0.3 <= shifted < 0.6  # more is hidden there


def test_make_scenes_is_a_function_of_its_arguments(train_scenes: list[Scene]) -> None:
    assert make_scenes("train", 20, seed=0) == train_scenes[:20]
    assert make_scenes("train", 20, seed=1) != train_scenes[:20]
    assert not set(make_scenes("test", 300, seed=0)) & set(train_scenes)


def test_make_scenes_keeps_to_easier_settings() -> None:
    settings = CountingSettings(max_count=4, colours=("red", "blue"), shapes=("cube", "cylinder"))
    scenes = make_scenes("train", 200, seed=0, settings=settings)
    assert {scene.count for scene in scenes} == {0, 1, 2, 3, 4}
    assert {thing.colour for scene in scenes for thing in scene.things} == {"red", "blue"}
    assert all(len(scene.things) <= 4 for scene in scenes)


@pytest.mark.parametrize(
    "settings",
    [
        CountingSettings(max_count=3),
        CountingSettings(max_count=10),
        CountingSettings(colours=("red",)),
        CountingSettings(colours=("pink", "red", "blue")),
        CountingSettings(shapes=()),
    ],
)
def test_make_scenes_refuses_settings_without_scenes(settings: CountingSettings) -> None:
    with pytest.raises(DataError, match="no scene can be drawn"):
        make_scenes("train", 1, seed=0, settings=settings)
