"""One question to an endpoint: what is sent, what is tried again, what is a failure."""

import json
from typing import Any

import pytest
from chat_server import Reply, chat_reply, chat_server

from megatron_moe_grpo.errors import ConfigError, EvaluationError
from megatron_moe_grpo.evaluation.chat_endpoint import ChatEndpoint, EndpointSettings, base_url

CONTENT: list[dict[str, object]] = [{"type": "text", "text": "Which?"}]


def test_ask_sends_a_greedy_chat_completion() -> None:
    with (
        chat_server(lambda body: chat_reply("B", "length")) as server,
        ChatEndpoint(EndpointSettings(server.url, api_key="secret")) as endpoint,
    ):
        assert endpoint.ask(CONTENT, 7) == ("B", True)
        (path, key, _), (chat_path, chat_key, body) = server.requests
    assert (path, chat_path, key, chat_key) == ("/v1/models", "/v1/chat/completions", "Bearer secret", "Bearer secret")
    assert body == {
        "model": "tiny", "messages": [{"role": "user", "content": CONTENT}], "max_tokens": 7, "temperature": 0,
    }  # fmt: skip


def test_no_key_no_header() -> None:
    with (
        chat_server(lambda body: chat_reply("B")) as server,
        ChatEndpoint(EndpointSettings(server.url, "tiny")) as endpoint,
    ):
        endpoint.ask(CONTENT, 7)
        assert [key for _, key, _ in server.requests] == [None]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_ask_tries_passing_trouble_again(status: int) -> None:
    replies = iter([(status, b"busy"), (status, b"busy"), chat_reply("B")])
    pauses: list[float] = []
    settings = EndpointSettings("", "tiny", retries=2)
    with chat_server(lambda body: next(replies)) as server:
        settings = EndpointSettings(server.url, "tiny", retries=2)
        with ChatEndpoint(settings, pauses.append) as endpoint:
            assert endpoint.ask(CONTENT, 7) == ("B", False)
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize(("status", "num_tries"), [(503, 3), (400, 1), (401, 1), (413, 1), (302, 1)])
def test_ask_gives_up(status: int, num_tries: int) -> None:
    with chat_server(lambda body: (status, b"told off")) as server:
        settings = EndpointSettings(server.url, "tiny", retries=2)
        with ChatEndpoint(settings, lambda pause_s: None) as endpoint:
            with pytest.raises(EvaluationError, match=rf"in {num_tries} tries(?s:.)*status {status}: told off"):
                endpoint.ask(CONTENT, 7)
            assert len(server.requests) == num_tries


@pytest.mark.parametrize(
    "reply",
    [
        chat_reply(None),
        chat_reply(["B"]),
        (200, b"{}"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [1]}'),
        (200, b'{"choices": [{"text": "B"}]}'),
        (200, b"[]"),
        (200, b"B"),
        (200, b""),
        (200, b"[" * 100_000),
        (200, json.dumps({"error": {"message": "out of memory"}}).encode()),
    ],
)
def test_a_reply_without_a_text_is_no_answer(reply: Reply) -> None:
    with (
        chat_server(lambda body: reply) as server,
        ChatEndpoint(EndpointSettings(server.url, "tiny")) as endpoint,
        pytest.raises(EvaluationError, match="reply"),
    ):
        endpoint.ask(CONTENT, 7)


def test_an_empty_text_is_an_answer() -> None:
    with (
        chat_server(lambda body: chat_reply("")) as server,
        ChatEndpoint(EndpointSettings(server.url, "tiny")) as endpoint,
    ):
        assert endpoint.ask(CONTENT, 7) == ("", False)


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(EvaluationError, match="2 tries(?s:.)*ConnectError"):
        ChatEndpoint(EndpointSettings("http://127.0.0.1:9", retries=1), lambda pause_s: None)


@pytest.mark.parametrize("models", [(), ("a", "b")])
def test_the_model_must_be_named_where_there_is_not_one(models: tuple[str, ...]) -> None:
    with chat_server(lambda body: chat_reply("B"), models) as server, pytest.raises(ConfigError, match="--model-name"):
        ChatEndpoint(EndpointSettings(server.url))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/proxy", "https://h/proxy/v1"),
    ],
)
def test_base_url(url: str, expected: str) -> None:
    assert base_url(url) == expected


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://me:secret@h", "http://h/v1?key=secret"])
def test_base_url_refuses_and_keeps_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        base_url(url)
    assert "secret" not in str(caught.value)


def test_body_of_a_large_picture_is_sent_whole() -> None:
    seen: list[dict[str, Any]] = []

    def reply(body: dict[str, Any]) -> Reply:
        seen.append(body)
        return chat_reply("B")

    uri = "data:image/png;base64," + "A" * 5_000_000
    content: list[dict[str, object]] = [{"type": "image_url", "image_url": {"url": uri}}]
    with chat_server(reply) as server, ChatEndpoint(EndpointSettings(server.url, "tiny")) as endpoint:
        endpoint.ask(content, 1)
    assert seen[0]["messages"][0]["content"] == content
