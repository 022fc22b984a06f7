"""What is proven about a tokenizer before it works on a job's rows, on the first of these rows.

In: what the job's first rows were read as. Out: the encoders to use, and warnings for what a person must know.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmforge.dataset.encoders import HuggingFaceEncoder, prove_fast_encoders, reference_encoders
from llmforge.dataset.row_encoder import RowEncoder
from llmforge.dataset.tokenize import SegmentTokenizer
from llmforge.prompt.document import Document, TrainingRow, texts_of

NUM_PROVEN_ROWS = 128
OTHER_IDS = (
    "prompt format: a server that renders the chat template and tokenizes the text will give other ids than the "
    "training, {}; serve with llmforge, or put the format's control tokens as the tokenizer expects them"
)
NO_BEGIN = (
    "prompt format: the tokenizer begins every text with {0}, no row of this format does; set bos: {0!r}, unless the "
    "model was trained without"
)


@dataclass(frozen=True)
class Proof:
    """What was found on the first rows."""

    is_fast: bool
    """`fastokens` gives the ids of the tokenizer."""
    notice: str | None
    """Why it does not."""
    warnings: tuple[str, ...]
    """What a person must know of format and tokenizer."""


def prove(
    rows: Sequence[TrainingRow], tokenizer_json: str, make_encoder: Callable[[SegmentTokenizer], RowEncoder]
) -> Proof:
    """Whether the fast encoder may be used for a job with these first rows."""
    sample = [text for row in rows for text in texts_of(row)]
    reference = reference_encoders(tokenizer_json)
    fast = prove_fast_encoders(reference, tokenizer_json, sample)
    tokenizer = SegmentTokenizer(tokenizer_json, reference if isinstance(fast, str) else fast)
    encoder = make_encoder(tokenizer)
    warnings = []
    difference = find_joined_difference(reference.reference, encoder, rows)
    if difference is not None:
        warnings.append(OTHER_IDS.format(difference))
    begin = find_missing_begin(tokenizer, encoder, rows)
    if begin is not None:
        warnings.append(NO_BEGIN.format(begin))
    notice = f"tokenizing with the slower encoder of Hugging Face: {fast}" if isinstance(fast, str) else None
    return Proof(notice is None, notice, tuple(warnings))


def find_joined_difference(
    reference: HuggingFaceEncoder, encoder: RowEncoder, rows: Sequence[TrainingRow]
) -> str | None:
    """How the ids of a row differ from those of the tokenizer on the joined text, as a server would ask for them.

    Rows whose contents hold control tokens as text are passed over: there the difference is meant; and so are rows in
    which a token would straddle a seam, which the data stage counts. None where nothing differs.
    """
    clean = [row for row in rows if not _spells_out(row, encoder.special_tokens)]
    encoded = encoder.encode(clean)
    for row, example, straddled in zip(clean, encoded.examples, encoded.straddled, strict=True):
        text = "".join(segment.text for segment in encoder.segments(row))
        expected, found = reference.encode_joined(text), example.input_ids.tolist()
        if found != expected and not straddled:
            return _describe(reference, found, expected)
    return None


def find_missing_begin(tokenizer: SegmentTokenizer, encoder: RowEncoder, rows: Sequence[TrainingRow]) -> str | None:
    """The token that the tokenizer itself would put before every text, where no row begins with one."""
    examples = encoder.encode(rows).examples
    begins = [int(example.input_ids[0]) for example in examples if len(example.input_ids)]
    if not begins or not tokenizer.leading_special_ids or tokenizer.leading_special_ids & set(begins):
        return None
    return next(text for text, token in tokenizer.special_ids.items() if token in tokenizer.leading_special_ids)


def _spells_out(row: TrainingRow, special_tokens: frozenset[str]) -> bool:
    """Whether a text holds a control token that stays text, as it does but in rows that are rendered already."""
    is_rendered = isinstance(row, Document) and not row.is_windowed
    return not is_rendered and any(token in text for text in texts_of(row) for token in special_tokens)


def _describe(reference: HuggingFaceEncoder, found: list[int], expected: list[int]) -> str:
    place = next(
        (index for index, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other),
        min(len(found), len(expected)),
    )
    ours, theirs = (reference.words(ids[max(0, place - 2) : place + 3]) for ids in (found, expected))
    return f"at token {place}: here {ours}, there {theirs}"
