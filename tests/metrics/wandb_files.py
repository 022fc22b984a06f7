"""Reads what `wandb` keeps of an offline run: protocol buffers in the log format of LevelDB.

https://github.com/google/leveldb/blob/main/doc/log_format.md, after a header of seven bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Record]:
    """The records of one file, in order."""
    data, at, pieces = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + _HEADER.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        assert kind in (_FULL, _FIRST, _MIDDLE, _LAST)
        pieces += data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            yield Record.FromString(pieces)
            pieces = b""


def rows(records: list[Record]) -> list[dict[str, object]]:
    """What was logged, without the keys of wandb's own."""
    found = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in found]


def summary(records: list[Record]) -> dict[str, object]:
    """The summary as it was in the end."""
    updates = [item for record in records for item in record.summary.update]
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in updates}


def config(records: list[Record]) -> dict[str, object]:
    """The parameters that the run began with."""
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in run.config.update}
