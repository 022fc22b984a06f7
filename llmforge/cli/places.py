"""Where the command line keeps things on this machine."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Verified copies of what lies in object stores: LLMFORGE_CACHE, or llmforge/ in the user's cache folder."""
    given = os.environ.get("LLMFORGE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmforge"
