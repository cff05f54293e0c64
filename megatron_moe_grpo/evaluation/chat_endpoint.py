"""One question to an OpenAI-compatible endpoint: tried again where that may help, never taken for answered."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from megatron_moe_grpo.errors import ConfigError, EvaluationError

# Too busy, or passing trouble.  Any other refusal would be repeated.
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
MAX_SHOWN_CHARS = 300


@dataclass(frozen=True)
class EndpointSettings:
    """How an endpoint is asked."""

    url: str
    """With or without /v1 and /chat/completions at its end."""
    model_name: str | None = None
    """None: the only model that the endpoint lists."""
    api_key: str | None = None
    concurrency: int = 8
    timeout_s: float = 600.0
    """Of one request."""
    retries: int = 4
    """Further tries of a request that may yet succeed."""


class ChatEndpoint:
    """POST /v1/chat/completions, for several threads at once."""

    def __init__(self, settings: EndpointSettings, pause: Callable[[float], object] = time.sleep):
        self._settings, self._pause = settings, pause
        self.base_url = base_url(settings.url)
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._client = httpx.Client(headers=headers, timeout=settings.timeout_s)
        self.model_name = settings.model_name or self._only_model()

    def __enter__(self) -> "ChatEndpoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    def ask(self, content: list[dict[str, object]], max_new_tokens: int) -> tuple[str, bool]:
        """(response, whether it was cut off) of one user turn, greedy.

        Raises EvaluationError: no answer after all tries, or an answer without a text.
        """
        body = {
            "model": self.model_name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_new_tokens,
            "temperature": 0,
        }
        reply = self._request("POST", "/chat/completions", body)
        choices = reply.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            raise EvaluationError("the endpoint's reply holds no text", got=str(reply)[:MAX_SHOWN_CHARS])
        return text, choice.get("finish_reason") == "length"

    def _only_model(self) -> str:
        listed = self._request("GET", "/models", None).get("data")
        names = [entry.get("id") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        if len(names) != 1 or not isinstance(names[0], str):
            self._client.close()
            raise ConfigError(
                "the endpoint does not serve one model alone",
                got=", ".join(map(str, names)) or "none",
                remedy="say which: --model-name NAME",
            )
        return names[0]

    def _request(self, method: str, path: str, body: Mapping[str, object] | None) -> dict[str, object]:
        reason = ""
        for attempt in range(self._settings.retries + 1):
            if attempt:
                self._pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)))
            try:
                reply = self._client.request(method, f"{self.base_url}{path}", json=body)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code == httpx.codes.OK:
                return _json_object(reply)
            reason = f"status {reply.status_code}: {reply.text[:MAX_SHOWN_CHARS]}"
            if reply.status_code not in WORTH_ANOTHER_TRY:
                break
        raise EvaluationError(f"{method} {self.base_url}{path} gave no answer in {attempt + 1} tries", got=reason)


def base_url(url: str) -> str:
    """`url` up to /v1.  Raises ConfigError: not http or https, or a name and password in it, which would be stored."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username is not None:
        raise ConfigError(
            "not the address of an endpoint",
            got=parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl(),
            expected="http://HOST:PORT, without a query, name or password",
            remedy="a key goes into --api-key-file",
        )
    plain = url.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return plain if plain.endswith("/v1") else f"{plain}/v1"


def _json_object(reply: httpx.Response) -> dict[str, object]:
    try:
        value = reply.json()
    except (ValueError, RecursionError) as error:
        raise EvaluationError("the endpoint's reply is not JSON", got=reply.text[:MAX_SHOWN_CHARS]) from error
    if not isinstance(value, dict):
        raise EvaluationError("the endpoint's reply is not a JSON object", got=reply.text[:MAX_SHOWN_CHARS])
    return value
