"""The files of a cache of the teacher's states: complete or not there, each with its checksum."""

from __future__ import annotations

import errno
import itertools
import json
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from transformers.utils import logging

from .state_cache_key import key_of
from .stored_states import FeatureError, StoredFeature, bytes_per_token, compute_features, empty_parts
from .teacher import Teacher
from .token_chunks import token_chunks

logger = logging.get_logger(__name__)

MANIFEST_NAME = "manifest.json"
LENGTHS_NAME = "lengths.bin"

# a temporary file of another machine, whose processes cannot be asked for, counts as abandoned after a day
ABANDONED_AFTER_SECONDS = 24 * 3600

# process ids are used again, in a restarted container even at once: with this, a process knows its own files
_PROCESS_TOKEN = uuid.uuid4().hex[:8]
_file_counter = itertools.count()


class Layout:
    """Which shard holds which texts, in which rows.

    Attributes:
        lengths: ``(texts,)``, tokens of each text.
        tokens_per_shard: A shard ends with the text in which it reaches this many tokens.
        num_shards: How many there are.
        shard_of: ``(texts,)``, its shard.
        first_row: ``(texts,)``, row of its first token in the shard.
    """

    def __init__(self, lengths: torch.Tensor, tokens_per_shard: int) -> None:
        before = lengths.cumsum(0) - lengths
        shards, self.shard_of = torch.unique(before // tokens_per_shard, return_inverse=True)
        self.lengths = lengths
        self.tokens_per_shard = tokens_per_shard
        self.num_shards = len(shards)
        self._bounds = torch.searchsorted(self.shard_of, torch.arange(self.num_shards + 1)).tolist()
        self._tokens = torch.zeros(self.num_shards, dtype=torch.long).index_add_(0, self.shard_of, lengths).tolist()
        first_texts = torch.tensor(self._bounds[:-1])
        self.first_row = before - before[first_texts][self.shard_of]

    def texts(self, shard: int) -> tuple[int, int]:
        """The first text of a shard and the first of the next."""
        return self._bounds[shard], self._bounds[shard + 1]

    def num_tokens(self, shard: int) -> int:
        """Tokens of a shard."""
        return self._tokens[shard]


@dataclass(frozen=True)
class ShardFile:
    """One feature of one shard: the stored parts, then the sums of `StoredFeature`, then a CRC-32 of all before.

    The checksum begins with the key and the name of the file, so that a file of another cache or shard is found out.
    """

    path: Path
    key: str
    num_tokens: int
    hidden_size: int
    precision: str

    @property
    def parts_size(self) -> int:
        """Bytes of the stored parts."""
        return self.num_tokens * bytes_per_token(self.hidden_size, self.precision)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.parts_size + 3 * 8 * self.hidden_size + 4

    def problem(self, verify: bool) -> str | None:
        """Says why the file cannot be used, or returns None if it can."""
        return _problem_of_file(self.path, self.key, self.size, verify)

    def write(self, feature: StoredFeature) -> None:
        """Write the file, which is there completely afterwards or not at all."""
        _write_with_checksum(self.path, self.key, [*feature.parts, feature.sums])

    def read_sums(self) -> torch.Tensor:
        """The sums ``(3, hidden_size)``."""
        sums = np.fromfile(self.path, dtype=np.float64, count=3 * self.hidden_size, offset=self.parts_size)
        return torch.from_numpy(sums.reshape(3, self.hidden_size))

    def map(self) -> tuple[torch.Tensor, ...]:
        """The stored parts, as views of the file."""
        try:
            # unlike numpy's, these maps keep no file open: a large cache has more files than a process may open
            content = torch.from_file(str(self.path), shared=False, size=self.parts_size, dtype=torch.uint8)
        except RuntimeError as error:
            raise FileNotFoundError(f"{self.path} can no longer be read; was the cache removed?") from error
        parts = []
        for like in empty_parts(1, self.hidden_size, self.precision):
            taken, content = content.tensor_split([like.nbytes * self.num_tokens])
            parts.append(taken.view(like.dtype).view(self.num_tokens, *like.shape[1:]))
        return tuple(parts)


@dataclass(frozen=True)
class CacheFiles:
    """The directory of one key, and what is written into it."""

    path: Path
    key: str
    precision: str
    hidden_size: int
    layout: Layout

    def shard(self, feature: str, shard: int) -> ShardFile:
        """The file of a feature of a shard."""
        path = self.path / f"{feature}.{shard:05d}.bin"
        return ShardFile(path, self.key, self.layout.num_tokens(shard), self.hidden_size, self.precision)

    def require_disk_space(self, features: Sequence[str]) -> None:
        """Raise ValueError if the disk cannot hold what is missing."""
        files = [self.shard(*place) for place in itertools.product(features, range(self.layout.num_shards))]
        needed = sum(file.size for file in files if file.problem(verify=False) is not None)
        free = shutil.disk_usage(self.path).free
        if needed > free:
            raise ValueError(_disk_full(self.path, f"it has {free / 1e9:.1f} GB, {needed / 1e9:.1f} GB are needed"))

    def require_complete(self, features: Sequence[str], verify: bool) -> None:
        """Raise FileNotFoundError or ValueError unless all shards of the features are there."""
        for name, shard in itertools.product(features, range(self.layout.num_shards)):
            file = self.shard(name, shard)
            _refuse(file.path, file.problem(verify))

    def write_lengths(self) -> None:
        """Write the length of each text, for those who open the cache without the data set."""
        path = self.path / LENGTHS_NAME
        lengths = self.layout.lengths.to(torch.int32)
        if _problem_of_file(path, self.key, lengths.nbytes + 4, verify=True) is not None:
            _write_with_checksum(path, self.key, [lengths])

    def write_shard(self, shard: int, features: Sequence[str], teacher: Teacher, dataset: Any, batch_size: int) -> None:
        """Compute some features of a shard and write them."""
        first, last = self.layout.texts(shard)
        texts = [
            text for ids, lengths in token_chunks(dataset, first, last) for text in np.split(ids, lengths.cumsum()[:-1])
        ]
        for name, feature in compute_features(teacher, texts, features, batch_size, self.precision).items():
            if not feature.sums.isfinite().all():
                raise ValueError(
                    f"the teacher's {name} is not finite in texts {first} to {last - 1} ({teacher.model.dtype}); "
                    "choose teacher_dtype=float32, or remove what is wrong with these texts."
                )
            self.shard(name, shard).write(feature)

    def add_to_manifest(self, features: Sequence[str], teacher_name: str, keyed_by: Mapping[str, str | int]) -> None:
        """Enter complete features; those that the manifest already names stay."""
        errors = {}
        for name in features:
            sums = torch.stack([self.shard(name, shard).read_sums() for shard in range(self.layout.num_shards)])
            errors[name] = FeatureError.from_sums(sums.sum(0), max(int(self.layout.lengths.sum()), 1))
            if self.precision == "int8":
                logger.info(
                    f"{name} in int8: relative error {errors[name].relative:.2e}, of standardised states "
                    f"{errors[name].standardized:.2e}"
                )
        manifest = read_manifest_or_none(self.path)
        if manifest is not None and manifest.features == {**manifest.features, **errors}:
            return  # as in all runs after the first; the directory may then be read-only
        with FileLock(self.path / ".lock"):  # other processes may enter other features now
            manifest = read_manifest_or_none(self.path)
            others = manifest.features if manifest is not None else {}
            Manifest(
                key=self.key,
                teacher=teacher_name,
                keyed_by=dict(keyed_by),
                precision=self.precision,
                hidden_size=self.hidden_size,
                num_texts=len(self.layout.lengths),
                num_tokens=int(self.layout.lengths.sum()),
                tokens_per_shard=self.layout.tokens_per_shard,
                num_shards=self.layout.num_shards,
                features={**others, **errors},
            ).write(self.path)


@dataclass(frozen=True)
class Manifest:
    """What a cache holds; written last, when all shards of its features are complete."""

    key: str
    teacher: str
    keyed_by: dict[str, str | int]
    precision: str
    hidden_size: int
    num_texts: int
    num_tokens: int
    tokens_per_shard: int
    num_shards: int
    features: dict[str, FeatureError]

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest of a directory.

        Raises:
            ValueError: If it is damaged, or of another key than the directory.
        """
        try:
            content = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
            content["features"] = {name: FeatureError(**errors) for name, errors in content["features"].items()}
            manifest = cls(**content)
            of_this_key = manifest.key == path.name == key_of(manifest.keyed_by)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path / MANIFEST_NAME} is damaged ({error}).") from error
        if not of_this_key:
            raise ValueError(f"{path / MANIFEST_NAME} belongs to another key, {manifest.key}.")
        return manifest

    def write(self, path: Path) -> None:
        """Write the manifest into a directory, for people to read as well."""
        content = json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"
        _write_atomically(path / MANIFEST_NAME, [content.encode()])


def read_manifest_or_none(path: Path) -> Manifest | None:
    """The manifest of a directory; None if there is none that can be used."""
    try:
        return Manifest.read(path)
    except ValueError:
        return None


def read_lengths(path: Path, key: str, num_texts: int) -> torch.Tensor:
    """Tokens of each text ``(texts,)``, as the cache has them."""
    file = path / LENGTHS_NAME
    _refuse(file, _problem_of_file(file, key, 4 * num_texts + 4, verify=True))
    return torch.from_numpy(np.fromfile(file, dtype=np.int32, count=num_texts)).long()


def _problem_of_file(path: Path, key: str, expected_size: int, verify: bool) -> str | None:
    """Says why a file of `_write_with_checksum` cannot be used, or returns None if it can."""
    try:
        size = path.stat().st_size
        if size != expected_size:
            return f"{path.name} has {size} bytes instead of {expected_size}"
        if verify:
            content = memoryview(path.read_bytes())
            if content[-4:] != _checksum(path, key, [content[:-4]]):
                return f"the checksum of {path.name} is wrong"
    except FileNotFoundError:
        return f"{path.name} is missing"
    return None


def _refuse(path: Path, problem: str | None) -> None:
    if problem is not None:
        error = ValueError if path.is_file() else FileNotFoundError
        raise error(f"the teacher states in {path.parent} cannot be used: {problem}.")


def _write_with_checksum(path: Path, key: str, tensors: Iterable[torch.Tensor]) -> None:
    chunks: list[Any] = [tensor.contiguous().flatten().view(torch.uint8).numpy() for tensor in tensors]
    _write_atomically(path, [*chunks, _checksum(path, key, chunks)])


def _checksum(path: Path, key: str, chunks: Iterable[Any]) -> bytes:
    """CRC-32 of a file's key, name and content, 4 bytes."""
    checksum = zlib.crc32(f"{key}/{path.name}".encode())
    for chunk in chunks:
        checksum = zlib.crc32(chunk, checksum)
    return checksum.to_bytes(4, "little")


def _write_atomically(path: Path, chunks: Iterable[Any]) -> None:
    """Write a file that is there completely afterwards, even if the power fails, or not at all.

    Raises:
        ValueError: If the disk is full.
    """
    owner = f"{_machine_name()}.{os.getpid()}.{_PROCESS_TOKEN}"
    temporary = path.with_name(f".{path.name}.{next(_file_counter)}.{owner}.tmp")
    try:
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise ValueError(_disk_full(path.parent, str(error))) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _disk_full(path: Path, reason: str) -> str:
    return (
        f"the disk is too small for teacher states in {path}: {reason}; free some space there, lower cache_max_gb, "
        "or pass --cache_teacher_states false."
    )


def _machine_name() -> str:
    return re.sub(r"[^\w-]", "_", platform.node())


def remove_abandoned_temporaries(path: Path) -> None:
    """Remove what interrupted processes left, and nothing that a running one writes."""
    for temporary in path.glob(".*.tmp"):
        try:
            if _is_abandoned(temporary):
                temporary.unlink()
        except (OSError, ValueError):  # another was faster, or it is not ours
            continue


def _is_abandoned(temporary: Path) -> bool:
    machine, process, token = temporary.name.split(".")[-4:-1]
    # Windows has no way to ask for a process that does not end it
    if machine != _machine_name() or os.name == "nt":
        return time.time() - temporary.stat().st_mtime > ABANDONED_AFTER_SECONDS
    if int(process) == os.getpid():
        return token != _PROCESS_TOKEN
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user
        return False
    return False
