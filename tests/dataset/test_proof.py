"""What is proven about a tokenizer before the rows are tokenized."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from llmforge.dataset.encoders import TextEncoders
from llmforge.dataset.proof import find_joined_difference, find_missing_begin, prove
from llmforge.dataset.row_encoder import RowEncoder
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.prompt.document import Document, plain_text
from llmforge.prompt.messages import Conversation, parse_conversation
from llmforge.prompt.render import Segment
from tests.prompt.formats import ADJACENT, LLAMA_2, SPECIAL_TOKENS, Row
from tests.prompt.tokenizers import byte_tokenizer, tokenizer_json

ROW: Row = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
CONVERSATION = parse_conversation(ROW, ADJACENT)


def encoder(text: str) -> RowEncoder:
    return RowEncoder(ADJACENT, SegmentTokenizer(text), "instruction_tuning", "all_turns")


def test_the_ids_are_those_of_the_joined_text() -> None:
    text = byte_tokenizer(SPECIAL_TOKENS).to_str()
    assert find_joined_difference(TextEncoders(text).reference, encoder(text), [CONVERSATION]) is None


def test_a_tokenizer_that_does_not_find_its_own_control_tokens() -> None:
    """Some published Llama tokenizers look for them in the normalized text, where a prefix hides all but the first."""
    tokenizer = json.loads(byte_tokenizer([]).to_str())
    tokenizer["normalizer"] = {"type": "Prepend", "prepend": "_"}
    broken = byte_tokenizer([])
    broken.add_special_tokens([AddedToken(token, normalized=True) for token in ("<s>", "</s>")])
    description = json.loads(broken.to_str()) | {"normalizer": tokenizer["normalizer"]}
    text = json.dumps(description)
    found = find_joined_difference(TextEncoders(text).reference, encoder(text), [CONVERSATION])
    assert found == "at token 1: here ['_<s>', '_', 'h', 'i'], there ['_<s>', 'h', 'i', '<']"


def test_control_tokens_in_contents_and_straddled_seams_are_meant() -> None:
    text = byte_tokenizer(SPECIAL_TOKENS).to_str()
    written = parse_conversation([{**ROW[0], "content": "</s>"}, ROW[1]], ADJACENT)
    assert find_joined_difference(TextEncoders(text).reference, encoder(text), [written]) is None


def contents_of(material: Path) -> list[Conversation]:
    with (material / "data" / "chat" / "oasst1-threads.jsonl").open(encoding="utf-8") as file:
        return [parse_conversation(json.loads(next(file))["messages"], LLAMA_2) for _ in range(5)]


@pytest.mark.slow
def test_the_fast_encoder_is_used_only_where_it_is_right(material: Path) -> None:
    pytest.importorskip("fastokens", reason="fastokens has no wheel for this machine")
    rows = contents_of(material)

    def make_encoder(tokenizer: SegmentTokenizer) -> RowEncoder:
        return RowEncoder(LLAMA_2, tokenizer, "instruction_tuning", "all_turns")

    proof = prove(rows, tokenizer_json(material / "tokenizers" / "llama2-hf"), make_encoder)
    assert (proof.is_fast, proof.notice) == (True, None)
    proof = prove(rows, tokenizer_json(material / "tokenizers" / "mistral-v3-hf"), make_encoder)
    assert not proof.is_fast
    assert proof.notice is not None
    assert proof.notice.startswith("tokenizing with the slower encoder of Hugging Face: fastokens: ")


def test_what_is_found_is_told() -> None:
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", begin)])

    def make_encoder(found: SegmentTokenizer) -> RowEncoder:
        return RowEncoder(ADJACENT.model_copy(update={"bos": ""}), found, "instruction_tuning", "all_turns")

    (warning,) = prove([CONVERSATION], tokenizer.to_str(), make_encoder).warnings
    assert "begins every text with <s>" in warning
    assert "set bos: '<s>'" in warning


def test_a_format_without_the_begin_that_the_tokenizer_would_put() -> None:
    tokenizer = byte_tokenizer(SPECIAL_TOKENS)
    plain = SegmentTokenizer(tokenizer.to_str())
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair=None, special_tokens=[("<s>", begin)])
    text = tokenizer.to_str()
    beginning = SegmentTokenizer(text)
    bare = RowEncoder(ADJACENT.model_copy(update={"bos": ""}), beginning, "instruction_tuning", "all_turns")
    assert find_missing_begin(beginning, bare, [CONVERSATION]) == "<s>"
    assert find_missing_begin(beginning, bare, []) is None
    assert find_missing_begin(beginning, encoder(text), [CONVERSATION]) is None
    assert find_missing_begin(plain, bare, [CONVERSATION]) is None


def test_rows_that_hold_their_text_themselves() -> None:
    """Control tokens are compared where they are meant, and passed over where they stay text."""
    text = byte_tokenizer(SPECIAL_TOKENS).to_str()
    encoder = RowEncoder(ADJACENT, SegmentTokenizer(text), "causal_lm", "all_turns", "</s>")
    rendered = Document((Segment("<s>a</s>"), Segment("b</s>", 1.0, starts_answer=True)))
    rows = [plain_text("once"), plain_text("</s>"), rendered]
    assert find_joined_difference(TextEncoders(text).reference, encoder, rows) is None
    other = byte_tokenizer([*SPECIAL_TOKENS, "b</s>"]).to_str()
    found = find_joined_difference(TextEncoders(other).reference, encoder, rows)
    assert found is not None
    assert found.startswith("at token 3: here ")
