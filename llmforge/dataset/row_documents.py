"""Rows that hold their text themselves, to documents: plain text, and pieces of text that is rendered already.

In: a decoded row and how the job names columns. Out: a `Document`, or a `DataError` whose text is the reason alone, in
the data's own names. docs/data.md describes the formats.
"""

from llmforge.config.data import ColumnNames
from llmforge.dataset.known_names import OWN_NAMES, Row, column_of, describe, listed, names_of
from llmforge.dataset.message_lists import Naming
from llmforge.dataset.row_formats import checked_text, required_column
from llmforge.errors import DataError
from llmforge.prompt.document import Document, plain_text
from llmforge.prompt.messages import check_characters, loss_weight
from llmforge.prompt.render import Segment

LABEL = "label"
"""What axolotl calls `train`."""


def text_document(row: Row, naming: Naming) -> Document:
    """One text, all of it trained."""
    column = required_column(row, "text", "text", naming.columns)
    text = checked_text(row, column)
    if not text.strip():
        raise DataError(f"`{column}` is empty; write a text or remove the row")
    check_characters(text, f"`{column}`")
    return plain_text(text)


def segments_document(row: Row, naming: Naming) -> Document:
    """Pieces of text as they stand: control tokens in them are control tokens, and each says whether it is trained.

    Where a trained piece follows one that is not, an answer starts: no token lies across.
    """
    column = required_column(row, "segments", "segments", naming.columns)
    pieces = row[column]
    if not isinstance(pieces, list) or not pieces:
        found = "an empty list" if pieces == [] else describe(pieces)
        raise DataError(f"`{column}` is {found}; expected a list of {{text, train}}")
    read = [_segment(piece, number, naming.columns) for number, piece in enumerate(pieces, start=1)]
    segments = [
        segment._replace(message=index, starts_answer=segment.trained and index > 0 and not read[index - 1].trained)
        for index, segment in enumerate(read)
    ]
    if not any(segment.text for segment in segments):
        raise DataError(f"all texts in `{column}` are empty; write a text or remove the row")
    return Document(tuple(segments))


def _segment(piece: object, number: int, columns: ColumnNames | None) -> Segment:
    place = f"segment {number}"
    if not isinstance(piece, dict):
        raise DataError(f"{place} is {describe(piece)}; expected an object with a `text` and `train`")
    column = column_of(piece, "text", columns)
    if column is None:
        raise DataError(f"{place} has no {names_of('text', columns)} (found: {listed(piece)})")
    text = piece[column]
    if not isinstance(text, str):
        raise DataError(f"{place} has {describe(text)} as `{column}`; expected a text")
    check_characters(text, place)
    return Segment(text, loss_weight(_loss(piece, place, columns or OWN_NAMES), place))


def _loss(piece: Row, place: str, own: ColumnNames) -> dict[str, object]:
    """What a piece says of its loss, in llmforge's names."""
    trains = ("train", LABEL) if own.train == "train" else (own.train,)
    names = [*(("train", column) for column in trains), ("weight", own.weight)]
    found = {name: piece[column] for name, column in reversed(names) if piece.get(column) is not None}
    if not found:
        raise DataError(
            f"{place} has neither `{own.train}` nor `{own.weight}` (found: {listed(piece)}); "
            "say of every segment whether it is trained"
        )
    return found
