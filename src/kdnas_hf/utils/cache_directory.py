"""Where what was made once is kept for later runs on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Returns `$KDNAS_HF_CACHE`, or `~/.cache/kdnas_hf` where that is not set."""
    return Path(os.environ.get("KDNAS_HF_CACHE") or "~/.cache/kdnas_hf").expanduser()
