"""Requests as OpenAI's clients send them.  Unknown keys are ignored; known ones that we cannot honour are refused."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_moe_grpo.routing.trace import RouteMode
from megatron_moe_grpo.serving.generation import Sampling
from megatron_moe_grpo.serving.limits import Limits
from megatron_moe_grpo.serving.request_error import bad

Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Key -> the values with which it asks for nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},),
    "guided_json": (), "guided_regex": (), "best_of": (1,), "suffix": ("",), "top_k": (-1, 0), "min_p": (0,),
    "use_beam_search": (False,), "min_tokens": (0,), "ignore_eos": (False,), "prompt_logprobs": (0,),
    "audio": (), "modalities": (["text"],),
}  # fmt: skip


class Wire(BaseModel):
    """What comes from outside."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StreamOptions(Wire):
    include_usage: bool = False


class GenerationRequest(Wire):
    """What both endpoints share."""

    model: Text = ""
    temperature: Finite | None = Field(None, ge=0, le=100)
    top_p: Finite | None = Field(None, gt=0, le=1)
    n: Whole | None = Field(None, ge=1)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    routing: Literal["top_k", "sampled"] = "top_k"
    """Ours: how experts are chosen."""
    return_routing: bool = False
    """Ours: answer with the experts of every position."""

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_choices(self) -> int:
        return self.n or 1

    def sampling(self, max_new_tokens: int, num_top_logprobs: int, seed: int, has_prompt_logprobs: bool) -> Sampling:
        """As the engine takes it."""
        return Sampling(
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=seed if self.seed is None else self.seed,
            stops=self.stops,
            mode=RouteMode.SAMPLE if self.routing == "sampled" else RouteMode.TOP_K,
            num_top_logprobs=num_top_logprobs,
            has_prompt_logprobs=has_prompt_logprobs,
            returns_routing=self.return_routing,
        )


class ImageUrl(Wire):
    url: Text


class TextPart(Wire):
    type: Literal["text"]
    text: Text


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageUrl | Text

    @property
    def url(self) -> str:
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        """In order, whatever form they came in."""
        if isinstance(self.content, list):
            return self.content
        return [TextPart(type="text", text=self.content or "")]


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Text | list[Text] | list[Whole] | list[list[Whole]]
    max_tokens: Whole | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: Whole | None = Field(None, ge=0)

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


Kind = TypeVar("Kind", bound=GenerationRequest)


def parse_request(kind: type[Kind], body: dict[str, Any], limits: Limits) -> Kind:
    """A checked request.  Raises RequestError: names the key."""
    for key, neutral in NOT_HONOURED.items():
        value = body.get(key)
        if value is not None and value not in neutral:
            raise bad(f"{key} is not supported by this server", key)
    _refuse_long_lists(body, limits)
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise bad(f"{place}: {first['msg']}"[:300], place or None) from error
    _check_limits(request, limits)
    return request


def _refuse_long_lists(body: dict[str, Any], limits: Limits) -> None:
    """Before validation, which keeps an error for every element."""
    messages, prompt = body.get("messages"), body.get("prompt")
    places: list[tuple[str, Any, int]] = [("messages", messages, limits.max_messages)]
    places.append(("stop", body.get("stop"), limits.max_stops))
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        places.append(("prompt", prompt, limits.max_positions))
    elif isinstance(prompt, list):
        places.append(("prompt", prompt, limits.max_prompts))
        places += [("prompt", inner, limits.max_positions) for inner in prompt[: limits.max_prompts]]
    if isinstance(messages, list):
        for message in messages[: limits.max_messages]:
            if isinstance(message, dict):
                places.append(("messages", message.get("content"), limits.max_parts))
    for name, value, most in places:
        if isinstance(value, list) and len(value) > most:
            raise bad(f"{name} holds a list of {len(value)} elements; more than {most} are not read", name)


def _check_limits(request: GenerationRequest, limits: Limits) -> None:
    if request.num_choices > limits.max_choices:
        raise bad(f"n is {request.num_choices}, at most {limits.max_choices} is allowed", "n")
    stops = request.stops
    if any(not 0 < len(stop) <= limits.max_stop_chars for stop in stops):
        raise bad(f"stop holds something else than texts of 1 to {limits.max_stop_chars} characters", "stop")
    if isinstance(request, ChatRequest):
        asked = request.top_logprobs or 0
    else:
        assert isinstance(request, CompletionRequest)
        if not request.prompts:
            raise bad("there is no prompt", "prompt")
        asked = request.logprobs or 0
    if asked > limits.max_top_logprobs:
        raise bad(f"{asked} log-probabilities a token; at most {limits.max_top_logprobs} are given", "logprobs")
