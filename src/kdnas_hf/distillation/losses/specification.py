"""Which losses there are, what each one needs, and how a weighted choice of them is written."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LossSpecification:
    """What a loss compares, and what has to be computed for it.

    Attributes:
        description: One line for help texts.
        needs_hidden_states: Outputs of mapped layers of both, with projections between them.
        needs_attention_inputs: What queries, keys and values are made from.
        needs_attention_maps: Attention probabilities, which only the eager implementation gives.
        needs_masked_lm_head: Heads that predict tokens, of the student and of whatever else the loss compares it with.
        masks_tokens: Whether tokens of the input are masked, and only these positions count.
        needs_task_head: Heads that classify texts or tokens, and texts with labels; only what is labelled counts.
    """

    description: str
    needs_hidden_states: bool = False
    needs_attention_inputs: bool = False
    needs_attention_maps: bool = False
    needs_masked_lm_head: bool = False
    masks_tokens: bool = False
    needs_task_head: bool = False


LOSS_SPECIFICATIONS: dict[str, LossSpecification] = {
    "hidden_states": LossSpecification(
        "mean squared error between projected student layers and teacher layers", needs_hidden_states=True
    ),
    "cosine": LossSpecification(
        "1 - cosine between projected student layers and teacher layers", needs_hidden_states=True
    ),
    "relations": LossSpecification(
        "KL divergence between relations among queries, among keys and among values (MiniLMv2)",
        needs_attention_inputs=True,
    ),
    "attention_maps": LossSpecification(
        "KL divergence between attention probabilities of mapped layers", needs_attention_maps=True
    ),
    "logits": LossSpecification(
        "KL divergence between softened predictions of masked tokens", needs_masked_lm_head=True, masks_tokens=True
    ),
    "masked_lm": LossSpecification(
        "cross-entropy of masked tokens, without the teacher", needs_masked_lm_head=True, masks_tokens=True
    ),
    "soft_labels": LossSpecification(
        "KL divergence between softened predictions of a task's classes", needs_task_head=True
    ),
    "labels": LossSpecification("cross-entropy of a task's labels, without the teacher", needs_task_head=True),
}
LOSSES = tuple(LOSS_SPECIFICATIONS)


def parse_losses(values: Sequence[str] | str) -> dict[str, float]:
    """Read a weighted choice of losses.

    Args:
        values: ``"hidden_states:1.0 relations:0.5"``, separated by spaces or commas, or a list of such items. A bare
            name has weight 1.

    Returns:
        Weights by name, in the order given.

    Raises:
        ValueError: If there is none, one is unknown or named twice, two do not go together, or a weight is no positive
            finite number.
    """
    weights: dict[str, float] = {}
    for item in _items(values):
        name, colon, weight = item.partition(":")
        if name not in LOSS_SPECIFICATIONS:
            nearest = difflib.get_close_matches(name, LOSSES, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
            raise ValueError(f"losses: {item!r} names no loss{hint} Choose from {', '.join(LOSSES)}.")
        if name in weights:
            raise ValueError(f"losses: {item!r} names {name} a second time; give each loss once.")
        weights[name] = _weight(item, weight) if colon else 1.0
    if not weights:
        raise ValueError(f"losses={values!r} names no loss; choose from {', '.join(LOSSES)}.")
    masked = [name for name in weights if LOSS_SPECIFICATIONS[name].masks_tokens]
    labelled = [name for name in weights if LOSS_SPECIFICATIONS[name].needs_task_head]
    if masked and labelled:
        raise ValueError(
            f"losses: {masked[0]!r} masks tokens, whose text {labelled[0]!r} must read whole; leave one of them out."
        )
    return weights


def _items(values: Sequence[str] | str) -> list[str]:
    if isinstance(values, str):
        values = [values]
    # a mapping would iterate as bare names, and its weights would be lost without a word
    if isinstance(values, Mapping) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"losses={values!r} is no text; write <name>:<weight>, as 'hidden_states:1.0 relations:0.5'.")
    return " ".join(values).replace(",", " ").split()


def _weight(item: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(
            f"losses: {item!r} is not of the form <name>:<weight>; write it as 'relations:0.5', without spaces."
        ) from None
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"losses: the weight of {item!r} is not a positive finite number; leave out what has none.")
    return weight
