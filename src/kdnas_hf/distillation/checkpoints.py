"""Which checkpoint a killed training goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_whole_checkpoint(folder: str | Path, processes: int) -> Path | None:
    """The last checkpoint that was written to its end; later ones are removed.

    What a killed process left half-written would stop the next start, and count as the newest when old checkpoints are
    rotated out.

    Args:
        folder: Where a training saved its checkpoints.
        processes: How many processes trained.
    """
    checkpoints = sorted(
        Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"),
        key=lambda path: int(path.name.rsplit("-", 1)[1]),
        reverse=True,
    )
    for checkpoint in checkpoints:
        # the state is what Trainer writes last, but each process writes its own random state
        random_states = len(list(checkpoint.glob("rng_state*.pth")))
        if _is_json(checkpoint / TRAINER_STATE_NAME) and random_states >= processes:
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


__all__ = ["last_whole_checkpoint"]
