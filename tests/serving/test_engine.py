"""Sequences that join and leave a running batch answer as they do alone, and as the rollouts of training do."""

import queue
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from served_folders import noise_picture

from megatron_moe_grpo.data.visuals import Visual
from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.mcore.parallel import ParallelLayout
from megatron_moe_grpo.models.chat_prompt import ChatTurn
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.token_batch import pad_prompts
from megatron_moe_grpo.rollout.decode import DecodeSettings, decode
from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.serving.active_batch import POLICY
from megatron_moe_grpo.serving.engine import Engine, EngineFullError
from megatron_moe_grpo.serving.generation import Job, Piece, Prompt, Sampling
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.loading import LoadedModel, load_to_serve

LIMITS = Limits(max_positions=160, max_sequences=4, max_waiting=12)
GREEDY = Sampling(max_new_tokens=10)
SAMPLED = Sampling(max_new_tokens=10, temperature=1.0, mode=RouteMode.SAMPLE, returns_routing=True)


@pytest.fixture(scope="module", params=["internvl", "qwen2_vl"])
def loaded(request: pytest.FixtureRequest, folders: dict[str, Path], one_process: ParallelLayout) -> LoadedModel:
    return load_to_serve(folders[request.param])


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    engine = Engine(loaded.model, loaded.processing, LIMITS)
    yield engine
    engine.close()


def prompt_of(processing: Processing, text: str, num_pictures: int) -> Prompt:
    visuals = [Visual((noise_picture(seed),)) for seed in range(num_pictures)]
    ids = processing.chat_ids([ChatTurn("user", (*(visual.size for visual in visuals), text))])
    inputs = processing.visual_inputs(visuals)
    return Prompt(tuple(ids), inputs, processing.rope_position_3S(ids, None if inputs is None else inputs.grid_V3))


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[Prompt]:
    """Of all lengths, with and without pictures."""
    texts = ("a", "How many 0s are there?", "Which is the largest digit? " * 3, "b" * 60, "Which?", "How many?")
    return [prompt_of(loaded.processing, text, number % 3) for number, text in enumerate(texts)]


class Owner:
    """Who asked for one job, and hears of it."""

    def __init__(self, prompt: Prompt, sampling: Sampling, choice: int = 0):
        self.heard: queue.Queue[Piece | Exception] = queue.Queue()
        self.job = Job(prompt, sampling, choice, self.heard.put)

    def pieces(self) -> list[Piece]:
        found: list[Piece] = []
        while not found or found[-1].finish_reason is None:
            piece = self.heard.get(timeout=60)
            if isinstance(piece, Exception):
                raise piece
            found.append(piece)
        return found


def tokens(pieces: list[Piece]) -> list[int]:
    return [piece.token.token_id for piece in pieces]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_company_changes_nothing(engine: Engine, prompts: list[Prompt], sampling: Sampling) -> None:
    ways = [replace(sampling, max_new_tokens=6 + 3 * number, seed=number) for number in range(len(prompts))]
    alone = []
    for prompt, way in zip(prompts, ways, strict=True):
        owner = Owner(prompt, way)
        engine.submit([owner.job])
        alone.append(owner.pieces())
    chance = random.Random(0)
    owners = [Owner(prompt, way) for prompt, way in zip(prompts, ways, strict=True)]
    # More than there are places for, at moments that fall between the tokens of the others.
    for owner in owners:
        engine.submit([owner.job])
        time.sleep(chance.uniform(0, 0.03))
    for owner, expected in zip(owners, alone, strict=True):
        found = owner.pieces()
        assert tokens(found) == tokens(expected)
        gaps = [abs(a.token.logprob_nats - b.token.logprob_nats) for a, b in zip(found, expected, strict=True)]
        # Measured: 4e-5, logits reach 40.
        assert max(gaps) < 2e-4
        assert found[-1].experts_SLK == expected[-1].experts_SLK
    assert len({tuple(tokens(pieces)[:6]) for pieces in alone}) > len(prompts) // 2


def test_top_k_experts_stay_so_beside_sampled_ones(engine: Engine, prompts: list[Prompt]) -> None:
    way = replace(GREEDY, max_new_tokens=12, returns_routing=True)
    alone = Owner(prompts[1], way)
    engine.submit([alone.job])
    expected = alone.pieces()
    beside = Owner(prompts[1], way)
    others = [Owner(prompts[1], replace(SAMPLED, max_new_tokens=12), choice) for choice in range(3)]
    engine.submit([others[0].job, beside.job, others[1].job, others[2].job])
    found = beside.pieces()
    assert tokens(found) == tokens(expected)
    assert found[-1].experts_SLK == expected[-1].experts_SLK
    # The others did sample.
    assert all(owner.pieces()[-1].experts_SLK != expected[-1].experts_SLK for owner in others)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_engine_answers_as_rollouts_do(
    engine: Engine, loaded: LoadedModel, one_process: ParallelLayout, prompts: list[Prompt], sampling: Sampling
) -> None:
    processing, prompt = loaded.processing, prompts[2]
    owners = [Owner(prompt, sampling, choice) for choice in range(3)]
    engine.submit([owner.job for owner in owners])
    found = [owner.pieces() for owner in owners]
    settings = DecodeSettings(
        mode=sampling.mode,
        policy=POLICY,
        max_new_tokens=sampling.max_new_tokens,
        end_token_id=processing.eos_token_id,
        suppressed_token_ids=torch.tensor(processing.suppressed_token_ids),
        token_temperature=sampling.temperature,
    )
    batch = pad_prompts(
        [prompt.ids], [prompt.visuals], processing.vision_token_ids, processing.pad_token_id,
        rope_positions=[prompt.rope_position_3S],
    )  # fmt: skip
    streams_B = torch.tensor([owner.job.stream for owner in owners])
    with decoding_mode(loaded.model):
        expected = decode(
            loaded.model, one_process, batch.repeated(3), streams_B, settings, loaded.model.image_features(batch)
        )
    for row, pieces in enumerate(found):
        count = int(expected.is_response_BT[row].sum())
        assert tokens(pieces) == expected.token_ids_BT[row, :count].tolist()
        logprobs = torch.tensor([piece.token.logprob_nats for piece in pieces])
        assert torch.allclose(logprobs, expected.token_logprob_BT[row, :count], atol=2e-4)  # Measured: 0.
        if sampling.returns_routing:
            fed = len(prompt.ids) + count - 1
            assert pieces[-1].experts_SLK == expected.trace.experts_BSLK[row, :fed].tolist()


def test_choices_and_seeds_draw_differently(engine: Engine, prompts: list[Prompt]) -> None:
    owners = [Owner(prompts[0], replace(SAMPLED, seed=seed), choice) for seed in (0, 1) for choice in (0, 1)]
    engine.submit([owner.job for owner in owners])
    assert len({tuple(tokens(owner.pieces())) for owner in owners}) == 4


def test_a_full_context_ends_a_response(engine: Engine, prompts: list[Prompt]) -> None:
    owner = Owner(prompts[3], replace(GREEDY, max_new_tokens=1000, temperature=1.0, seed=5))
    engine.submit([owner.job])
    pieces = owner.pieces()
    if pieces[-1].finish_reason == "length":
        assert len(prompts[3].ids) + len(pieces) == LIMITS.max_positions


def test_more_than_may_wait_are_refused_together(engine: Engine, prompts: list[Prompt]) -> None:
    owners = [Owner(prompts[0], GREEDY) for _ in range(LIMITS.max_waiting + 1)]
    with pytest.raises(EngineFullError, match="12"):
        engine.submit([owner.job for owner in owners])
    assert engine.num_waiting == 0


def test_pictures_that_wait_may_take_so_much_memory(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    assert prompts[1].visual_bytes > 0
    engine = Engine(loaded.model, loaded.processing, replace(LIMITS, max_waiting_bytes=prompts[1].visual_bytes))
    try:
        # Choices of one request share theirs.
        engine.submit([Owner(prompts[1], GREEDY, choice).job for choice in range(3)])
        with pytest.raises(EngineFullError, match="bytes of pictures"):
            engine.submit([Owner(replace(prompts[1]), GREEDY).job for _ in range(3)])
    finally:
        engine.close()


def test_who_left_while_waiting_is_never_read(engine: Engine, prompts: list[Prompt], loaded: LoadedModel) -> None:
    """A prompt that would break the batch, were it read."""
    left, stays = Owner(Prompt((loaded.vocab_size + 7,)), GREEDY), Owner(prompts[0], GREEDY)
    left.job.is_cancelled = True
    engine.submit([left.job, stays.job])
    assert stays.pieces()


def test_who_left_while_waiting_keeps_nobody_out(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    engine = Engine(loaded.model, loaded.processing, replace(LIMITS, max_sequences=1, max_waiting=4))
    long = replace(SAMPLED, max_new_tokens=140)
    try:
        first = Owner(prompts[0], long)
        engine.submit([first.job])
        assert isinstance(first.heard.get(timeout=60), Piece)
        waiting = [Owner(prompts[0], long) for _ in range(4)]
        engine.submit([owner.job for owner in waiting])
        with pytest.raises(EngineFullError):
            engine.submit([Owner(prompts[0], GREEDY).job])
        for owner in waiting:
            owner.job.is_cancelled = True
        engine.submit([Owner(prompts[0], GREEDY).job])
    finally:
        engine.close()


def test_who_no_longer_listens_makes_room(engine: Engine, prompts: list[Prompt]) -> None:
    owners = [Owner(prompts[0], replace(GREEDY, max_new_tokens=100)) for _ in range(6)]
    for owner in owners[:5]:
        owner.job.is_cancelled = True
    engine.submit([owner.job for owner in owners])
    assert owners[5].pieces()
    assert all(owner.heard.empty() for owner in owners[:5])


def test_a_batch_that_fails_tells_its_owners_and_the_next_one_works(
    engine: Engine, prompts: list[Prompt], loaded: LoadedModel
) -> None:
    vocab_size = loaded.vocab_size
    broken = Owner(Prompt((vocab_size + 7,)), GREEDY)
    engine.submit([broken.job])
    with pytest.raises((IndexError, RuntimeError)):
        broken.pieces()
    owner = Owner(prompts[1], GREEDY)
    engine.submit([owner.job])
    assert owner.pieces()
    assert engine.is_alive


def test_those_under_way_are_told_once_that_the_batch_failed(
    engine: Engine, prompts: list[Prompt], loaded: LoadedModel
) -> None:
    under_way = Owner(prompts[0], replace(SAMPLED, max_new_tokens=140))
    engine.submit([under_way.job])
    assert isinstance(under_way.heard.get(timeout=60), Piece)
    broken = Owner(Prompt((loaded.vocab_size + 7,)), GREEDY)
    engine.submit([broken.job])
    with pytest.raises((IndexError, RuntimeError)):
        broken.pieces()
    with pytest.raises((IndexError, RuntimeError)):
        under_way.pieces()
    later = Owner(prompts[1], GREEDY)
    engine.submit([later.job])
    assert later.pieces()
    # The last piece is told before its sequence leaves the batch.
    deadline_s = time.monotonic() + 10
    while engine.num_active and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert engine.num_active == 0
    assert under_way.heard.empty()


def test_closing_tells_those_under_way(loaded: LoadedModel, prompts: list[Prompt]) -> None:
    engine = Engine(loaded.model, loaded.processing, LIMITS)
    owners = [Owner(prompts[0], replace(GREEDY, max_new_tokens=100, temperature=1.0, seed=seed)) for seed in range(8)]
    engine.submit([owner.job for owner in owners])
    engine.close()
    assert not engine.is_alive
    for owner in owners:
        heard = [owner.heard.get(timeout=5)]
        while not owner.heard.empty():
            heard.append(owner.heard.get())
        assert isinstance(heard[-1], Exception) or heard[-1].finish_reason is not None
