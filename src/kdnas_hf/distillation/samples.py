"""A sample of the text with its targets, from which statistics are estimated and to which projections are fitted."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.accelerator import Accelerator

from ..data.batching import sample_of_texts
from .arguments import DistillationTrainingArguments
from .batch import DistillationBatch
from .labelled_texts import padding_collator
from .losses import Loss
from .member import Member
from .pool import StudentPool
from .statistics import HiddenStateStatistics
from .stored_targets import StoredTargetsCollator
from .student_outputs import StudentOutputs
from .targets import STORED, Targets


def sample_batches(
    targets: Targets, texts: Any, args: DistillationTrainingArguments, device: torch.device
) -> Iterator[DistillationBatch]:
    """Batches of ``args.statistics_sentences`` random texts, in order of length, with their targets."""
    sample = sample_of_texts(texts, args.statistics_sentences, args.seed)
    rows = [{name: row[name] for name in ("input_ids", STORED) if name in row} for row in sample]
    collator = StoredTargetsCollator(padding_collator(targets.teacher.tokenizer, tags=False))
    for start in range(0, len(rows), args.eval_batch_size):
        batch = collator(rows[start : start + args.eval_batch_size])
        inputs = {name: values.to(device) for name, values in batch.items()}
        read = DistillationBatch(inputs["input_ids"], inputs["attention_mask"], torch.ones((), device=device))
        targets(inputs, read)
        yield read


def estimate_statistics(
    targets: Targets, texts: Any, args: DistillationTrainingArguments, device: torch.device
) -> HiddenStateStatistics:
    """Estimate mean and variance of the teacher's states, for every layer that is required, from a sample of the text.

    Raises:
        ValueError: If there are fewer than two tokens.
    """
    layers = sorted(targets.required.hidden_states)
    sample = sample_batches(targets.raw(), texts, args, device)
    return HiddenStateStatistics.estimate({n: batch.teacher_states(n) for n in layers} for batch in sample)


@torch.no_grad()
def fit_losses(
    pool: StudentPool, targets: Targets, texts: Any, args: DistillationTrainingArguments, accelerator: Accelerator
) -> None:
    """Start the losses of members that have not started yet where a sample of the text puts them."""
    # made when the first loss asks for it: many start without
    sample = functools.cache(lambda: list(sample_batches(targets, texts, args, accelerator.device)))
    if targets.accelerator and any(loss.fit is not Loss.fit for loss in pool.losses):
        sample()  # all processes compute the targets together, also one whose members ask for nothing

    def read_by(member: Member) -> Iterator[tuple[StudentOutputs, DistillationBatch]]:
        for batch in sample():
            yield member(batch), batch

    was_training = pool.training
    pool.eval()
    with accelerator.autocast():
        for member in [member for _, member in pool.items() if not member.started]:
            for loss in member.all_losses():
                loss.fit(read_by(member))
            member.started = True
    pool.train(was_training)
