"""One token for every word, number and tag of the drawn questions, in both families."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megatron_moe_grpo.data.counting_scenes import make_scenes
from megatron_moe_grpo.data.geometry_figures import make_figures
from megatron_moe_grpo.models.internvl.tiny import TinySizes as InternVLSizes
from megatron_moe_grpo.models.internvl.tiny import build_tiny_internvl
from megatron_moe_grpo.models.internvl.tiny_tokenizer import tiny_tokenizer as internvl_tokenizer
from megatron_moe_grpo.models.qwen2_vl.tiny import TinySizes as QwenSizes
from megatron_moe_grpo.models.qwen2_vl.tiny import build_tiny_qwen2_vl
from megatron_moe_grpo.models.qwen2_vl.tiny_tokenizer import SPECIAL_TOKENS
from megatron_moe_grpo.models.qwen2_vl.tiny_tokenizer import tiny_tokenizer as qwen_tokenizer

FAMILIES = pytest.mark.parametrize("make", [internvl_tokenizer, qwen_tokenizer])


def _texts() -> list[str]:
    """Questions and taught answers of both tasks."""
    drawn = [
        (scene.wanted.problem, scene.rationale, str(scene.count))
        for world in ("clear", "shifted")
        for scene in make_scenes("pretrain", 150, seed=0, world=world)
    ]
    drawn += [
        (each.case.problem, each.case.rationale, each.case.solution) for each in make_figures("test", 300, seed=0)
    ]
    answers = [f"<think>{rationale}</think><answer>{solution}</answer>" for _, rationale, solution in drawn]
    return sorted({problem for problem, _, _ in drawn}) + answers


def _pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text, add_special_tokens=False)]


@FAMILIES
def test_every_word_number_and_tag_is_one_token(make: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make(vocabulary="drawn")
    for text in _texts():
        pieces = _pieces(tokenizer, text)
        assert "".join(pieces) == text
        # Only signs and single digits are one byte.
        assert not any(len(piece) == 1 and (piece.isalpha() or piece.isspace()) for piece in pieces), pieces
        assert not any(one.isdigit() and two.isdigit() for one, two in pairwise(pieces)), pieces


def test_answers_are_short() -> None:
    tokenizer = qwen_tokenizer(vocabulary="drawn")
    assert _pieces(tokenizer, "<think>2 left+1 right</think><answer>3</answer>") == [
        "<think>", "2", " left", "+", "1", " right", "</think>", "<answer>", "3", "</answer>",
    ]  # fmt: skip
    assert _pieces(tokenizer, "140°\nA. 3") == ["140", "°", "\nA. 3"]
    assert max(len(_pieces(tokenizer, text)) for text in _texts()) <= 11


@FAMILIES
@pytest.mark.parametrize("text", ["naïve 1234567 €", "a\n\nb  c", "<think>\n x </think> <answer> 3</answer>", "12.5%"])
def test_any_text_survives(make: Callable[..., PreTrainedTokenizerFast], text: str) -> None:
    tokenizer = make(vocabulary="drawn")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_transformers_reads_the_saved_tokenizer_alike(tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer(vocabulary="drawn")
    tokenizer.save_pretrained(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    assert all(stock.encode(text) == tokenizer.encode(text) for text in _texts()[::20])
    assert (stock.pad_token, stock.eos_token) == SPECIAL_TOKENS[:2]


def test_special_tokens_have_the_first_ids_and_tags_are_plain_text() -> None:
    tokenizer = qwen_tokenizer(vocabulary="drawn")
    assert tuple(tokenizer.convert_ids_to_tokens(range(len(SPECIAL_TOKENS)))) == SPECIAL_TOKENS
    added = tokenizer.added_tokens_decoder.values()
    assert (
        {token.content for token in added if token.special} == set(SPECIAL_TOKENS) == {token.content for token in added}
    )
    answer = "<think></think><answer>3</answer>"
    assert tokenizer.decode(tokenizer.encode(answer), skip_special_tokens=True) == answer


@FAMILIES
def test_digits_stay_the_default(make: Callable[..., PreTrainedTokenizerFast]) -> None:
    question = "Which digit is in the top-left cell?"
    assert _pieces(make(), question) == [question]
    assert len(_pieces(make(vocabulary="drawn"), question)) > 10


def test_tiny_models_take_the_vocabulary(tmp_path: Path) -> None:
    for build, sizes in ((build_tiny_qwen2_vl, QwenSizes()), (build_tiny_internvl, InternVLSizes())):
        folder = tmp_path / build.__name__
        model = build(folder, sizes, seed=0, vocabulary="drawn")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.convert_tokens_to_ids("<think>") is not None
        assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0] < len(tokenizer) + 8
