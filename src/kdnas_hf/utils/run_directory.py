"""A run's directory: it can be written, holds the configuration in ``config.yaml``, and is that of one run alone."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .atomic_files import write_atomically

CONFIGURATION_FILE = "config.yaml"
CHOICE = "choice"  # section that may change when a run is resumed

# What libraries say that give no errno: safetensors, SQLite, and torch.save, which does not know why a write fell short
_DISK_FULL = (
    "No space left on device",
    "Disk quota exceeded",
    "database or disk is full",
    "PytorchStreamWriter failed",
)
_SHORT_WRITE = ("inline_container.cc", "unexpected pos")


def check_writable(folder: str | Path) -> None:
    """Make a directory if it is missing, and write to it.

    Raises:
        ValueError: If that fails.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={str(folder)!r} cannot be written ({error.strerror}); choose another.") from error


def disk_full_reason(error: BaseException) -> str | None:
    """What says that a disk has no room left: the first line of an error, or of one that it came from; else None."""
    chain: BaseException | None = error
    while chain is not None:
        text = str(chain)
        if (
            (isinstance(chain, OSError) and chain.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)))
            or any(words in text for words in _DISK_FULL)
            or all(words in text for words in _SHORT_WRITE)
        ):
            return text.partition("\n")[0]
        chain = chain.__cause__ or chain.__context__
    return None


def settle_configuration(folder: Path, configuration: Mapping[str, Any], resume: bool = True) -> bool:
    """Make the run directory, or check that the run in it is this one.

    Returns:
        Whether a run is resumed.

    Raises:
        ValueError: If the directory cannot be written, or holds another run, or may not be resumed.
    """
    check_writable(folder)
    path = folder / CONFIGURATION_FILE
    resumed = path.exists()
    if resumed:
        refuse_other_run(folder, configuration, resume)
    text = yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True)
    if not resumed or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return resumed


def refuse_other_run(folder: Path, configuration: Mapping[str, Any], resume: bool = True) -> None:
    """Refuse a directory that holds another run; one that holds none is fine.

    Args:
        folder: The run directory.
        configuration: That of this run; without ``texts``, the texts are not compared, and its `CHOICE` may change.
        resume: Whether a run of this configuration may be resumed.

    Raises:
        ValueError: If the directory holds another run, or may not be resumed.
    """
    path = folder / CONFIGURATION_FILE
    if not path.is_file():
        return
    if not resume:
        raise ValueError(f"output_dir={str(folder)!r} holds a run and resume is off; choose another, or turn it on.")
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "texts" not in configuration:
        before.pop("texts", None)
    differences = configuration_differences(settled(before), settled(configuration))
    if differences:
        shown = "\n  ".join(differences)
        raise ValueError(
            f"output_dir={str(folder)!r} holds a run of another configuration:\n  {shown}\n"
            "Choose another output_dir, or give the same configuration to resume that run."
        )


def settled(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what may change."""
    return {name: section for name, section in configuration.items() if name != CHOICE}


def configuration_differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Describe how two configurations differ, one line for each key."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        lines = []
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            lines.extend(configuration_differences(before.get(key), now.get(key), inner))
        return lines
    if isinstance(now, tuple):
        now = list(now)
    return [] if before == now else [f"{name}: {before!r} there, {now!r} now"]
