"""Start a student from its teacher's embeddings: the table is shared and frozen, only a projection is learnt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..utils.random_state import drawing
from .configuration_kdnas import KDNASConfig
from .modeling_kdnas import KDNASForMaskedLM, KDNASModel, KDNASPreTrainedModel
from .vocabulary import OccurringWordEmbeddings

STUDENT_INITS = ("embeddings", "random")
_ROWS_PER_CHUNK = 16384


@dataclass(frozen=True, eq=False)
class TeacherEmbeddings:
    """What students inherit from a teacher's embeddings.

    Args:
        table: `(vocab_size, E_T)` float32, frozen. One parameter object that all students share.
        positions: `(n, E_T)`; row p is the teacher's embedding of position p, counted from 0. `None` for teachers
            without position embeddings of the table's size, such as those with rotary positions.
        token_types: `(types, E_T)`, or `None` for teachers that add none.
        norm: A copy of the layer norm after the sum of all embeddings, of size E_T; `None` if the teacher has none of
            BERT's kind there.
        pad_token_id: The teacher's padding token, if it has one.
    """

    table: nn.Parameter
    positions: torch.Tensor | None
    token_types: torch.Tensor | None
    norm: nn.LayerNorm | None
    pad_token_id: int | None

    @property
    def vocab_size(self) -> int:
        """Number of rows of the table."""
        return self.table.shape[0]

    @property
    def embedding_size(self) -> int:
        """Size of the teacher's word embeddings, E_T; not its hidden size where it factorises them."""
        return self.table.shape[1]

    @cached_property
    def basis(self) -> torch.Tensor:
        """Principal directions of the table's rows, by decreasing variance; computed when first asked for.

        `(E_T, E_T)` float32, orthonormal columns. The largest entry of each column is positive.
        """
        return _principal_directions(self.table)

    def directions(self, size: int) -> torch.Tensor:
        """The directions of the teacher's embeddings that are the axes of a student's vectors of this size.

        At the teacher's own size they are its own axes and not the principal ones: layer norms do not commute with a
        rotation, so that only there a student can compute exactly what its teacher does.

        Args:
            size: Size of the student's hidden states or word embeddings.

        Returns:
            `(E_T, min(size, E_T))` float32, orthonormal columns: the identity for `size == E_T`, else the first
            principal directions.
        """
        if size == self.embedding_size:
            return torch.eye(size, device=self.table.device)
        return self.basis[:, :size].to(self.table.device)

    @classmethod
    @torch.no_grad()
    def from_teacher(cls, model: PreTrainedModel) -> TeacherEmbeddings:
        """Take the embeddings of an encoder, which stays as it is.

        A float32 table is shared with the teacher, not copied.

        Args:
            model: The teacher; any encoder with `get_input_embeddings()`.
        """
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        table = nn.Parameter(weight.detach().float(), requires_grad=False)
        size = table.shape[1]
        token_types = _embedding_of_size(model, "token_type_embeddings", size)
        return cls(
            table=table,
            positions=_positions(model, size),
            token_types=None if token_types is None else token_types.weight.detach().float().clone(),
            norm=_embedding_norm(model, size),
            pad_token_id=getattr(model.config, "pad_token_id", None),
        )


def _principal_directions(table: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of the covariance of the rows, by decreasing eigenvalue, accumulated in float64."""
    # Apple's devices have no float64
    device = torch.device("cpu") if table.device.type == "mps" else table.device
    size = table.shape[1]
    total = torch.zeros(size, dtype=torch.float64, device=device)
    for rows in table.split(_ROWS_PER_CHUNK):
        total += rows.to(device, torch.float64).sum(dim=0)
    mean = total / len(table)
    scatter = torch.zeros(size, size, dtype=torch.float64, device=device)
    for rows in table.split(_ROWS_PER_CHUNK):
        centred = rows.to(device, torch.float64) - mean
        scatter.addmm_(centred.T, centred)
    directions = torch.linalg.eigh(scatter / len(table)).eigenvectors.flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    return (directions * largest.sign()).to(table.device, torch.float32)


def _embedding_of_size(model: PreTrainedModel, name: str, size: int) -> nn.Embedding | None:
    """The first embedding of this name in the model, if its rows are of this size."""
    for path, module in model.named_modules():
        if path.split(".")[-1] == name and isinstance(module, nn.Embedding):
            return module if module.embedding_dim == size else None
    return None


def _positions(model: PreTrainedModel, size: int) -> torch.Tensor | None:
    """The teacher's position embeddings, from the row of position 0 on."""
    module = _embedding_of_size(model, "position_embeddings", size)
    if module is None:
        return None
    # RoBERTa and its like count from padding_idx + 1 and say so on the embedding; BERT counts from 0
    first = 0 if module.padding_idx is None else module.padding_idx + 1
    return module.weight[first:].detach().float().clone()


def _embedding_norm(model: PreTrainedModel, size: int) -> nn.LayerNorm | None:
    """A frozen copy of the layer norm that stands beside the word embeddings, under BERT's name for it."""
    words = model.get_input_embeddings()
    block = next((module for module in model.modules() if words in module.children()), None)
    norm = getattr(block, "LayerNorm", None)
    if not isinstance(norm, nn.LayerNorm) or norm.normalized_shape != (size,):
        return None
    return copy.deepcopy(norm).float().requires_grad_(False)


class InheritedWordEmbeddings(nn.Module):
    """Word embeddings that are a teacher's frozen table times a learnt projection.

    In place of an `nn.Embedding`. In a state dict it is one: its only entry is `weight`, the product. A checkpoint
    therefore holds an ordinary table and gives the same outputs, but it cannot be loaded back into this module.

    Moving the module to another device moves the table, for everyone who shares it. Casting the module casts only the
    projection: the table stays float32 for the others.

    Args:
        table: `(num_embeddings, E_T)`, kept by reference.
        projection: `(E_T, embedding_dim)`, what the learnt projection starts from.
        padding_idx: Padding token of the student, which `fold` hands on.
    """

    def __init__(self, table: nn.Parameter, projection: torch.Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = table
        self.projection = nn.Parameter(projection.detach().clone())
        self.padding_idx = padding_idx

    @property
    def num_embeddings(self) -> int:
        """Number of tokens."""
        return self.table.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Size of an embedding."""
        return self.projection.shape[1]

    @property
    def weight(self) -> torch.Tensor:
        """The product `(num_embeddings, embedding_dim)`, computed anew at each access."""
        return self.table.to(self.projection.dtype) @ self.projection

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed `(batch, sequence)` to `(batch, sequence, embedding_dim)`."""
        return nn.functional.embedding(input_ids, self.table).to(self.projection.dtype) @ self.projection

    @torch.no_grad()
    def fold(self) -> nn.Embedding:
        """The same embeddings as a trainable `nn.Embedding`."""
        return nn.Embedding.from_pretrained(self.weight, freeze=False, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, teacher_embedding_size={self.table.shape[1]}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.weight
        destination[prefix + "weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"cannot load a state dict into {prefix.rstrip('.') or 'inherited word embeddings'}: its table is the "
            "teacher's and is shared. Call fold_embeddings(student) first, or load the checkpoint with from_pretrained."
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> InheritedWordEmbeddings:
        table = self._parameters["table"]
        assert table is not None
        self._parameters["table"] = None
        try:
            super()._apply(fn, recurse)
        finally:
            self._parameters["table"] = table
        table.data = table.data.to(self.projection.device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> InheritedWordEmbeddings:
        copied = InheritedWordEmbeddings(self.table, self.projection, self.padding_idx)
        copied.projection = copy.deepcopy(self.projection, memo)
        copied.train(self.training)
        memo[id(self)] = copied
        return copied


class InheritedDecoder(nn.Module):
    """Decodes with inherited word embeddings, without ever making their product.

    Args:
        word_embeddings: What it is tied to; they belong to the encoder.
        bias: `(num_embeddings,)`.
    """

    def __init__(self, word_embeddings: InheritedWordEmbeddings, bias: nn.Parameter) -> None:
        super().__init__()
        self._word_embeddings = (word_embeddings,)  # in a tuple, as it is not to be registered a second time
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The product of the word embeddings, `(num_embeddings, embedding_dim)`."""
        return self._word_embeddings[0].weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(batch, sequence, embedding_dim)` to logits `(batch, sequence, num_embeddings)`."""
        embeddings = self._word_embeddings[0]
        in_teacher_space = hidden_states @ embeddings.projection.T
        return nn.functional.linear(in_teacher_space, embeddings.table.to(in_teacher_space.dtype), self.bias)


def create_student(
    config: KDNASConfig,
    teacher_embeddings: TeacherEmbeddings | None = None,
    student_init: str = "embeddings",
    seed: int = 0,
) -> KDNASModel:
    """Make a student that has not learnt yet.

    With "embeddings", the student's axes are directions of the teacher's embeddings from the start, see
    `TeacherEmbeddings.directions`: its projection starts as these, its positions as the teacher's along them, and a
    factorised student's second map as what leads from the axes of its word embeddings to those of its hidden states. A
    student whose hidden size is that of the teacher's embeddings also takes token types and the layer norm behind the
    sum: its embeddings are then the teacher's, up to `layer_norm_eps`. Everything else is initialised as usual.

    Args:
        config: The student's shape; copied.
        teacher_embeddings: What it inherits; needed for "embeddings".
        student_init: "embeddings" or "random".
        seed: Decides all random values. The global random state plays no part and is left as it is.

    Returns:
        The student, on the CPU unless the teacher's table is elsewhere: the student then has to be moved there.

    Raises:
        ValueError: If `student_init` is unknown, or there are no teacher embeddings, or their vocabulary is another.
    """
    if student_init not in STUDENT_INITS:
        raise ValueError(f"student_init={student_init!r} is unknown; choose from {', '.join(STUDENT_INITS)}.")
    config = copy.deepcopy(config)
    # only the CPU's generator is seeded: a student starts the same whatever device it will be moved to
    with torch.device("cpu"), drawing(seed):
        if student_init == "random":
            return KDNASModel(config)
        if teacher_embeddings is None:
            raise ValueError("student_init='embeddings' needs teacher_embeddings; give them, or choose 'random'.")
        _check_vocabulary(config, teacher_embeddings)
        return _create_inheriting_student(config, teacher_embeddings)


def _check_vocabulary(config: KDNASConfig, teacher_embeddings: TeacherEmbeddings) -> None:
    if config.vocab_size != teacher_embeddings.vocab_size:
        raise ValueError(
            f"vocab_size={config.vocab_size} does not fit the teacher's table of {teacher_embeddings.vocab_size} rows; "
            f"a student that inherits it needs vocab_size={teacher_embeddings.vocab_size}."
        )


def _create_inheriting_student(config: KDNASConfig, teacher_embeddings: TeacherEmbeddings) -> KDNASModel:
    # a full table of random rows would only be thrown away
    config.vocab_size = config.pad_token_id + 1
    student = KDNASModel(config)
    config.vocab_size = teacher_embeddings.vocab_size

    size = config.word_embedding_size
    projection = teacher_embeddings.directions(size)
    missing = size - projection.shape[1]
    if missing > 0:
        extra = torch.randn(projection.shape[0], missing) * config.initializer_range
        projection = torch.cat([projection, extra.to(projection.device)], dim=1)
    embeddings = InheritedWordEmbeddings(teacher_embeddings.table, projection, padding_idx=config.pad_token_id)
    inherit_word_embeddings(student, embeddings)
    with torch.no_grad():
        if student.embeddings.projection is not None:
            student.embeddings.projection.weight.copy_(_second_map(config, teacher_embeddings))
        _inherit_positions(student, teacher_embeddings)
        if config.hidden_size == teacher_embeddings.embedding_size:
            _inherit_types_and_norm(student, teacher_embeddings)
    return student


def _second_map(config: KDNASConfig, teacher_embeddings: TeacherEmbeddings) -> torch.Tensor:
    """From the axes of a factorised student's word embeddings to those of its hidden states, `(H_S, E_S)`."""
    size, hidden_size = config.word_embedding_size, config.hidden_size
    second = torch.eye(hidden_size, size)
    if teacher_embeddings.embedding_size in (size, hidden_size):  # one side has the teacher's axes, the other principal
        turn = teacher_embeddings.directions(hidden_size).T @ teacher_embeddings.directions(size)
        second[: turn.shape[0], : turn.shape[1]] = turn
    return second


def _inherit_positions(student: KDNASModel, teacher_embeddings: TeacherEmbeddings) -> None:
    """Start positions as the teacher's along the student's axes; rows and columns beyond the teacher's stay."""
    if teacher_embeddings.positions is None:
        return
    rows = student.embeddings.position_embeddings.weight[student.config.first_position :]
    directions = teacher_embeddings.directions(rows.shape[1])
    inherited = teacher_embeddings.positions[: len(rows)].to(directions.device) @ directions
    rows[: inherited.shape[0], : inherited.shape[1]] = inherited


def _inherit_types_and_norm(student: KDNASModel, teacher_embeddings: TeacherEmbeddings) -> None:
    """Start token types and the embeddings' layer norm as the teacher's; a teacher without token types adds nothing."""
    rows = student.embeddings.token_type_embeddings.weight
    if teacher_embeddings.token_types is None:
        rows.zero_()
    else:
        inherited = teacher_embeddings.token_types[: len(rows)]
        rows[: len(inherited)] = inherited
    if teacher_embeddings.norm is not None:
        student.embeddings.LayerNorm.load_state_dict(teacher_embeddings.norm.state_dict())


def inherit_word_embeddings(model: KDNASPreTrainedModel, embeddings: InheritedWordEmbeddings) -> None:
    """Replace the word embeddings of a model, in place; a masked language modeling head then decodes with them.

    Raises:
        ValueError: If the sizes differ from the configuration's, or a head's decoder is not tied.
    """
    config = model.config
    given = (embeddings.num_embeddings, embeddings.embedding_dim)
    if given != (config.vocab_size, config.word_embedding_size):
        raise ValueError(
            f"inherited word embeddings are {given[0]} x {given[1]}, but the model has vocab_size={config.vocab_size} "
            f"and word_embedding_size={config.word_embedding_size}; make them of these sizes."
        )
    if isinstance(model, KDNASForMaskedLM):
        if not config.tie_word_embeddings:
            raise ValueError("tie_word_embeddings=False keeps a decoder of its own; inheriting needs a tied one.")
        model.set_output_embeddings(InheritedDecoder(embeddings, model.lm_head.bias))
    model.set_input_embeddings(embeddings)


def add_masked_lm_head(student: KDNASModel, seed: int = 0) -> KDNASForMaskedLM:
    """Put a masked language modeling head on a student, which becomes a part of the result.

    The head decodes with the student's word embeddings, inherited or not.

    Args:
        student: The encoder.
        seed: Decides the head's initial values. The global random state is left as it is.

    Raises:
        ValueError: If the student's configuration does not tie the decoder to the word embeddings.
    """
    config = student.config
    if not config.tie_word_embeddings:
        raise ValueError("tie_word_embeddings=False gives the head a table of its own; a student needs a tied one.")
    # a full decoder of random rows would only be thrown away
    small = copy.deepcopy(config)
    small.vocab_size = config.pad_token_id + 1
    with torch.device("cpu"), drawing(seed):
        head = KDNASForMaskedLM(small).lm_head
    with torch.device("meta"):
        model = KDNASForMaskedLM(config)
    if isinstance(student.get_input_embeddings(), OccurringWordEmbeddings):  # every token is predicted
        fold_embeddings(student)
    embeddings = student.get_input_embeddings()
    head.bias = bias = nn.Parameter(torch.zeros(config.vocab_size))
    model.kdnas = student
    model.lm_head = head
    if isinstance(embeddings, InheritedWordEmbeddings):
        model.set_output_embeddings(InheritedDecoder(embeddings, bias))
    else:
        assert isinstance(embeddings, nn.Embedding)
        model.set_output_embeddings(_tied_decoder(embeddings, bias))
    return model


def _tied_decoder(embeddings: nn.Embedding, bias: nn.Parameter | None) -> nn.Linear:
    decoder = nn.Linear(embeddings.embedding_dim, embeddings.num_embeddings, device="meta")
    decoder.weight = embeddings.weight
    decoder.bias = bias  # type: ignore[assignment]
    return decoder


def fold_embeddings(student: KDNASPreTrainedModel) -> None:
    """Turn word embeddings that are inherited, or train in part, into an ordinary trainable table, in place.

    Nothing happens to any others.

    Outputs stay the same. Call it before fine-tuning a student in memory; a student that is loaded from a checkpoint
    has an ordinary table already.
    """
    embeddings = student.get_input_embeddings()
    if not isinstance(embeddings, InheritedWordEmbeddings | OccurringWordEmbeddings):
        return
    folded = embeddings.fold()
    student.set_input_embeddings(folded)
    if isinstance(student, KDNASForMaskedLM):
        student.set_output_embeddings(_tied_decoder(folded, student.lm_head.bias))


def residual_basis(
    teacher_embeddings: TeacherEmbeddings, hidden_size: int, teacher_hidden_size: int
) -> torch.Tensor | None:
    """The map from a student's hidden states to the teacher's that fits how `create_student` starts a student.

    Args:
        teacher_embeddings: The teacher's.
        hidden_size: The student's hidden size, H_S.
        teacher_hidden_size: The teacher's, H_T.

    Returns:
        `(H_T, H_S)`: the identity where both are equal, else the first H_S principal directions, followed by zeros
        where H_S is larger than H_T. `None` if the teacher's embeddings are not of its hidden size, so that they do not
        live in its residual stream.
    """
    if teacher_embeddings.embedding_size != teacher_hidden_size:
        return None
    basis = teacher_embeddings.directions(hidden_size)
    return nn.functional.pad(basis, (0, hidden_size - basis.shape[1])).clone()


__all__ = [
    "InheritedWordEmbeddings",
    "TeacherEmbeddings",
    "add_masked_lm_head",
    "create_student",
    "fold_embeddings",
    "inherit_word_embeddings",
    "residual_basis",
]
