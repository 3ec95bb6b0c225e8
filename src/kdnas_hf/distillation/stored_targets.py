"""Targets that are computed once and kept on disk: for every student and every pass over the text."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..data.batching import digest_of_texts, text_lengths
from ..utils.atomic_files import write_atomically
from ..utils.model_digest import digest_of_model
from .arguments import DistillationTrainingArguments
from .targets import STORED
from .teacher import Teacher
from .teacher_outputs import Required, TeacherOutputs

logger = logging.get_logger(__name__)

CACHE_FOLDER = "teacher_states"
DECISION_NAME = "targets.json"
# texts are stored in so many files at most, so that processes share the work and a killed run loses little of it
_MOST_FILES = 64
_FEWEST_TOKENS = 2**13


@dataclass(frozen=True)
class Layout:
    """How the teacher's outputs for a text lie in its bytes: those of its tokens, one after the other, then its own.

    Attributes:
        required: What is stored.
        dtype: Of all outputs.
        outputs: Those for a text of one token.
    """

    required: Required
    dtype: torch.dtype
    outputs: TeacherOutputs

    @classmethod
    def of(cls, teacher: Teacher, required: Required, dtype: torch.dtype) -> Layout:
        """The layout of a teacher's outputs, found by calling it on one token."""
        token = torch.zeros((1, 1), dtype=torch.long, device=teacher.device)
        return cls(required, dtype, teacher(token, torch.ones_like(token), required, dtype).apply(torch.Tensor.cpu))

    def sizes(self, dim: int) -> list[int]:
        """Values of each output that has as many dimensions: 3 for those of tokens, 2 for those of texts."""
        return [part.shape[-1] for part in self.outputs.tensors() if part.dim() == dim]

    def bytes_of(self, texts: int, tokens: int) -> int:
        """Size of the outputs for some texts of so many tokens in all."""
        return (texts * sum(self.sizes(2)) + tokens * sum(self.sizes(3))) * self.dtype.itemsize

    def pack(self, outputs: TeacherOutputs, lengths: Sequence[int]) -> list[bytes]:
        """The outputs for texts of these lengths, padded on the right, as bytes for each."""
        of_tokens, of_texts = (self._joined(outputs, dim) for dim in (3, 2))
        return [
            tokens[:length].tobytes() + text.tobytes()
            for tokens, text, length in zip(of_tokens, of_texts, lengths, strict=True)
        ]

    def _joined(self, outputs: TeacherOutputs, dim: int) -> np.ndarray:
        parts = [part for part in outputs.tensors() if part.dim() == dim]
        if not parts:
            return np.empty((len(outputs.tensors()[0]), 0), dtype=np.uint8)
        return torch.cat([part.to(self.dtype) for part in parts], dim=-1).cpu().view(torch.uint8).numpy()

    def unpack(self, texts: Sequence[np.ndarray], length: int) -> TeacherOutputs:
        """The outputs for texts, given as bytes, padded to ``length`` with zeros."""
        token_bytes, text_bytes = self.bytes_of(0, 1), self.bytes_of(1, 0)
        of_tokens = np.zeros((len(texts), length, token_bytes), dtype=np.uint8)
        of_texts = np.zeros((len(texts), text_bytes), dtype=np.uint8)
        for tokens, text, stored in zip(of_tokens, of_texts, texts, strict=True):
            if len(stored):  # a text without tokens has no outputs
                own = stored[: len(stored) - text_bytes].reshape(-1, token_bytes) if token_bytes else tokens[:0]
                tokens[: len(own)], text[:] = own, stored[len(stored) - text_bytes :]
        parts = {
            dim: iter(torch.from_numpy(values).view(self.dtype).split(self.sizes(dim), dim=-1))
            for dim, values in ((3, of_tokens), (2, of_texts))
            if values.shape[-1]
        }
        return self.outputs.apply(lambda one: next(parts[one.dim()]))


class StoredRow(NamedTuple):
    """The teacher's outputs for a text, as bytes."""

    layout: Layout
    stored: np.ndarray


class StoredTargets(Dataset):
    """Texts whose rows carry the teacher's outputs, memory-mapped.

    Args:
        texts: The texts, with whatever else is known of them.
        outputs: A row of bytes for each text.
        layout: How outputs lie in these.
        path: Where they are kept.
    """

    def __init__(self, texts: Any, outputs: datasets.Dataset, layout: Layout, path: Path) -> None:
        self.texts = texts
        self.outputs = outputs.with_format("arrow")
        self.layout = layout
        self.path = path
        self.lengths = text_lengths(texts)

    def check(self, name: str, required: Required, masks_tokens: bool) -> None:
        """Raise ValueError unless students can learn from these targets, given as the argument ``name``."""
        if masks_tokens:
            raise ValueError(f"{name} holds stored targets of whole texts, and a loss masks tokens; give the texts.")
        if required | self.layout.required != self.layout.required:
            raise ValueError(f"{name} holds stored targets that lack some that students learn from; store all of them.")

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Rows of a batch, read at once."""
        indices, several = list(indices), isinstance(self.texts, datasets.Dataset)
        texts = self.texts.__getitems__(indices) if several else [self.texts[index] for index in indices]
        stored = (np.frombuffer(value.as_buffer(), np.uint8) for value in self.outputs[indices][STORED])
        rows = (StoredRow(self.layout, values) for values in stored)
        return [{**text, STORED: row} for text, row in zip(texts, rows, strict=True)]


class StoredTargetsCollator:
    """Pads stored outputs, if rows carry any, beside what another collator makes of the texts."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch, with the outputs under `STORED`."""
        stored: list[StoredRow] = [row[STORED] for row in rows if STORED in row]
        batch = dict(self.collator([{k: v for k, v in row.items() if k != STORED} for row in rows]))
        if stored:
            batch[STORED] = stored[0].layout.unpack([row.stored for row in stored], batch["input_ids"].shape[1])
        return batch


def store_targets(
    teacher: Teacher,
    dataset: Any,
    required: Required,
    folder: str | Path,
    *,
    dtype: torch.dtype,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
    wait: Callable[[], None] = lambda: None,
    show_progress: bool = False,
) -> StoredTargets:
    """Compute what is missing of the teacher's outputs for a tokenized data set, and open them.

    They are kept under a digest of teacher, texts, layers and dtype. Files appear complete or not at all.

    Args:
        teacher: Computes where it is.
        dataset: Texts as ``input_ids``, already truncated: a `datasets.Dataset` or any sized indexable of rows.
        required: What is stored.
        folder: Where outputs are kept; all processes must see the same one.
        dtype: What the teacher computes in, and what is stored.
        batch_size: Texts in one pass of the teacher.
        process_index: Rank of this process; each computes each ``num_processes``-th file and calls ``wait``.
        num_processes: Processes that share the work.
        wait: Barrier of these processes.
        show_progress: Whether to show a progress bar.

    Raises:
        OSError: If the disk is full, or another process did not do its part.
    """
    layout = Layout.of(teacher, required, dtype)
    path = Path(folder) / _key(teacher, dataset, layout)
    path.mkdir(parents=True, exist_ok=True)
    texts = len(dataset)
    count = min(_MOST_FILES, max(sum(text_lengths(dataset)) // _FEWEST_TOKENS, 1), max(texts, 1))
    files = [path / f"{number:02d}-of-{count:02d}.arrow" for number in range(count)]
    own = [number for number in range(process_index, count, num_processes) if not files[number].is_file()]
    if own:
        logger.info(f"computing {len(own)} of {count} files of the teacher's outputs in {path}")
    for number in tqdm(own, desc="teacher", unit="file", disable=not (show_progress and own)):
        part = range(texts * number // count, texts * (number + 1) // count)
        rows = [np.asarray(dataset[index]["input_ids"]).tolist() for index in part]
        write_atomically(files[number], partial(_write, rows, teacher, layout, batch_size))
    wait()
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} was not written; all processes must see the same cache_dir.")
    opened = [datasets.Dataset.from_file(str(file)) for file in files]
    return StoredTargets(dataset, datasets.concatenate_datasets(opened), layout, path)


def _key(teacher: Teacher, dataset: Any, layout: Layout) -> str:
    """Digest of everything that the outputs depend on."""
    model = teacher.task_model if layout.required.task_logits else teacher.model
    assert model is not None
    settings = [digest_of_model(model), digest_of_texts(dataset), asdict(layout.required), str(layout.dtype)]
    if layout.required.sentence_vectors:
        assert teacher.sentence_head is not None
        settings.append(teacher.sentence_head.digest())
    text = json.dumps(settings, sort_keys=True, default=sorted)  # sets of layers in order
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write(rows: list[list[int]], teacher: Teacher, layout: Layout, batch_size: int, file: Path) -> None:
    """Write the outputs for some texts, given as token ids."""
    collator: Any = DataCollatorWithPadding(teacher.tokenizer)
    schema = pa.schema({STORED: pa.large_binary()})
    with pa.ipc.new_stream(str(file), schema) as writer:
        for first in range(0, len(rows), 8 * batch_size):
            ids = rows[first : first + 8 * batch_size]
            packed = [b""] * len(ids)
            # texts of similar length side by side, so that little is padded
            order = sorted((n for n in range(len(ids)) if ids[n]), key=lambda n: len(ids[n]))
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                inputs = collator([{"input_ids": ids[n]} for n in chosen]).to(teacher.device)
                outputs = teacher(inputs["input_ids"], inputs["attention_mask"], layout.required, layout.dtype)
                for n, values in zip(chosen, layout.pack(outputs, [len(ids[n]) for n in chosen]), strict=True):
                    packed[n] = values
            writer.write_batch(pa.record_batch([pa.array(packed, pa.large_binary())], schema=schema))


def store_if_it_pays(
    teacher: Teacher,
    texts: Sequence[Any],
    required: Required,
    storable: bool,
    args: DistillationTrainingArguments,
    passes: float,
    wait: Callable[[], None] = lambda: None,
) -> list[StoredTargets] | None:
    """Store the teacher's outputs for some data sets, if the arguments ask for it or it pays.

    It pays on a CPU, where a text is read more than once: an accelerator computes them faster than they are read.
    What was decided is kept in the run directory, so that a resumed run decides alike.

    Args:
        teacher: On the device where it shall compute.
        texts: Tokenized texts; one data set is returned for each, or None where outputs are computed when needed.
        required: What students learn from.
        storable: Whether all targets depend on the text alone.
        args: ``cache_teacher_states``, ``cache_max_gb`` and where to keep them.
        passes: How often the texts are read.
        wait: Barrier of all processes.

    Raises:
        ValueError: If they are to be stored at any price and cannot be.
    """
    decision, automatic = Path(args.output_dir or ".") / DECISION_NAME, args.cache_teacher_states == "auto"
    if automatic and decision.is_file():
        reason = json.loads(decision.read_text(encoding="utf-8"))["computed_because"]
    else:
        reason = reason_against_storing(teacher, texts, required, storable, args, passes)
    if args.world_size > 1:  # disks may differ between machines; all processes must do the same
        reason = broadcast_object_list([reason])[0]
    if reason is not None and args.cache_teacher_states == "true":
        raise ValueError(f"cache_teacher_states=true: {reason}")
    if args.process_index == 0 and automatic:
        decision.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(decision, json.dumps({"computed_because": reason}) + "\n")
    if reason is not None:
        logger.info(f"the teacher's outputs are computed when they are needed: {reason}")
        return None
    process, processes = args.process_index, args.world_size
    if args.save_on_each_node and "LOCAL_WORLD_SIZE" in os.environ:  # machines share no disk: each keeps all outputs
        process, processes = args.local_process_index, int(os.environ["LOCAL_WORLD_SIZE"])
    store = partial(
        store_targets,
        dtype=args.teacher_torch_dtype or teacher.model.dtype,
        batch_size=args.per_device_eval_batch_size,
        process_index=process,
        num_processes=processes,
        wait=wait,
        show_progress=not args.disable_tqdm and args.process_index == 0,
    )
    return [store(teacher, dataset, required, cache_folder(args)) for dataset in texts]


def reason_against_storing(
    teacher: Teacher,
    texts: Sequence[Any],
    required: Required,
    storable: bool,
    args: DistillationTrainingArguments,
    passes: float,
) -> str | None:
    """Why the teacher's outputs are not stored; None where they are. Arguments as of `store_if_it_pays`."""
    automatic = args.cache_teacher_states == "auto"
    if args.cache_teacher_states == "false":
        return "cache_teacher_states=false."
    if not storable or not required:
        return "no loss has targets that depend on the text alone, or another has not; leave it out, or store nothing."
    if not all(has_length(dataset) for dataset in texts):
        return "a data set is a stream; load it as a whole, or store nothing."
    if automatic and teacher.device.type != "cpu":
        return f"a teacher on {teacher.device.type} is faster than the disk."
    if automatic and passes <= 1:
        return "each text is read once."
    layout = Layout.of(teacher, required, args.teacher_torch_dtype or teacher.model.dtype)
    lengths = [text_lengths(dataset) for dataset in texts]
    size = layout.bytes_of(sum(map(len, lengths)), sum(map(sum, lengths)))
    if size > args.cache_max_gb * 1e9:
        return f"they would take {size / 1e9:.1f} GB, more than cache_max_gb={args.cache_max_gb}."
    folder = cache_folder(args)
    existing = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    # a resumed run finds its own outputs there, which are not to count against it
    kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(existing).free + kept
    if size > (free / 2 if automatic else free):
        return f"they would take {size / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are free on the disk."
    return None


def cache_folder(args: DistillationTrainingArguments) -> Path:
    """Where the teacher's outputs of a run are kept."""
    return Path(args.cache_dir) if args.cache_dir else Path(args.output_dir or ".") / CACHE_FOLDER
