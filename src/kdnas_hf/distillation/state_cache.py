"""The teacher's features of a tokenised data set, computed once: on disk, for every student and every epoch."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import check_choice
from .teacher import ATTENTION_INPUT, HIDDEN_STATES, Teacher
from .token_chunks import token_chunks

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1
PRECISIONS = ("bfloat16", "float32", "int8")
MANIFEST_NAME = "manifest.json"
LENGTHS_NAME = "lengths.bin"
# 25 MB of a feature in bfloat16 at a hidden size of 768: what is held in memory, and lost by an interruption
TOKENS_PER_SHARD = 2**14

# a temporary file of another machine, whose processes cannot be asked for, counts as abandoned after a day
ABANDONED_AFTER_SECONDS = 24 * 3600

# fields of a configuration that say where a model is from or how it computes, not what it computes
VOLATILE_CONFIG_FIELDS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "dtype",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

# process ids are used again, in a restarted container even at once: with this, a process knows its own files
_PROCESS_TOKEN = uuid.uuid4().hex[:8]
_file_counter = itertools.count()


class TeacherStateCache:
    """A frozen teacher's features (see `Teacher.features`) at the real tokens of a data set, memory-mapped.

    The directory ``<folder>/<key>`` belongs to one teacher, tokenizer, data set and precision, which the key is a hash
    of. Texts are split into shards of consecutive texts; each shard has one file per feature, so that a cache of more
    features serves those who need fewer, and a missing feature is added later. Files appear complete or not at all,
    and each carries its own checksum: two writers at once, even with other batch sizes and thus other rounding, do not
    disturb each other.

    Made by `compute` or `open`.

    Attributes:
        path: The directory.
        key: Its name, see `cache_key`.
        features: What `states` gives.
        precision: One of `PRECISIONS`.
        hidden_size: Width of the vectors.
        lengths: ``(texts,)``, tokens of each text.
        errors: For each feature, mean squared error of the stored vectors over their variance (1 - R²).
        standardized_errors: The same averaged over dimensions after each was divided by its standard deviation: what
            a student sees that learns standardised states, in which no dimension of huge variance hides the others.
    """

    def __init__(self, files: _CacheFiles, features: Sequence[str], errors: Mapping[str, FeatureError]) -> None:
        self.path = files.path
        self.key = files.key
        self.features = tuple(features)
        self.precision = files.precision
        self.hidden_size = files.hidden_size
        self.lengths = files.layout.lengths
        self.errors = {name: errors[name].relative for name in features}
        self.standardized_errors = {name: errors[name].standardized for name in features}
        self._files = files
        self._maps: dict[tuple[str, int], tuple[torch.Tensor, ...]] = {}

    @classmethod
    def compute(
        cls,
        folder: str | Path,
        teacher: Teacher,
        dataset: Any,
        features: Sequence[str],
        *,
        batch_size: int,
        precision: str = "bfloat16",
        tokens_per_shard: int = TOKENS_PER_SHARD,
        verify: bool = True,
        process_index: int = 0,
        num_processes: int = 1,
        wait: Callable[[], None] = lambda: None,
        show_progress: bool = False,
    ) -> TeacherStateCache:
        """Compute what is missing, then open the cache.

        Args:
            folder: Where caches are kept; all processes must see the same one.
            teacher: Whose features; it computes where it is.
            dataset: Texts as ``input_ids``, already truncated: a `datasets.Dataset` or any sized indexable of rows.
            features: Names of `Teacher.features`.
            batch_size: Texts in one pass of the teacher.
            precision: ``bfloat16`` (exact for a teacher that computes in it), ``float32``, or ``int8`` with one scale
                per token.
            tokens_per_shard: A shard ends with the text in which it reaches this many tokens.
            verify: Compare the checksums of existing files, and not only their sizes.
            process_index: Rank of this process, which computes each ``num_processes``-th shard.
            num_processes: Processes that share the work, all with the same arguments.
            wait: Barrier of these processes.
            show_progress: Whether to show a progress bar.

        Raises:
            ValueError: If an argument is wrong, if the disk is too small, or if the teacher's features are not finite.
            FileNotFoundError: If another process failed to do its part, or does it in another folder.
        """
        features = _checked_features(features, teacher)
        for name, value in {"batch_size": batch_size, "tokens_per_shard": tokens_per_shard}.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index={process_index} is not in [0, num_processes={num_processes}).")
        keyed_by, lengths = _keyed_by(teacher, dataset, precision, tokens_per_shard)
        key = _key_of(keyed_by)
        layout = _Layout(lengths, tokens_per_shard)
        files = _CacheFiles(Path(folder) / key, key, precision, teacher.dimensions.hidden_size, layout)
        files.path.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_temporaries(files.path)
        # the files that a readable manifest of this key names were complete when it was written; others may be anyone's
        verify = verify or _read_manifest_or_none(files.path) is None
        files.require_disk_space(features)
        wait()  # until all have looked at the disk: nobody writes before, so that all come to the same conclusion
        files.write_lengths()
        shards = range(process_index, layout.num_shards, num_processes)
        missing = {
            shard: [name for name in features if files.shard(name, shard).problem(verify) is not None]
            for shard in shards
        }
        missing = {shard: names for shard, names in missing.items() if names}
        if missing:
            logger.info(f"Computing {len(missing)} of {len(shards)} shards of the teacher's states in {files.path}")
        tokens = {shard: layout.num_tokens(shard) for shard in missing}
        with tqdm(
            desc="Teacher states", total=sum(tokens.values()), unit="token", unit_scale=True, disable=not show_progress
        ) as progress:
            for shard, names in missing.items():
                files.write_shard(shard, names, teacher, dataset, batch_size)
                progress.update(tokens[shard])
        wait()
        files.require_complete(features, verify=False)  # not so where processes do not see the same folder
        files.add_to_manifest(features, teacher.name, keyed_by)
        return cls.open(folder, key, features, verify=False)  # each process verified its part above

    @classmethod
    def open(cls, folder: str | Path, key: str, features: Sequence[str], *, verify: bool = True) -> TeacherStateCache:
        """Open a complete cache.

        Sizes are always checked. Checksums read every byte once, about a second for each gigabyte, which later reads
        then find in memory if it is large enough.

        Args:
            folder: Where caches are kept.
            key: Which one, see `cache_key`.
            features: Names that `states` shall give.
            verify: Compare the checksums as well.

        Raises:
            FileNotFoundError: If the cache, or a file of it, is missing.
            ValueError: If it belongs to another key, lacks a feature, or a file is damaged.
        """
        path = Path(folder) / _checked_key(key)
        if not (path / MANIFEST_NAME).is_file():
            raise FileNotFoundError(f"{path} is no complete cache of teacher states: it has no {MANIFEST_NAME}.")
        manifest = _Manifest.read(path)
        absent = [name for name in features if name not in manifest.features]
        if absent:
            raise ValueError(f"{path} lacks {', '.join(absent)}; it holds {', '.join(manifest.features)}.")
        lengths = _read_lengths(path, key, manifest.num_texts)
        layout = _Layout(lengths, manifest.tokens_per_shard)
        files = _CacheFiles(path, key, manifest.precision, manifest.hidden_size, layout)
        files.require_complete(features, verify)
        return cls(files, features, manifest.features)

    @staticmethod
    def remove(folder: str | Path, key: str) -> None:
        """Delete the cache of a key, if there is one.

        Raises:
            ValueError: If ``key`` is none: nothing else in ``folder`` is ever deleted.
        """
        shutil.rmtree(Path(folder) / _checked_key(key), ignore_errors=True)

    @property
    def num_texts(self) -> int:
        """Texts of the data set."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Real tokens of the data set."""
        return int(self.lengths.sum())

    @property
    def num_bytes(self) -> int:
        """Size on disk of the features that are open, in bytes."""
        shards = range(self._files.layout.num_shards)
        return sum(self._files.shard(*place).size for place in itertools.product(self.features, shards))

    def states(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The features of some texts.

        Args:
            indices: Texts by their number in the data set, in any order.

        Returns:
            For each feature ``(tokens, hidden_size)``, the real tokens of these texts in the order of ``indices``, on
            the CPU: bfloat16 or float32 (`int8` is scaled back to float32). The tensors own their memory.

        Raises:
            IndexError: If the data set has no such text.
        """
        index = torch.as_tensor(indices, dtype=torch.long, device="cpu").flatten()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_texts:
            raise IndexError(f"indices reach from {int(index.min())} to {int(index.max())} of {self.num_texts} texts.")
        layout = self._files.layout
        lengths = layout.lengths[index]
        index, lengths = index[lengths > 0], lengths[lengths > 0]
        places = list(
            zip(layout.shard_of[index].tolist(), layout.first_row[index].tolist(), lengths.tolist(), strict=True)
        )
        return {feature: self._gather(feature, places) for feature in self.features}

    def _gather(self, feature: str, places: list[tuple[int, int, int]]) -> torch.Tensor:
        if not places:
            return _decode(_empty_parts(0, self.hidden_size, self.precision))
        maps = [self._maps.get((feature, shard)) or self._map(feature, shard) for shard, _, _ in places]
        # torch.cat copies, also what is given alone
        parts = tuple(
            torch.cat([part.narrow(0, first, count) for part, (_, first, count) in zip(column, places, strict=True)])
            for column in zip(*maps, strict=True)
        )
        return _decode(parts)

    def _map(self, feature: str, shard: int) -> tuple[torch.Tensor, ...]:
        parts = self._maps[feature, shard] = self._files.shard(feature, shard).map()
        return parts


def cache_key(
    teacher: Teacher, dataset: Any, precision: str = "bfloat16", tokens_per_shard: int = TOKENS_PER_SHARD
) -> str:
    """Name of the cache that holds this teacher's features of these texts.

    A SHA-256 over the teacher's weights, the fields of its configuration that matter, what it computes in, its
    tokenizer, all token ids, the precision and the size of the shards. What only changes rounding is left out: the
    device, the attention kernel and the batch size.

    Raises:
        ValueError: If the data set cannot be read by index, or is empty.
    """
    return _key_of(_keyed_by(teacher, dataset, precision, tokens_per_shard)[0])


def cache_bytes(num_tokens: int, num_features: int, hidden_size: int, precision: str) -> int:
    """Size that a cache will have on disk, in bytes (checksums and lengths apart, far less than a percent)."""
    check_choice("precision", precision, PRECISIONS)
    return num_tokens * num_features * _bytes_per_token(hidden_size, precision)


# ---- what a cache is keyed by ----


def _keyed_by(
    teacher: Teacher, dataset: Any, precision: str, tokens_per_shard: int
) -> tuple[dict[str, str | int], torch.Tensor]:
    """What the key is a hash of, and the length of each text ``(texts,)``."""
    check_choice("precision", precision, PRECISIONS)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}, which has no length or no index; teacher states of a stream "
            "cannot be cached: load it as a whole, or pass --cache_teacher_states false."
        )
    texts, lengths = _digest_of_texts(dataset)
    if not len(lengths):
        raise ValueError("dataset has no texts; there are no teacher states to cache.")
    keyed_by: dict[str, str | int] = {
        "format": FORMAT_VERSION,
        "weights": _digest_of_weights(teacher.model),
        "config": _digest_of_config(teacher.model.config),
        "model_class": type(teacher.model).__name__,
        "dtype": str(teacher.model.dtype),
        "tokenizer": _digest_of_tokenizer(teacher.tokenizer),
        "texts": texts,
        "precision": precision,
        "tokens_per_shard": tokens_per_shard,
    }
    return keyed_by, lengths


def _key_of(keyed_by: Mapping[str, str | int]) -> str:
    return hashlib.sha256(json.dumps(keyed_by, sort_keys=True).encode()).hexdigest()


def _checked_key(key: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise ValueError(f"key={key!r} is no key of a cache, which has 64 hexadecimal digits; see cache_key.")
    return key


def _digest_of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # as bytes: numpy knows no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_config(config: PretrainedConfig) -> str:
    def without_volatile(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: without_volatile(field)
            for name, field in value.items()
            if not str(name).startswith("_") and name not in VOLATILE_CONFIG_FIELDS
        }

    fields = without_volatile(config.to_dict())
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()


def _digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    # what the last call happened to set; these fields come first, and to parse the vocabulary as well takes seconds
    for field in ("truncation", "padding"):
        before, found, after = state.partition(f'"{field}":')
        if found and backend is not None:
            _, end = json.JSONDecoder().raw_decode(after)
            state = before + after[end:]
    # how the teacher's batches are padded: on the left, some encoders see other positions
    return hashlib.sha256(f"{tokenizer.pad_token_id} {tokenizer.padding_side} {state}".encode()).hexdigest()


def _digest_of_texts(dataset: Any) -> tuple[str, torch.Tensor]:
    """Hash of all token ids, and the length of each text ``(texts,)``.

    The lengths are counted, whatever a column ``length`` says: every id is read here anyway.
    """
    digest = hashlib.sha256()
    counted = [np.zeros(0, dtype=np.int64)]
    for ids, lengths in token_chunks(dataset, 0, len(dataset)):
        digest.update(np.ascontiguousarray(ids).data)
        counted.append(lengths)
    all_lengths = np.concatenate(counted)
    digest.update(all_lengths.data)
    return digest.hexdigest(), torch.from_numpy(all_lengths)


# ---- what is computed ----


def _checked_features(features: Sequence[str], teacher: Teacher) -> list[str]:
    """The features, each once, if the teacher has them."""
    if not features:
        raise ValueError(f"features={features!r} names nothing; choose for example ['{HIDDEN_STATES}.1'].")
    layers = {str(layer) for layer in range(1, teacher.dimensions.num_layers + 1)}
    for name in features:
        kind, _, layer = name.partition(".")
        if kind not in (HIDDEN_STATES, ATTENTION_INPUT) or layer not in layers:
            raise ValueError(
                f"features={name!r} is unknown; choose {HIDDEN_STATES}.<layer> or {ATTENTION_INPUT}.<layer>, "
                f"layers 1 to {teacher.dimensions.num_layers}."
            )
        if kind == ATTENTION_INPUT:
            _ = teacher.attention_projections  # raises for an encoder in which they cannot be found
    return list(dict.fromkeys(features))


@dataclass
class _ShardFeature:
    """One feature of a shard's texts.

    Attributes:
        parts: What is stored, see `_encode`.
        sums: ``(3, hidden_size)`` float64, sums over the tokens: squared error, value and squared value.
    """

    parts: tuple[torch.Tensor, ...]
    sums: torch.Tensor


def _compute_features(
    teacher: Teacher, texts: Sequence[np.ndarray], features: Sequence[str], batch_size: int, precision: str
) -> dict[str, _ShardFeature]:
    """Features of a few texts, computed side by side with texts of similar length so that little is padded."""
    lengths = torch.tensor([len(ids) for ids in texts])
    first_rows = lengths.cumsum(0) - lengths
    size = teacher.dimensions.hidden_size
    computed = {
        name: _ShardFeature(_empty_parts(int(lengths.sum()), size, precision), torch.zeros(3, size).double())
        for name in features
    }
    collator = DataCollatorWithPadding(teacher.tokenizer)
    order = lengths.argsort(stable=True)
    order = order[lengths[order] > 0]
    for batch in order.split(batch_size) if len(order) else ():
        inputs = collator([{"input_ids": texts[index].tolist()} for index in batch.tolist()])
        mask = inputs["attention_mask"].to(teacher.device)
        rows = _rows_of(first_rows[batch], lengths[batch])
        for name, values in teacher.features(inputs["input_ids"].to(teacher.device), mask, features).items():
            real = values[mask.bool()]
            encoded = _encode(real, precision)
            computed[name].sums += _error_sums(real, _decode(encoded)).cpu()
            for part, new in zip(computed[name].parts, encoded, strict=True):
                part[rows] = new.cpu()
    return computed


def _rows_of(first_rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rows of the tokens of texts that begin at ``first_rows``, text by text."""
    before = lengths.cumsum(0) - lengths
    return torch.repeat_interleave(first_rows - before, lengths) + torch.arange(int(lengths.sum()))


def _encode(values: torch.Tensor, precision: str) -> tuple[torch.Tensor, ...]:
    """What is stored of vectors ``(tokens, hidden_size)``: themselves, or for int8 scales ``(tokens,)`` and codes."""
    if precision != "int8":
        return (values.to(getattr(torch, precision)),)
    values = values.float()
    scales = values.abs().amax(-1) / 127
    codes = (values / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)).round().to(torch.int8)
    return scales, codes


def _decode(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Vectors ``(tokens, hidden_size)`` from what `_encode` gave."""
    if len(parts) == 1:
        return parts[0]
    scales, codes = parts
    return codes.float().mul_(scales.unsqueeze(1))


def _empty_parts(num_tokens: int, hidden_size: int, precision: str) -> tuple[torch.Tensor, ...]:
    if precision == "int8":
        return torch.empty(num_tokens), torch.empty(num_tokens, hidden_size, dtype=torch.int8)
    return (torch.empty(num_tokens, hidden_size, dtype=getattr(torch, precision)),)


def _bytes_per_token(hidden_size: int, precision: str) -> int:
    return sum(part.nbytes for part in _empty_parts(1, hidden_size, precision))


def _error_sums(values: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Sums of a batch ``(3, hidden_size)``; float32, since not every accelerator has float64."""
    exact = values.float()
    return torch.stack([(stored.float() - exact).square().sum(0), exact.sum(0), exact.square().sum(0)])


@dataclass(frozen=True)
class FeatureError:
    """How far what is stored of a feature is from what the teacher said.

    Attributes:
        relative: Mean squared error over the variance, all dimensions together.
        standardized: Mean over dimensions of the mean squared error over the variance.
    """

    relative: float
    standardized: float

    @classmethod
    def from_sums(cls, sums: torch.Tensor, num_tokens: int) -> FeatureError:
        """From sums over all tokens ``(3, hidden_size)``: squared error, value and squared value."""
        error, mean, square = sums / num_tokens
        variance = square - mean.square()
        # as in HiddenStateStatistics: a dimension in which the teacher is constant is left unscaled
        scale = torch.where(variance > 1e-12, variance, 1.0)
        return cls(float(error.sum() / scale.sum()), float((error / scale).mean()))


# ---- what is on disk ----


class _Layout:
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
class _ShardFile:
    """One feature of one shard: the stored parts, then the sums of `_ShardFeature`, then a CRC-32 of all before.

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
        return self.num_tokens * _bytes_per_token(self.hidden_size, self.precision)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.parts_size + 3 * 8 * self.hidden_size + 4

    def problem(self, verify: bool) -> str | None:
        """Says why the file cannot be used, or returns None if it can."""
        return _problem_of_file(self.path, self.key, self.size, verify)

    def write(self, feature: _ShardFeature) -> None:
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
        for like in _empty_parts(1, self.hidden_size, self.precision):
            taken, content = content.tensor_split([like.nbytes * self.num_tokens])
            parts.append(taken.view(like.dtype).view(self.num_tokens, *like.shape[1:]))
        return tuple(parts)


@dataclass(frozen=True)
class _CacheFiles:
    """The directory of one key, and what is written into it."""

    path: Path
    key: str
    precision: str
    hidden_size: int
    layout: _Layout

    def shard(self, feature: str, shard: int) -> _ShardFile:
        """The file of a feature of a shard."""
        path = self.path / f"{feature}.{shard:05d}.bin"
        return _ShardFile(path, self.key, self.layout.num_tokens(shard), self.hidden_size, self.precision)

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
        for name, feature in _compute_features(teacher, texts, features, batch_size, self.precision).items():
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
        manifest = _read_manifest_or_none(self.path)
        if manifest is not None and manifest.features == {**manifest.features, **errors}:
            return  # as in all runs after the first; the directory may then be read-only
        with FileLock(self.path / ".lock"):  # other processes may enter other features now
            manifest = _read_manifest_or_none(self.path)
            others = manifest.features if manifest is not None else {}
            _Manifest(
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
class _Manifest:
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
    def read(cls, path: Path) -> _Manifest:
        """Read the manifest of a directory.

        Raises:
            ValueError: If it is damaged, or of another key than the directory.
        """
        try:
            content = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
            content["features"] = {name: FeatureError(**errors) for name, errors in content["features"].items()}
            manifest = cls(**content)
            of_this_key = manifest.key == path.name == _key_of(manifest.keyed_by)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path / MANIFEST_NAME} is damaged ({error}).") from error
        if not of_this_key:
            raise ValueError(f"{path / MANIFEST_NAME} belongs to another key, {manifest.key}.")
        return manifest

    def write(self, path: Path) -> None:
        """Write the manifest into a directory, for people to read as well."""
        content = json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"
        _write_atomically(path / MANIFEST_NAME, [content.encode()])


def _read_manifest_or_none(path: Path) -> _Manifest | None:
    try:
        return _Manifest.read(path)
    except ValueError:
        return None


def _read_lengths(path: Path, key: str, num_texts: int) -> torch.Tensor:
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


def _remove_abandoned_temporaries(path: Path) -> None:
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
