"""Conversations as token ids: equal to transformers' own rendering, and what is typed stays text."""

from pathlib import Path

import pytest

from megatron_moe_grpo.data.visuals import VisualSize
from megatron_moe_grpo.errors import ConfigError
from megatron_moe_grpo.models.chat_prompt import ChatTurn
from megatron_moe_grpo.models.internvl.processing import InternVLProcessing
from megatron_moe_grpo.models.internvl.tiny import TinySizes, build_tiny_internvl
from megatron_moe_grpo.models.processing import Processing
from megatron_moe_grpo.models.qwen2_vl import tiny as qwen2_vl
from megatron_moe_grpo.models.qwen2_vl.processing import Qwen2VLProcessing

PICTURE = VisualSize(56, 28)
VIDEO = VisualSize(56, 28, num_frames=2, is_video=True)
CONVERSATION = (
    ChatTurn("system", ("Answer with a letter.",)),
    ChatTurn("user", ("How many 1s?\n\n",)),
    ChatTurn("assistant", (" B \n",)),
    ChatTurn("user", ("And 2s? ä€",)),
)


@pytest.fixture(scope="module", params=["internvl", "qwen2_vl"])
def processing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Processing:
    folder: Path = tmp_path_factory.mktemp("chat") / "model"
    if request.param == "internvl":
        build_tiny_internvl(folder, TinySizes(), seed=0)
        return InternVLProcessing.from_folder(folder)
    qwen2_vl.build_tiny_qwen2_vl(folder, qwen2_vl.TinySizes(), seed=0)
    return Qwen2VLProcessing.from_folder(folder)


def test_one_turn_is_the_prompt_of_training(processing: Processing) -> None:
    question = "\n Which is larger? \n"
    for visuals in ((), (PICTURE,), (PICTURE, VIDEO)):
        turn = ChatTurn("user", (*visuals, question))
        assert processing.chat_ids([turn]) == processing.encode(question, (), visuals)


def test_visuals_stand_where_they_were_put(processing: Processing) -> None:
    parts = ("First ", PICTURE, " then ", PICTURE, "?")
    expected = processing.encode("First <image> then <image>?", (), [PICTURE, PICTURE])
    assert processing.chat_ids([ChatTurn("user", parts)]) == expected


def test_several_turns_are_what_transformers_renders(processing: Processing) -> None:
    messages = [{"role": turn.role, "content": "".join(turn.parts)} for turn in CONVERSATION]
    rendered = processing.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = processing.tokenizer.encode(rendered, add_special_tokens=False)
    assert processing.chat_ids(CONVERSATION) == expected


def test_every_special_token_that_is_typed_stays_text(processing: Processing) -> None:
    typed = "a" + "b".join(processing.special_tokens) + "c"
    ids = processing.chat_ids([ChatTurn("user", (typed,))])
    plain = processing.chat_ids([ChatTurn("user", ("",))])
    specials = set(processing.special_tokens.values())
    assert [token for token in ids if token in specials] == [token for token in plain if token in specials]
    assert typed in processing.decode(ids)


def test_typed_stand_ins_are_text_too(processing: Processing) -> None:
    typed = "\ue0001\ue001 and \ue0000\ue001"
    ids = processing.chat_ids([ChatTurn("user", (typed,)), ChatTurn("user", ("second",))])
    text = processing.decode(ids)
    assert typed in text
    assert text.count("second") == 1


def test_a_template_that_hides_a_text_or_a_picture_is_refused(processing: Processing) -> None:
    tokenizer, kept = processing.tokenizer, processing.tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ messages[0]['role'] }}"
        with pytest.raises(ConfigError, match="0 of 1 texts, 0 of 1 images"):
            processing.chat_ids([ChatTurn("user", (PICTURE, "question"))])
        tokenizer.chat_template = "{{ messages[-1]['content'][0]['text'] }}"
        with pytest.raises(ConfigError, match="1 of 2 texts, 0 of 0 images"):
            processing.chat_ids([ChatTurn("user", ("first",)), ChatTurn("user", ("second",))])
    finally:
        tokenizer.chat_template = kept
