"""One batch of text with everything that the teacher says about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

IGNORED_LABEL = -100  # what losses of transformers ignore


@dataclass
class DistillationBatch:
    """What students read, and what they learn from it.

    Attributes:
        input_ids: ``(batch, sequence)``.
        attention_mask: ``(batch, sequence)``, 1 for real tokens.
        real_tokens: ``(tokens,)``, positions of the real tokens in the flattened batch.
        num_tokens: Scalar that errors summed over tokens are divided by: the real tokens of the whole accumulated
            batch, of which this may be a part.
        targets: For each teacher layer its states ``(tokens, teacher_hidden_size)``, standardised if asked for.
        relations: For each teacher layer its queries, keys and values, each ``(batch, sequence, heads * head_size)``.
        attention_maps: For each teacher layer its probabilities ``(batch, heads, sequence, sequence)``.
        labels: ``(batch, sequence)``, the tokens that were masked or the classes of tokens, or ``(batch,)``, the
            classes of texts; -100 where there is none. None where no loss needs any.
        num_labels: Scalar that errors summed over labels are divided by.
        task_logits: The teacher's of a task's classes, ``(batch, classes)`` or ``(batch, sequence, classes)``.
        teacher_decoder: States ``(masked tokens, size)`` that enter the teacher's decoder, its weight
            ``(vocab_size, size)`` and its bias ``(vocab_size,)``, if it has one.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    real_tokens: torch.Tensor
    num_tokens: torch.Tensor
    targets: dict[int, torch.Tensor] = field(default_factory=dict)
    relations: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    attention_maps: dict[int, torch.Tensor] = field(default_factory=dict)
    labels: torch.Tensor | None = None
    num_labels: torch.Tensor | None = None
    teacher_decoder: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
    task_logits: torch.Tensor | None = None

    @property
    def labelled(self) -> torch.Tensor:
        """Positions ``(labels,)`` of what has a label: tokens of the flattened batch, or texts."""
        return self.masked_tokens

    @property
    def masked_tokens(self) -> torch.Tensor:
        """Positions ``(masked tokens,)`` of the masked tokens in the flattened batch."""
        assert self.labels is not None
        return (self.labels.flatten() != IGNORED_LABEL).nonzero().squeeze(1)
