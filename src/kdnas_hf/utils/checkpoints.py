"""Which checkpoint a killed training goes on from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .atomic_files import remove_directory


def last_whole_checkpoint(folder: str | Path, processes: int) -> Path | None:
    """The last checkpoint that was written to its end; later ones without a state are removed.

    What a killed process left half-written would stop the next start, and count as the newest when old checkpoints are
    rotated out. Trainer writes its state last; one that has it is never removed, but passed over where fewer random
    states than processes were written and an earlier one has them all.

    Args:
        folder: Where a training saved its checkpoints.
        processes: How many processes train.
    """
    numbered = [
        (int(match[1]), path)
        for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name))
    ]
    newest_first = [path for _, path in sorted(numbered, reverse=True)]
    with_state = [path for path in newest_first if _is_json(path / TRAINER_STATE_NAME)]
    whole = [path for path in with_state if len(list(path.glob("rng_state*.pth"))) >= processes]
    found = next(iter(whole or with_state), None)
    for checkpoint in newest_first[: None if found is None else newest_first.index(found)]:
        if checkpoint not in with_state:
            remove_directory(checkpoint)
    return found


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


__all__ = ["last_whole_checkpoint"]
