"""Which teacher layers each student layer learns from.

Layers are numbered from 1: layer ``i`` is the output of the ``i``-th transformer block, that is
``hidden_states[i]`` of a model called with ``output_hidden_states=True``. Entry 0, the output of the embeddings, is no
layer and is never mapped. The last layer is the model's ``last_hidden_state``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..utils.choices import nearest

LAYER_MAPPINGS = ("uniform", "last", "uniform+last", "final")


class LayerPair(NamedTuple):
    """Student layer ``student`` learns from teacher layer ``teacher``; both are counted from 1."""

    student: int
    teacher: int


def resolve_layer_mapping(
    mapping: str | Iterable[tuple[int, int]], student_layers: int, teacher_layers: int
) -> tuple[LayerPair, ...]:
    """Resolve a layer mapping for a student and a teacher of given depths.

    Args:
        mapping: One of

            - ``"uniform"``: the teacher's layers at even spacing; student layer ``i`` learns from teacher layer
              ``i * L_T / L_S``, halves rounded up, so the last student layer learns from the last teacher layer;
            - ``"last"``: student layer ``i`` learns from teacher layer ``L_T - L_S + i``;
            - ``"uniform+last"``: each student layer learns from both (KD-NAS as published, arXiv 2303.09639);
            - ``"final"``: only the last student layer learns, from the last teacher layer;
            - pairs, as ``[(1, 4), (2, 8)]`` or ``"1:4 2:8"``.
        student_layers: Number of layers of the student, L_S.
        teacher_layers: Number of layers of the teacher, L_T.

    Returns:
        The pairs, ordered by student layer. A pair occurs twice where both published strategies choose it.

    Raises:
        ValueError: If the mapping is unknown or names a layer that the student or the teacher lacks.
    """
    if not isinstance(mapping, str):
        pairs = [LayerPair(int(student), int(teacher)) for student, teacher in mapping]
    elif ":" in mapping:
        pairs = [_parse_pair(item, mapping) for item in mapping.replace(",", " ").split()]
    elif mapping in LAYER_MAPPINGS:
        pairs = _named_pairs(mapping, student_layers, teacher_layers)
    else:
        raise ValueError(
            f"layer_mapping={mapping!r} is unknown{nearest(mapping, LAYER_MAPPINGS)} Choose from "
            f"{', '.join(LAYER_MAPPINGS)}, or name pairs of student and teacher layers as '1:4 2:8 3:12'."
        )
    if not pairs:
        raise ValueError("layer_mapping names no pair of layers; choose 'uniform' or name pairs as '1:4 2:8 3:12'.")
    for pair in pairs:
        for who, layer, layers in zip(LayerPair._fields, pair, (student_layers, teacher_layers), strict=True):
            if not 1 <= layer <= layers:
                raise ValueError(f"layer_mapping names {who} layer {layer}, but the {who} has layers 1 to {layers}.")
    return tuple(sorted(pairs, key=lambda pair: pair.student))


def _parse_pair(item: str, mapping: str) -> LayerPair:
    match = re.fullmatch(r"(\d+):(\d+)", item)
    if match is None:
        raise ValueError(f"layer_mapping={mapping!r}: {item!r} is not of the form <student layer>:<teacher layer>.")
    return LayerPair(int(match[1]), int(match[2]))


def _named_pairs(mapping: str, student_layers: int, teacher_layers: int) -> list[LayerPair]:
    if mapping == "final":
        return [LayerPair(student_layers, teacher_layers)]
    if "last" in mapping and student_layers > teacher_layers:
        raise ValueError(
            f"layer_mapping={mapping!r} needs a student no deeper than its teacher: {student_layers} layers against "
            f"{teacher_layers}. Choose 'uniform', or fewer student layers."
        )
    pairs = []
    for layer in range(1, student_layers + 1):
        if "uniform" in mapping:
            rounded = (2 * layer * teacher_layers + student_layers) // (2 * student_layers)
            pairs.append(LayerPair(layer, max(rounded, 1)))  # a student far deeper than its teacher would round to 0
        if "last" in mapping:
            pairs.append(LayerPair(layer, teacher_layers - student_layers + layer))
    return pairs


def describe_layer_mapping(pairs: Iterable[LayerPair]) -> str:
    """Write pairs as they are logged: ``1<-4 2<-8 3<-12``, student layer first."""
    return " ".join(f"{pair.student}<-{pair.teacher}" for pair in pairs)
