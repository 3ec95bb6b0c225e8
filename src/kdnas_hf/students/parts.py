"""The parts of a student that can be trained alone."""

from __future__ import annotations

from transformers import PreTrainedModel

from .inheritance import InheritedWordEmbeddings, fold_embeddings
from .modeling_kdnas import KDNASModel

PARTS = ("all", "head", "layers", "embedding_projection", "embeddings")


def train_parts(model: PreTrainedModel, parts: list[str]) -> None:
    """Let only some parts of a student train.

    Args:
        model: The student, with or without a head.
        parts: Of `PARTS`; ``layers:2`` are the last two layers, ``embeddings`` the whole block, with a table of the
            student's own from then on.

    Raises:
        ValueError: If it does not have a part, or nothing of it is left to train.
    """
    if "embeddings" in parts and isinstance(model.get_input_embeddings(), InheritedWordEmbeddings):
        fold_embeddings(model)  # type: ignore[arg-type]
    parameters = dict(model.named_parameters())
    # a table of the teacher's is shared by all students
    frozen = {name for name, p in parameters.items() if not p.requires_grad and name.endswith(".table")}
    wanted = {name for part in parts for name in _names_of(model, part, list(parameters))}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in wanted and name not in frozen)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(f"stages: trains={parts} trains nothing of the student.")


def _names_of(model: PreTrainedModel, part: str, names: list[str]) -> list[str]:
    encoder = "" if isinstance(model, KDNASModel) else "kdnas."
    kind, _, count = part.partition(":")
    if kind == "all":
        return names
    depth = model.config.num_hidden_layers
    layers = range(max(depth - int(count), 0) if count else 0, depth)
    prefixes = {
        "layers": tuple(f"{encoder}encoder.layer.{layer}." for layer in layers),
        "embedding_projection": (
            f"{encoder}embeddings.word_embeddings.projection",
            f"{encoder}embeddings.projection.",
        ),
        "embeddings": (f"{encoder}embeddings.",),
    }
    if kind == "head":
        found = [name for name in names if encoder and not name.startswith(encoder)]
    else:
        found = [name for name in names if name.startswith(prefixes[kind])]
    if not found:
        raise ValueError(f"stages: trains={part!r} names nothing that this student has; leave it out.")
    return found
