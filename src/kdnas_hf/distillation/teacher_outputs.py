"""What a teacher says about a batch of text, and which parts of it a loss asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch

from ..utils.decoders import DecoderInputs


@dataclass(frozen=True)
class Required:
    """The teacher outputs that are needed.

    Attributes:
        hidden_states: Layers, counted from 1, whose output is needed. The last layer's is the model's
            ``last_hidden_state``, after a final norm where the architecture has one.
        queries_keys_values: Layers whose queries, keys and values are needed.
        attention_maps: Layers whose attention probabilities are needed.
        task_logits: Whether the logits of a fine-tuned teacher's classes are needed.
        token_logits: Whether the distribution over the vocabulary at masked tokens is needed.
        sentence_vectors: Whether the vectors of whole texts are needed.
    """

    hidden_states: frozenset[int] = frozenset()
    queries_keys_values: frozenset[int] = frozenset()
    attention_maps: frozenset[int] = frozenset()
    task_logits: bool = False
    token_logits: bool = False
    sentence_vectors: bool = False

    def __or__(self, other: Required) -> Required:
        return Required(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(Required)})

    def __bool__(self) -> bool:
        return any(getattr(self, f.name) for f in fields(Required))


@dataclass
class TeacherOutputs:
    """The teacher's outputs for one batch, by layer (counted from 1), padded as the batch is.

    Attributes:
        hidden_states: For each layer ``(batch, sequence, hidden_size)``.
        queries_keys_values: For each layer its queries, keys and values, each ``(batch, sequence, heads * head_size)``.
        attention_maps: For each layer probabilities ``(batch, heads, sequence, sequence)``.
        task_logits: ``(batch, classes)``, or ``(batch, sequence, classes)`` where each token has a class.
        sentence_vectors: ``(batch, dimension)``, in float32 unless they were stored.
        decoder: What logits over the vocabulary are made from at the masked tokens.
    """

    hidden_states: dict[int, torch.Tensor] = field(default_factory=dict)
    queries_keys_values: dict[int, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    attention_maps: dict[int, torch.Tensor] = field(default_factory=dict)
    task_logits: torch.Tensor | None = None
    sentence_vectors: torch.Tensor | None = None
    decoder: DecoderInputs | None = None

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor that has a row for each text (all but those of ``decoder``)."""
        projections = [states for three in self.queries_keys_values.values() for states in three]
        of_texts = [made for made in (self.task_logits, self.sentence_vectors) if made is not None]
        return [*self.hidden_states.values(), *projections, *self.attention_maps.values(), *of_texts]

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> TeacherOutputs:
        """The outputs with a function applied to each of `tensors`, in their order."""
        return TeacherOutputs(
            {layer: function(states) for layer, states in self.hidden_states.items()},
            {layer: tuple(map(function, states)) for layer, states in self.queries_keys_values.items()},
            {layer: function(maps) for layer, maps in self.attention_maps.items()},
            None if self.task_logits is None else function(self.task_logits),
            None if self.sentence_vectors is None else function(self.sentence_vectors),
            self.decoder,
        )

    def to(self, device: torch.device) -> TeacherOutputs:
        """The outputs on a device; asynchronously from pinned memory."""
        return self.apply(lambda values: values.to(device, non_blocking=True))

    def pin_memory(self) -> TeacherOutputs:
        """The outputs in pinned memory, as a `DataLoader` asks for."""
        return self.apply(torch.Tensor.pin_memory)
