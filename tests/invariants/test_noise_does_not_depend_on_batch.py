"""A rollout draws the same experts and tokens alone, in company, in another order, and behind more padding."""

from dataclasses import dataclass

import pytest
import torch
from tiny_policy import GROUP_SIZE, PROBLEMS, Bench, exploring, load_policy

from megatron_moe_grpo.mcore.decoding import decoding_mode
from megatron_moe_grpo.models.token_batch import TokenBatch
from megatron_moe_grpo.models.vlm import VisionLanguageModel
from megatron_moe_grpo.rollout.decode import decode
from megatron_moe_grpo.rollout.prompts import padded_positions, prepare_prompts
from megatron_moe_grpo.rollout.records import Responses

STREAMS = torch.arange(100, 100 + len(PROBLEMS) * GROUP_SIZE).view(len(PROBLEMS), GROUP_SIZE)


@dataclass(frozen=True)
class Decoder:
    """Decodes any prompts in any arrangement."""

    bench: Bench
    model: VisionLanguageModel

    def decode(self, prompts: list[int], streams: torch.Tensor, extra_padding: int = 0) -> Responses:
        """`prompts[i]` for the rollout ids in `streams[i]`, in one batch."""
        rows = [self.bench.rows[index] for index in prompts]
        prepared = prepare_prompts(rows, padded_positions(rows, 0, 1) + extra_padding, self.bench.processing)
        batch: TokenBatch = prepared.batch(0, len(rows))
        with decoding_mode(self.model):
            features_FD = None if batch.pixel_values is None else self.model.image_features(batch)
            repeated = batch.repeated(streams.shape[1])
            settings = exploring(self.bench.processing)
            return decode(self.model, self.bench.layout, repeated, streams.flatten(), settings, features_FD)


@pytest.fixture(scope="module")
def decoder(bench: Bench) -> Decoder:
    return Decoder(bench, load_policy(bench.folder))


@pytest.fixture(scope="module")
def together(decoder: Decoder) -> Responses:
    return decoder.decode(list(range(len(PROBLEMS))), STREAMS)


def assert_same_rollout(decoder: Decoder, prompt: int, got: Responses, row: int, all_of: Responses, at: int) -> None:
    """`row` of `got` and row `at` of `all_of` are the same rollout of `prompt`, wherever their padding stands."""
    num_tokens = int(all_of.is_response_BT[at].sum())
    assert torch.equal(got.is_response_BT[row], all_of.is_response_BT[at])
    assert torch.equal(got.token_ids_BT[row, :num_tokens], all_of.token_ids_BT[at, :num_tokens])
    num_fed = len(decoder.bench.rows[prompt].prompt_ids) + num_tokens - 1
    num_after = got.token_ids_BT.shape[1] - num_tokens
    experts = []
    for responses, index in ((got, row), (all_of, at)):
        end = responses.trace.experts_BSLK.shape[1] - num_after
        experts.append(responses.trace.rows(index, index + 1).trim_positions(end - num_fed, end))
    assert torch.equal(experts[0].experts_BSLK, experts[1].experts_BSLK)
    assert (experts[0].logprob_BSL - experts[1].logprob_BSL).abs().max() < 1e-5  # Measured: 1.9e-6.
    gap = got.token_logprob_BT[row, :num_tokens] - all_of.token_logprob_BT[at, :num_tokens]
    assert gap.abs().max() < 1e-5  # Measured: 1e-6.


@pytest.mark.parametrize("extra_padding", [0, 7])
@pytest.mark.parametrize("prompt", range(len(PROBLEMS)))
def test_a_rollout_alone_is_the_rollout_in_a_batch(
    prompt: int, extra_padding: int, decoder: Decoder, together: Responses
) -> None:
    for rollout in range(GROUP_SIZE):
        alone = decoder.decode([prompt], STREAMS[prompt, rollout].view(1, 1), extra_padding)
        assert_same_rollout(decoder, prompt, alone, 0, together, prompt * GROUP_SIZE + rollout)


def test_the_order_of_a_batch_does_not_matter(decoder: Decoder, together: Responses) -> None:
    order = [2, 0, 3, 1]
    shuffled = decoder.decode(order, STREAMS[order].flip(1), extra_padding=2)
    for place, prompt in enumerate(order):
        for rollout in range(GROUP_SIZE):
            row = place * GROUP_SIZE + (GROUP_SIZE - 1 - rollout)
            assert_same_rollout(decoder, prompt, shuffled, row, together, prompt * GROUP_SIZE + rollout)


def test_another_rollout_id_draws_other_experts(decoder: Decoder, together: Responses) -> None:
    other = decoder.decode(list(range(len(PROBLEMS))), STREAMS + 1000)
    experts, others = together.trace.experts_BSLK, other.trace.experts_BSLK
    assert (experts[..., 0] != others[..., 0]).float().mean() > 0.3
