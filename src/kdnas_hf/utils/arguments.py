"""Command lines of the recipes: a YAML or JSON file, flags that override it, and errors that help."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

FILE_SUFFIXES = (".yaml", ".yml", ".json")


def parse_arguments(
    dataclass_types: Sequence[type], argv: Sequence[str] | None = None, positional: str | None = None
) -> tuple[Any, ...]:
    """Parse ``[FILE] [--flag value …]`` into dataclasses; flags win over the file.

    Args:
        dataclass_types: What to parse; names of fields must be distinct.
        argv: Arguments, by default those of the process.
        positional: A field that may come first without its flag, where it does not look like a file of arguments.

    Returns:
        One instance of each dataclass.

    Raises:
        ValueError: If the file cannot be read, or a key or flag does not exist; the message names the nearest.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if positional and argv and not argv[0].startswith("-") and Path(argv[0]).suffix not in FILE_SUFFIXES:
        argv = [f"--{positional}", *argv]
    parser = HfArgumentParser(list(dataclass_types), allow_abbrev=False)  # type: ignore[arg-type]
    known = [field.name for kind in dataclass_types for field in dataclasses.fields(kind) if field.init]
    if argv and not argv[0].startswith("-"):
        values = _read(Path(argv.pop(0)), known)
        parser.set_defaults(**values)
        for action in parser._actions:  # what the file gives is no longer required
            if action.dest in values:
                action.required = False
    *parsed, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if rest:
        flag = rest[0].lstrip("-").split("=")[0]
        raise ValueError(f"{rest[0]!r} is no argument; {_nearest(flag.replace('-', '_'), known, '--')}")
    return tuple(parsed)


def _read(path: Path, known: Sequence[str]) -> dict[str, Any]:
    if path.suffix not in FILE_SUFFIXES:
        raise ValueError(f"{str(path)!r} is neither a flag nor a .yaml, .yml or .json file.")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not valid: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} must map arguments to values, as 'num_episodes: 3'.")
    for key in values:
        if key not in known:
            raise ValueError(f"{str(path)!r} has the key {key!r}, which is no argument; {_nearest(str(key), known)}")
    return values


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {prefix}{nearest[0]}?" if nearest else "see --help."
