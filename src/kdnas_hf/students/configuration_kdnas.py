"""Configuration of KD-NAS students: small bidirectional encoders whose layers may differ in shape."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.activations import ACT2FN

# Saved with every checkpoint, so that any head class can be loaded from any checkpoint where the classes below are
# not installed, with `trust_remote_code=True`.
AUTO_MAP = {
    "AutoConfig": "configuration_kdnas.KDNASConfig",
    "AutoModel": "modeling_kdnas.KDNASModel",
    "AutoModelForMaskedLM": "modeling_kdnas.KDNASForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_kdnas.KDNASForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_kdnas.KDNASForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_kdnas.KDNASForQuestionAnswering",
}

_PER_LAYER_FIELDS = ("num_attention_heads", "intermediate_size", "hidden_act")
# what a configuration records about where it was saved, not about the model
_NOT_COMPARED = ("transformers_version", "_name_or_path")


class KDNASConfig(PretrainedConfig):
    """Configuration of a KD-NAS student.

    A student is an encoder like XLM-RoBERTa in which the number of attention heads, the intermediate size and the
    activation may be given per layer, and in which word embeddings may be smaller than the hidden states.

    Args:
        vocab_size: Number of rows of the word embeddings.
        hidden_size: Size of the hidden states.
        num_hidden_layers: Number of encoder layers.
        num_attention_heads: Attention heads of every layer, or a list with one number per layer. Must divide
            `hidden_size`. A list of equal values is stored as that value, so that equal architectures compare equal.
        intermediate_size: Size between the two linear maps of the feed-forward block; one or one per layer.
        hidden_act: Activation of the feed-forward block, a name that transformers knows; one or one per layer.
        embedding_size: Size of the word embeddings. `None` means `hidden_size`. Any other size factorises them: a
            linear map without bias takes them to `hidden_size`.
        hidden_dropout_prob: Dropout of hidden states. Zero by default: a small student that is distilled underfits its
            teacher, and dropout makes it underfit more.
        attention_probs_dropout_prob: Dropout of attention probabilities, zero by default for the same reason.
        classifier_dropout: Dropout before the classifiers of fine-tuning heads.
        max_position_embeddings: Rows of the position embeddings. Positions count from the row after that of padding,
            so the longest sequence has `max_position_embeddings - position_padding_idx - 1` tokens.
        position_padding_idx: Row of the position embeddings that padding gets; `None` is `pad_token_id`, as in
            XLM-RoBERTa. Tokenizers whose padding comes late in the vocabulary need a small number here.
        type_vocab_size: Number of token types.
        initializer_range: Standard deviation of initial weights.
        layer_norm_eps: Epsilon of the layer norms.
        pad_token_id: Token that is padding.
        bos_token_id: Token at the beginning of a sequence.
        eos_token_id: Token at the end of a sequence.
        tie_word_embeddings: Whether the masked language modeling head decodes with the word embeddings.
        teacher_layers: Teacher layers, from 1, that the layers started as copies of; `None` where the shape does not
            name them.
        **kwargs: What every configuration takes, see `PretrainedConfig`.

    Raises:
        ValueError: If a field is impossible; the message names the field, its value and what would be right.

    Example:
        ```python
        config = KDNASConfig(num_hidden_layers=3, hidden_size=288, num_attention_heads=[4, 6, 6])
        config.attention_heads_per_layer  # (4, 6, 6)
        ```
    """

    model_type = "kdnas"

    def __init__(
        self,
        vocab_size: int = 250002,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int | Sequence[int] = 6,
        intermediate_size: int | Sequence[int] = 1536,
        hidden_act: str | Sequence[str] = "gelu",
        embedding_size: int | None = None,
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        classifier_dropout: float | None = 0.1,
        max_position_embeddings: int = 514,
        position_padding_idx: int | None = None,
        type_vocab_size: int = 1,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        pad_token_id: int = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | None = 2,
        tie_word_embeddings: bool = True,
        teacher_layers: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        auto_map = kwargs.pop("auto_map", None) or {}
        super().__init__(**kwargs)
        self.auto_map = {**AUTO_MAP, **auto_map}
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.embedding_size = embedding_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.position_padding_idx = position_padding_idx
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        # set here as transformers 4 expects them in its own constructor, and 5 drops them there
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.teacher_layers = None if teacher_layers is None else list(teacher_layers)
        self.validate_fields()

    @property
    def first_position(self) -> int:
        """Row of the position embeddings of the first token."""
        return (self.pad_token_id if self.position_padding_idx is None else self.position_padding_idx) + 1

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest sequence that has positions."""
        return self.max_position_embeddings - self.first_position

    @property
    def attention_heads_per_layer(self) -> tuple[int, ...]:
        """Number of attention heads of each layer, `num_hidden_layers` of them."""
        return self._per_layer("num_attention_heads")

    @property
    def intermediate_sizes_per_layer(self) -> tuple[int, ...]:
        """Intermediate size of each layer, `num_hidden_layers` of them."""
        return self._per_layer("intermediate_size")

    @property
    def activations_per_layer(self) -> tuple[str, ...]:
        """Name of each layer's activation, `num_hidden_layers` of them."""
        return self._per_layer("hidden_act")

    @property
    def is_homogeneous(self) -> bool:
        """Whether all layers have the same shape, whatever the word embeddings are."""
        return all(len(set(self._per_layer(name))) == 1 for name in _PER_LAYER_FIELDS)

    @property
    def word_embedding_size(self) -> int:
        """Size of the word embeddings, whether given or not."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def is_factorised(self) -> bool:
        """Whether the word embeddings are of another size than the hidden states."""
        return self.word_embedding_size != self.hidden_size

    def validate_fields(self) -> None:
        """Check all fields, and store in one way what can be said in two, so that equal architectures compare equal.

        A list of equal values becomes that value, and an `embedding_size` that is `hidden_size` becomes `None`.

        Runs when a configuration is made, and again when a model is made of it: fields may have been changed since.

        Raises:
            ValueError: If a field is impossible; the message names the field, its value and what would be right.
        """
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "type_vocab_size")
        for name in sizes:
            _check_positive_integer(name, getattr(self, name))
        if self.embedding_size is not None:
            _check_positive_integer("embedding_size", self.embedding_size, "or None for hidden_size")
            if self.embedding_size == self.hidden_size:
                self.embedding_size = None
        for layer in self.teacher_layers or []:
            _check_positive_integer("teacher_layers", layer, "or a list of them, one per layer")
        for name in _PER_LAYER_FIELDS:
            self._normalise_per_layer(name)
        for heads in sorted(set(self.attention_heads_per_layer)):
            self._check_heads(heads)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            self._check_probability(name, optional=name == "classifier_dropout")
        self._check_pad_token_id()

    def _per_layer(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        if isinstance(value, (list, tuple)):
            if len(value) != self.num_hidden_layers:
                raise ValueError(
                    f"{name}={list(value)} has {len(value)} entries for num_hidden_layers={self.num_hidden_layers}; "
                    "give one value for all layers or exactly one per layer."
                )
            return tuple(value)
        return (value,) * self.num_hidden_layers

    def _normalise_per_layer(self, name: str) -> None:
        values = self._per_layer(name)
        for value in values:
            if name == "hidden_act":
                _check_activation(value)
            else:
                _check_positive_integer(name, value, "or a list of them, one per layer")
        setattr(self, name, values[0] if len(set(values)) == 1 else list(values))

    def _check_heads(self, heads: int) -> None:
        if self.hidden_size % heads:
            divisors = [n for n in range(1, min(self.hidden_size, 64) + 1) if self.hidden_size % n == 0]
            choices = ", ".join(str(n) for n in divisors)
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={heads}; "
                f"choose from {{{choices}}}."
            )

    def _check_probability(self, name: str, optional: bool) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(f"{name}={value!r} is not a probability; choose a number from 0 to below 1.")

    def _check_pad_token_id(self) -> None:
        pad = self.pad_token_id
        if not isinstance(pad, int) or isinstance(pad, bool) or not 0 <= pad < self.vocab_size:
            raise ValueError(
                f"pad_token_id={pad!r} is not a token of vocab_size={self.vocab_size}; positions count from it, so "
                "give the tokenizer's pad_token_id."
            )
        row = self.position_padding_idx
        if row is not None and (not isinstance(row, int) or isinstance(row, bool) or row < 0):
            raise ValueError(f"position_padding_idx={row!r} is no row of the position embeddings; choose 0, 1 or None.")
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings={self.max_position_embeddings} leaves no position: they count from "
                f"{self.first_position}, the row after that of padding; choose at least {self.first_position + 1}, or "
                "position_padding_idx=1."
            )

    # transformers 5 makes every configuration class a dataclass, whose generated `__eq__` would compare nothing but
    # the base class's fields
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PretrainedConfig):
            return NotImplemented
        return _compared(self) == _compared(other)

    __hash__ = None  # type: ignore[assignment]  # mutable, as every configuration


def _compared(config: PretrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _NOT_COMPARED}


def _check_positive_integer(name: str, value: object, alternative: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be a positive integer{alternative and ', ' + alternative}.")


def _check_activation(value: object) -> None:
    if not isinstance(value, str) or value not in ACT2FN:
        nearest = difflib.get_close_matches(str(value).lower(), ACT2FN, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {sorted(ACT2FN)}."
        raise ValueError(f"hidden_act={value!r} is not an activation that transformers knows; {hint}")


__all__ = ["KDNASConfig"]
