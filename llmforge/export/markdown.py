"""Texts in the Markdown of a model card."""

import json


def quoted(text: str) -> str:
    """As a JSON string, so that every character shows."""
    return f"`{json.dumps(text, ensure_ascii=False)}`"
