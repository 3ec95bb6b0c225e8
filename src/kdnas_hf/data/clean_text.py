"""One form for every sentence: Unicode NFC, single spaces, no surrounding white space."""

from __future__ import annotations

import unicodedata


def clean_text(text: str) -> str:
    """Returns the text in NFC, with every run of white space (line breaks too) as one space, and stripped."""
    return unicodedata.normalize("NFC", " ".join(text.split()))
