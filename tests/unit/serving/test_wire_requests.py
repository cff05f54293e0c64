"""What clients may send, and what each mistake is answered with."""

from typing import Any

import pytest

from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import RequestError
from megatron_moe_grpo.serving.requests import ChatRequest, CompletionRequest, parse_request

LIMITS = Limits(max_choices=4, max_messages=3, max_prompts=2, max_stops=2, max_stop_chars=5, max_top_logprobs=3)
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


def test_defaults_are_openais() -> None:
    asked = parse_request(ChatRequest, ASK, LIMITS)
    sampling = asked.sampling(5, 0, seed=7, has_prompt_logprobs=False)
    assert (sampling.temperature, sampling.top_p, sampling.seed, asked.num_choices) == (1.0, 1.0, 7, 1)
    assert (sampling.mode, sampling.stops, asked.stream) == (RouteMode.TOP_K, (), None)


def test_all_forms_of_content_and_unknown_keys_are_taken() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}, {"type": "text", "text": "t"}]
    body = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": None}], "dataset": "AI2D"}
    first, second = parse_request(ChatRequest, body | {"stop": "a", "top_k": -1, "n": None}, LIMITS).messages
    assert [part.type for part in first.parts] == ["image_url", "text"]
    assert [part.text for part in second.parts] == [""]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_each_form_of_prompt(prompt: Any, expected: list) -> None:
    assert parse_request(CompletionRequest, {"prompt": prompt}, LIMITS).prompts == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": ASK["messages"] * 4}, "more than 3"),
        ({"n": 5}, "n is 5, at most 4"),
        ({"n": 0}, "n: "),
        ({"n": "2"}, "n: "),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a", "b", "c"]}, "stop holds a list of 3"),
        ({"messages": [1] * 500_000}, "500000 elements"),
        ({"stop": "abcdef"}, "stop holds"),
        ({"stop": ""}, "stop holds"),
        ({"top_logprobs": 4}, "4 log-probabilities"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"tools": [{}]}, "tools is not supported"),
        ({"routing": "random"}, "routing"),
    ],
)
def test_chat_requests_that_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_request(ChatRequest, ASK | change, LIMITS)
    assert caught.value.status == 400
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "prompt", [[], ["a", "b", "c"], [1.5], [["a"]], [True, None], {"a": 1}, None], ids=str
)  # fmt: skip
def test_prompts_that_are_refused(prompt: Any) -> None:
    with pytest.raises(RequestError, match="prompt"):
        parse_request(CompletionRequest, {"prompt": prompt}, LIMITS)


def test_a_request_can_sample_its_experts() -> None:
    asked = parse_request(CompletionRequest, {"prompt": "a", "routing": "sampled", "return_routing": True}, LIMITS)
    sampling = asked.sampling(1, 0, seed=0, has_prompt_logprobs=False)
    assert (sampling.mode, sampling.returns_routing) == (RouteMode.SAMPLE, True)
