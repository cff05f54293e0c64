"""What the official client gets from a server, as one JSON object; runs in the client's own environment:

openai_calls.py BASE_URL MODEL ROWS
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import openai


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One turn of the user: the picture, then the text."""
    picture = base64.b64encode(Path(row["image"]).read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": row["question"]}]}]


def chat(client: openai.OpenAI, model: str, row: dict[str, Any], **more: Any) -> Any:
    """One request as our own evaluator sends it, unless `more` says otherwise."""
    settings = {"max_tokens": 2, "temperature": 0} | more
    return client.chat.completions.create(model=model, messages=messages(row), **settings)


def streamed(client: openai.OpenAI, model: str, row: dict[str, Any]) -> dict[str, Any]:
    """The same answer in pieces."""
    chunks = list(chat(client, model, row, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish_reason": choices[-1].finish_reason,
        "num_completion_tokens": chunks[-1].usage.completion_tokens,
    }


def refused(client: openai.OpenAI, model: str, row: dict[str, Any], **more: Any) -> str:
    """The client's name for the answer to a request that nobody should accept."""
    try:
        chat(client, model, row, **more)
    except openai.APIStatusError as error:
        return type(error).__name__
    return "accepted"


def main() -> None:
    """Prints the object."""
    base_url, model, rows_file = sys.argv[1:]
    rows = [json.loads(line) for line in Path(rows_file).read_text(encoding="utf-8").splitlines()]
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    sampled = {"n": 4, "seed": 5, "temperature": 1.5, "max_tokens": 2}
    first = chat(client, model, rows[0], logprobs=True, top_logprobs=3)
    completions = client.completions.create(
        model=model, prompt=["A. 1\nB. 2", "A. 1"], max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    print(json.dumps({
        "models": [entry.id for entry in client.models.list()],
        "answers": [chat(client, model, row).choices[0].message.content for row in rows],
        "streamed": streamed(client, model, rows[0]),
        "usage": first.usage.model_dump(),
        "finish_reason": first.choices[0].finish_reason,
        "logprobs": [token.model_dump() for token in first.choices[0].logprobs.content],
        "sampled": [[c.message.content for c in chat(client, model, rows[0], **sampled).choices] for _ in range(2)],
        "stopped": chat(client, model, rows[0], stop=["A", "B", "C", "D"]).choices[0].message.content,
        "unknown_key": chat(client, model, rows[0], extra_body={"dataset": "grids"}).choices[0].message.content,
        "echoed": [choice.text for choice in completions.choices],
        "echoed_logprobs": [choice.logprobs.token_logprobs for choice in completions.choices],
        "refused": {
            "other model": refused(client, "somebody-else", rows[0]),
            "bad temperature": refused(client, model, rows[0], temperature=-1),
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main()
