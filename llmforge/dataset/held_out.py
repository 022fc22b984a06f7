"""Which training rows are put aside for validation: `dataset.valid_fraction`.

In: what a row says, the share and the seed. Out: whether it is held out. A row is known by its text and by nothing
else, so the same rows are held out wherever the files lie, whatever their formats and however the rows are ordered,
and a row that occurs twice is never on both sides.
"""

import hashlib
from collections.abc import Sequence

import msgspec

from llmforge.prompt.document import Document, TrainingRow


def is_held_out(members: Sequence[TrainingRow], fraction: float, seed: int) -> bool:
    """Whether the row of the data that holds these conversations or documents is put aside.

    A pure function of roles, contents and the seed. A row held out at one fraction is so at every larger one.
    """
    said = [_said(member) for member in members]
    digest = hashlib.blake2b(msgspec.json.encode((seed, said)), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _said(member: TrainingRow) -> Sequence[str | tuple[str, str]]:
    if isinstance(member, Document):
        return [segment.text for segment in member.segments]
    return [(message.role, message.content) for message in member.messages]
