"""The official client against our server: it parses every answer, and the answers are our own evaluator's."""

import json
from typing import Any

import pytest
from harness_runs import TASKS, harness_venv, run_harness
from served_model import Grids, OurAnswers, ServedModel

pytestmark = pytest.mark.harness


@pytest.fixture(scope="module")
def seen(served: ServedModel, grids: Grids, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything that openai_calls.py got."""
    venv = harness_venv("openai")
    script = [venv / "bin" / "python", TASKS / "openai_calls.py", served.base_url, served.model, grids.harness]
    ended = run_harness(script, tmp_path_factory.mktemp("openai"))
    assert ended.code == 0, ended.output
    return json.loads(ended.output.splitlines()[-1])


def test_the_client_gets_our_answers(seen: dict[str, Any], ours: OurAnswers, served: ServedModel) -> None:
    assert seen["models"] == [served.model]
    assert seen["answers"] == ours.responses
    assert seen["unknown_key"] == ours.responses[0]


def test_a_stream_is_the_same_answer(seen: dict[str, Any], ours: OurAnswers) -> None:
    assert seen["streamed"]["text"] == ours.responses[0]
    assert seen["streamed"]["finish_reason"] == seen["finish_reason"]
    assert seen["streamed"]["num_completion_tokens"] == seen["usage"]["completion_tokens"]


def test_greedy_tokens_are_the_likeliest(seen: dict[str, Any], ours: OurAnswers) -> None:
    # The end of turn counts as a token of the answer, and may be listed or not.
    assert seen["logprobs"][0]["token"] == ours.responses[0][: len(seen["logprobs"][0]["token"])]
    for token in seen["logprobs"]:
        assert token["logprob"] == max(top["logprob"] for top in token["top_logprobs"]) <= 0
        assert len(token["top_logprobs"]) == 3


def test_a_seed_repeats_samples(seen: dict[str, Any]) -> None:
    assert len(seen["sampled"][0]) == 4
    assert seen["sampled"][0] == seen["sampled"][1]
    assert len(set(seen["sampled"][0])) > 1


def test_a_stop_text_ends_the_answer(seen: dict[str, Any], ours: OurAnswers) -> None:
    assert ours.responses[0][0] in "ABCD"
    assert seen["stopped"] == ""


def test_echo_gives_a_logprob_a_token(seen: dict[str, Any]) -> None:
    assert seen["echoed"] == ["A. 1\nB. 2", "A. 1"]
    long, short = seen["echoed_logprobs"]
    assert long[0] is None and short[0] is None
    # A causal model: what comes later changes nothing before it.
    assert len(short) < len(long)
    assert short[1:] == pytest.approx(long[1 : len(short)], abs=1e-5)


def test_the_client_names_what_is_refused(seen: dict[str, Any]) -> None:
    assert seen["refused"] == {"other model": "NotFoundError", "bad temperature": "BadRequestError"}
