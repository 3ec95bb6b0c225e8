"""Rules of thumb: the shapes that an engineer would try without a search, and random ones, at a given latency."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..students import Architecture
from .controllers.rules_of_thumb import evenly_spaced
from .space import SearchSpace

NEURON_STEPS = 24  # the teacher's feed-forward size is cut into so many: 64 neurons of 1536
NARROW_DEPTHS = (3, 4, 6, 2, 1)
TOLERANCE = 0.03  # latencies that differ by less are equal
DRAWN = 4000

Predict = Callable[[Sequence[Architecture]], np.ndarray]


def rules_of_thumb(
    space: SearchSpace, teacher: Architecture, predict: Predict, latency: float, count: int | None = None
) -> dict[str, Architecture]:
    """Shapes that fill a latency without a search, by the rule in words; the most usual first.

    The teacher's width with each depth, its feed-forward blocks as large as the latency allows (at most the teacher's);
    then narrower and deeper students, with feed-forward blocks of four times their width, as TinyBERT and MiniLM are.
    Where the space has teacher layers to keep, a student of the teacher's width is there twice: with layers at even
    spacing that end at the last one, as is usual, and with those that it keeps where nobody chooses them. They need not
    be members of the space, and may take more by half of what counts as equal. ``latency`` is in the unit of
    ``predict``; there are at most ``count``, all by default.
    """
    found: dict[str, Architecture] = {}
    for name, candidates in _rules(teacher):
        able = [one for one in candidates if predict([one])[0] <= latency * (1 + TOLERANCE / 2)]
        if able and able[-1] not in found.values():
            if space.teacher_layers and able[-1].hidden_size == teacher.hidden_size:
                kept = evenly_spaced(able[-1].num_hidden_layers, teacher.num_hidden_layers)
                found[f"{name} that end with its last"] = replace(able[-1], teacher_layers=kept)
            found[name] = able[-1]
    return dict(list(found.items())[:count])


def _rules(teacher: Architecture) -> Iterator[tuple[str, list[Architecture]]]:
    """Rules in words, each with its shapes, the slowest last."""
    width, inner = teacher.hidden_size, teacher.per_layer("intermediate_size")[0]
    head = width // teacher.per_layer("num_attention_heads")[0]
    activation = teacher.per_layer("hidden_act")[0]
    # a feed-forward block that is narrower than the states is nobody's rule
    step = max(inner // NEURON_STEPS, 1)
    sizes = range(-(-width // step) * step, inner + 1, step)
    for depth in range(teacher.num_hidden_layers - 1, 0, -1):
        wide = [Architecture(depth, width // head, width, size, activation) for size in sizes]
        yield f"teacher's width, {depth} layer(s)", wide
    for depth in NARROW_DEPTHS:
        narrow = [Architecture(depth, size // head, size, 4 * size, activation) for size in range(head, width, head)]
        yield f"narrower, {depth} layers", narrow


def random_architectures(
    space: SearchSpace, predict: Predict, latency: float, count: int, seed: int, without: Sequence[Architecture] = ()
) -> list[Architecture]:
    """Random members of the space that are expected to be as fast as ``latency``, in the unit of ``predict``.

    Where there are fewer than ``count``, they are the nearest; those of ``without`` are not drawn.
    """
    if not (drawn := [one for one in space.sample(random.Random(seed), DRAWN) if one not in without]):
        return []
    distance = np.abs(predict(drawn) / latency - 1)
    equal = [one for one, far in zip(drawn, distance, strict=True) if far <= TOLERANCE]
    if len(equal) < count:
        equal = [drawn[index] for index in np.argsort(distance, kind="stable")]
    return equal[:count]
