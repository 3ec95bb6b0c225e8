"""The teacher's features of a tokenised data set, computed once: on disk, for every student and every epoch."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .arguments import CACHE_PRECISIONS, check_choice
from .state_cache_files import (
    MANIFEST_NAME,
    CacheFiles,
    Layout,
    Manifest,
    read_lengths,
    read_manifest_or_none,
    remove_abandoned_temporaries,
)
from .state_cache_key import TOKENS_PER_SHARD, checked_key, key_fields, key_of
from .stored_states import FeatureError, bytes_per_token, decode, empty_parts
from .teacher import ATTENTION_INPUT, HIDDEN_STATES, Teacher

logger = logging.get_logger(__name__)


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
        precision: One of `CACHE_PRECISIONS`.
        hidden_size: Width of the vectors.
        lengths: ``(texts,)``, tokens of each text.
        errors: For each feature, mean squared error of the stored vectors over their variance (1 - R²).
        standardized_errors: The same averaged over dimensions after each was divided by its standard deviation: what
            a student sees that learns standardised states, in which no dimension of huge variance hides the others.
    """

    def __init__(self, files: CacheFiles, features: Sequence[str], errors: Mapping[str, FeatureError]) -> None:
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
        keyed_by, lengths = key_fields(teacher, dataset, precision, tokens_per_shard)
        key = key_of(keyed_by)
        layout = Layout(lengths, tokens_per_shard)
        files = CacheFiles(Path(folder) / key, key, precision, teacher.dimensions.hidden_size, layout)
        files.path.mkdir(parents=True, exist_ok=True)
        remove_abandoned_temporaries(files.path)
        # the files that a readable manifest of this key names were complete when it was written; others may be anyone's
        verify = verify or read_manifest_or_none(files.path) is None
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
        path = Path(folder) / checked_key(key)
        if not (path / MANIFEST_NAME).is_file():
            raise FileNotFoundError(f"{path} is no complete cache of teacher states: it has no {MANIFEST_NAME}.")
        manifest = Manifest.read(path)
        absent = [name for name in features if name not in manifest.features]
        if absent:
            raise ValueError(f"{path} lacks {', '.join(absent)}; it holds {', '.join(manifest.features)}.")
        lengths = read_lengths(path, key, manifest.num_texts)
        layout = Layout(lengths, manifest.tokens_per_shard)
        files = CacheFiles(path, key, manifest.precision, manifest.hidden_size, layout)
        files.require_complete(features, verify)
        return cls(files, features, manifest.features)

    @staticmethod
    def remove(folder: str | Path, key: str) -> None:
        """Delete the cache of a key, if there is one.

        Raises:
            ValueError: If ``key`` is none: nothing else in ``folder`` is ever deleted.
        """
        shutil.rmtree(Path(folder) / checked_key(key), ignore_errors=True)

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
            return decode(empty_parts(0, self.hidden_size, self.precision))
        maps = [self._maps.get((feature, shard)) or self._map(feature, shard) for shard, _, _ in places]
        # torch.cat copies, also what is given alone
        parts = tuple(
            torch.cat([part.narrow(0, first, count) for part, (_, first, count) in zip(column, places, strict=True)])
            for column in zip(*maps, strict=True)
        )
        return decode(parts)

    def _map(self, feature: str, shard: int) -> tuple[torch.Tensor, ...]:
        parts = self._maps[feature, shard] = self._files.shard(feature, shard).map()
        return parts


def cache_bytes(num_tokens: int, num_features: int, hidden_size: int, precision: str) -> int:
    """Size that a cache will have on disk, in bytes (checksums and lengths apart, far less than a percent)."""
    check_choice("precision", precision, CACHE_PRECISIONS)
    return num_tokens * num_features * bytes_per_token(hidden_size, precision)


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
