"""KD-NAS students: bidirectional encoders like XLM-RoBERTa whose layers may differ in heads, sizes and activations.

Runs unchanged on transformers 4.57 and 5. Parameters are named as in `XLMRobertaModel`, so that the state dict of a
homogeneous student fits there and back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN, gelu
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_kdnas import KDNASConfig

try:
    from transformers.masking_utils import create_bidirectional_mask
except ImportError:  # transformers 4
    create_bidirectional_mask = None  # type: ignore[assignment]


def _make_attention_mask(
    config: KDNASConfig, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor, training: bool
) -> Any:
    """Bring an attention mask into the form that the configured attention takes.

    Does for eager, SDPA and flash attention what `create_bidirectional_mask` does, with broadcast views in place of
    index arithmetic: the latter costs a noticeable share of a small student's forward pass on a CPU.

    Args:
        config: Names the attention implementation.
        attention_mask: `(batch, sequence)`, 1 for tokens and 0 for padding; or a mask of 4 dimensions, used as it is.
        hidden_states: `(batch, sequence, hidden_size)`, for dtype and device.
        training: Whether the model is training.

    Returns:
        `None` if nothing is masked; `(batch, sequence)` for flash attention; a boolean mask `(batch, 1, 1, sequence)`
        for SDPA; an additive one of the same shape for eager attention; whatever other implementations take.
    """
    if attention_mask is None or attention_mask.dim() == 4:
        return attention_mask
    implementation = config._attn_implementation
    if implementation not in ("eager", "sdpa") and not implementation.startswith("flash"):
        if create_bidirectional_mask is None:
            raise ValueError(
                f"attn_implementation={implementation!r} needs transformers 5; choose 'sdpa', 'eager' or "
                "'flash_attention_2'."
            )
        return create_bidirectional_mask(config=config, inputs_embeds=hidden_states, attention_mask=attention_mask)

    mask = attention_mask.to(device=hidden_states.device, dtype=torch.bool)
    # What is in the mask must not decide about the graph when one is recorded, and on an accelerator looking makes the
    # host wait for the device: worth it in inference, but training batches are padded anyway.
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not recorded and (mask.device.type == "cpu" or not training) and bool(mask.all()):
        return None
    if implementation.startswith("flash"):
        return mask
    mask = mask[:, None, None, :]
    if implementation == "sdpa":
        return mask
    return _additive_mask(mask, hidden_states.dtype)


def _additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a boolean mask into zero where it is true and the lowest number of `dtype` where it is not."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, which alone gives the attention probabilities.

    Args:
        module: The attention layer.
        query: `(batch, heads, sequence, head_size)`.
        key: As `query`.
        value: As `query`.
        attention_mask: Boolean or additive, broadcastable to `(batch, heads, sequence, sequence)`; or boolean
            `(batch, sequence)`.
        scaling: Factor on the scores.
        dropout: Probability with which an attention probability is dropped.
        **kwargs: What other implementations take.

    Returns:
        Output `(batch, sequence, heads, head_size)` and probabilities `(batch, heads, sequence, sequence)`.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        if attention_mask.dim() == 2:
            attention_mask = attention_mask[:, None, None, :].bool()
        if attention_mask.dtype == torch.bool:
            attention_mask = _additive_mask(attention_mask, scores.dtype)
        scores = scores + attention_mask
    probabilities = nn.functional.softmax(scores, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


class KDNASEmbeddings(nn.Module):
    """Sum of word, position and token type embeddings, normalised.

    Word embeddings of another size than the hidden states are mapped to theirs before the sum.
    """

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__()
        self.padding_idx = config.pad_token_id
        self.word_embeddings: nn.Module = nn.Embedding(
            config.vocab_size, config.word_embedding_size, padding_idx=self.padding_idx
        )
        self.projection = (
            nn.Linear(config.word_embedding_size, config.hidden_size, bias=False) if config.is_factorised else None
        )
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=config.first_position - 1
        )
        self.first_position = config.first_position
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed tokens.

        Args:
            input_ids: `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`, zeros by default.
            position_ids: `(batch, sequence)`. By default those of XLM-RoBERTa, see `create_position_ids`.
            inputs_embeds: `(batch, sequence, word_embedding_size)`, in place of `input_ids`.

        Returns:
            `(batch, sequence, hidden_size)`.
        """
        if position_ids is None:
            position_ids = self.create_position_ids(input_ids, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        embeddings = inputs_embeds if self.projection is None else self.projection(inputs_embeds)
        if token_type_ids is None:
            token_types = self.token_type_embeddings.weight[0]  # added to every token without a look-up
        else:
            token_types = self.token_type_embeddings(token_type_ids)
        embeddings = embeddings + token_types + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embeddings))

    def create_position_ids(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Number tokens from `first_position` on; padding gets the row before it and is not counted.

        Args:
            input_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, size)`, counted as if nothing were padding where `input_ids` is `None`.

        Returns:
            `(batch, sequence)` or `(1, sequence)`.
        """
        if input_ids is None:
            assert inputs_embeds is not None
            first = self.first_position
            return torch.arange(first, first + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        is_token = input_ids.ne(self.padding_idx).int()
        # cumsum gives int64, which the ONNX operator need not support: back to int32 as everywhere in transformers
        return (torch.cumsum(is_token, dim=1).type_as(is_token) * is_token).long() + (self.first_position - 1)


class KDNASSelfAttention(nn.Module):
    """Multi-head self-attention of one layer."""

    def __init__(self, config: KDNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_attention_heads = config.attention_heads_per_layer[layer_idx]
        self.attention_head_size = config.hidden_size // self.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.dropout_prob = config.attention_probs_dropout_prob
        self.is_causal = False  # read by the attention functions, which default to True
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            hidden_states: `(batch, sequence, hidden_size)`.
            attention_mask: As `_make_attention_mask` gives it.
            output_attentions: Whether probabilities are wanted; they are computed by eager attention.
            **kwargs: Passed to the attention function.

        Returns:
            `(batch, sequence, hidden_size)`, and probabilities `(batch, heads, sequence, sequence)` or `None`.
        """
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        query = self.query(hidden_states).view(shape).transpose(1, 2)
        key = self.key(hidden_states).view(shape).transpose(1, 2)
        value = self.value(hidden_states).view(shape).transpose(1, 2)
        implementation = self.config._attn_implementation
        attend = eager_attention_forward
        if implementation != "eager" and not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS[implementation]
        context, probabilities = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout_prob if self.training else 0.0,
            **kwargs,
        )
        return context.reshape(hidden_states.shape), probabilities


class KDNASSelfOutput(nn.Module):
    """Output map of attention, residual connection and layer norm."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Map and add; both arguments and the result are `(batch, sequence, hidden_size)`."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class KDNASAttention(nn.Module):
    """The attention block of one layer."""

    def __init__(self, config: KDNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.self = KDNASSelfAttention(config, layer_idx)
        self.output = KDNASSelfOutput(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend, add and normalise; shapes as in `KDNASSelfAttention.forward`."""
        context, probabilities = self.self(hidden_states, attention_mask, **kwargs)
        return self.output(context, hidden_states), probabilities


class KDNASIntermediate(nn.Module):
    """First linear map and activation of the feed-forward block."""

    def __init__(self, config: KDNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_sizes_per_layer[layer_idx])
        self.intermediate_act_fn = ACT2FN[config.activations_per_layer[layer_idx]]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(batch, sequence, hidden_size)` to `(batch, sequence, intermediate_size)`."""
        return self.intermediate_act_fn(self.dense(hidden_states))


class KDNASOutput(nn.Module):
    """Second linear map of the feed-forward block, residual connection and layer norm."""

    def __init__(self, config: KDNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_sizes_per_layer[layer_idx], config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Map `(batch, sequence, intermediate_size)` back and add `residual` `(batch, sequence, hidden_size)`."""
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)


class KDNASLayer(GradientCheckpointingLayer):
    """One encoder layer: attention and feed-forward block, each followed by its layer norm."""

    def __init__(self, config: KDNASConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention = KDNASAttention(config, layer_idx)
        self.intermediate = KDNASIntermediate(config, layer_idx)
        self.output = KDNASOutput(config, layer_idx)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the layer; shapes as in `KDNASSelfAttention.forward`."""
        attended, probabilities = self.attention(hidden_states, attention_mask, **kwargs)
        return self.output(self.intermediate(attended), attended), probabilities


class KDNASEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([KDNASLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Run all layers.

        Args:
            hidden_states: `(batch, sequence, hidden_size)`.
            attention_mask: As `_make_attention_mask` gives it.
            output_hidden_states: Whether the states before the first and after each layer are wanted.
            output_attentions: Whether attention probabilities are wanted.
            **kwargs: Passed to the attention function.

        Returns:
            The last states, and what else was asked for: `num_hidden_layers + 1` states, `num_hidden_layers`
            probabilities.
        """
        all_states = [hidden_states]
        all_attentions = []
        for layer in self.layer:
            hidden_states, probabilities = layer(
                hidden_states, attention_mask, output_attentions=output_attentions, **kwargs
            )
            if output_hidden_states:
                all_states.append(hidden_states)
            if output_attentions:
                all_attentions.append(probabilities)
        return BaseModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )


class KDNASPreTrainedModel(PreTrainedModel):
    """What all KD-NAS models share: configuration, initial weights, what they support."""

    config: KDNASConfig
    config_class = KDNASConfig
    base_model_prefix = "kdnas"
    supports_gradient_checkpointing = True
    # losses are means over a batch, not sums that the Trainer may divide by `num_items_in_batch`
    accepts_loss_kwargs = False
    _no_split_modules = ["KDNASEmbeddings", "KDNASLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = create_bidirectional_mask is not None
    _supports_attention_backend = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # transformers looks for its own idioms in the source; attention here is chosen at every call
        return True

    def __init__(self, config: KDNASConfig, *inputs: Any, **kwargs: Any) -> None:
        config.validate_fields()
        super().__init__(config, *inputs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KDNASLMHead) and module.bias is not None:
            # guarded by transformers while it loads a checkpoint: never overwrites a loaded weight
            nn.init.zeros_(module.bias)


class KDNASModel(KDNASPreTrainedModel):
    """The encoder without a head, and without a pooler."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__(config)
        self.embeddings = KDNASEmbeddings(config)
        self.encoder = KDNASEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode.

        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, sequence)`, 1 for tokens and 0 for padding; all ones by default.
            token_type_ids: `(batch, sequence)`, zeros by default.
            position_ids: `(batch, sequence)`; by default tokens count from `pad_token_id + 1`, padding does not.
            inputs_embeds: `(batch, sequence, word_embedding_size)`, in place of `input_ids`.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return all hidden states.
            **kwargs: Passed to the attention function; `return_dict=False` gives a tuple.

        Returns:
            `last_hidden_state` `(batch, sequence, hidden_size)`; `hidden_states`, `num_hidden_layers + 1` of that
            shape, from the embeddings' output to the last layer's; `attentions`, one
            `(batch, heads, sequence, sequence)` per layer.

        Raises:
            ValueError: If there are not exactly one of `input_ids` and `inputs_embeds`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds.")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self.embeddings(
            input_ids=input_ids,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        return self.encoder(
            hidden_states,
            _make_attention_mask(self.config, attention_mask, hidden_states, self.training),
            output_hidden_states=bool(output_hidden_states),
            output_attentions=bool(output_attentions),
            **kwargs,
        )


class KDNASLMHead(nn.Module):
    """Predicts tokens: a dense layer, and a decoder that is usually the word embeddings."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.word_embedding_size)
        self.layer_norm = nn.LayerNorm(config.word_embedding_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.word_embedding_size, config.vocab_size)
        # tied to the decoder's bias, as in XLM-RoBERTa: checkpoints keep it under this name
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.tie_word_embeddings else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map `(batch, sequence, hidden_size)` to logits `(batch, sequence, vocab_size)`."""
        return self.decoder(self.layer_norm(gelu(self.dense(hidden_states))))

    def _tie_weights(self) -> None:
        # Called by transformers 4, which ties no biases by itself. While a checkpoint is loaded, parameters are on the
        # meta device and `bias` is the one that is in the file; after resizing it is the decoder's that is right.
        if self.bias is None:
            return
        if self.decoder.bias.device.type == "meta":
            self.decoder.bias = self.bias
        else:
            self.bias = self.decoder.bias


class KDNASForMaskedLM(KDNASPreTrainedModel):
    """The encoder with a masked language modeling head."""

    _tied_weights_keys = {
        "lm_head.decoder.weight": "kdnas.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__(config)
        self.kdnas = KDNASModel(config)
        self.lm_head = KDNASLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder of the head."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder of the head."""
        self.lm_head.decoder = new_embeddings
        if self.lm_head.bias is not None:
            self.lm_head.bias = getattr(new_embeddings, "bias", None)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict tokens. Arguments that are not listed are those of `KDNASModel.forward`.

        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`.
            position_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, word_embedding_size)`.
            labels: `(batch, sequence)`, tokens to predict; -100 where nothing is to be predicted.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return all hidden states.
            **kwargs: Passed on.

        Returns:
            `loss`, the mean cross-entropy over labelled tokens, where there are labels; `logits`
            `(batch, sequence, vocab_size)`.
        """
        outputs = self.kdnas(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.to(logits.device).flatten())
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def _first_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The state of each sequence's first real token: not at position 0 where the padding stands on the left.

    Args:
        hidden_states: `(batch, sequence, hidden_size)`.
        attention_mask: `(batch, sequence)`, 0 for padding. Without one, with one of 4 dimensions, which says nothing
            about padding, and in a sequence of nothing but padding, the first token is that at position 0.

    Returns:
        `(batch, hidden_size)`.
    """
    if attention_mask is None or attention_mask.dim() != 2:
        return hidden_states[:, 0]
    # of equal numbers argmax takes the first; int32, as the ONNX operator need not support more
    first = attention_mask.ne(0).int().argmax(dim=1).to(hidden_states.device)
    return hidden_states.gather(1, first[:, None, None].expand(-1, 1, hidden_states.shape[-1])).squeeze(1)


class KDNASClassificationHead(nn.Module):
    """Classifies a sequence by its first token that is no padding."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map `(batch, sequence, hidden_size)`, with its mask `(batch, sequence)`, to logits `(batch, num_labels)`."""
        first = self.dropout(_first_tokens(hidden_states, attention_mask))
        return self.out_proj(self.dropout(torch.tanh(self.dense(first))))


class KDNASForSequenceClassification(KDNASPreTrainedModel):
    """The encoder with a head that classifies, or scores, whole sequences."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.kdnas = KDNASModel(config)
        self.classifier = KDNASClassificationHead(config)
        self.post_init()

    def classify(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Make logits of the encoder's last hidden states, with dropout where the model trains.

        Args:
            hidden_states: `(batch, sequence, hidden_size)`.
            attention_mask: `(batch, sequence)`, 1 for tokens and 0 for padding: the first token is read. By default
                that at position 0.

        Returns:
            `(batch, num_labels)`.
        """
        return self.classifier(hidden_states, attention_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify. Arguments that are not listed are those of `KDNASModel.forward`.

        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`.
            position_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, word_embedding_size)`.
            labels: `(batch,)` classes; or `(batch,)` or `(batch, num_labels)` numbers for regression; or
                `(batch, num_labels)` zeros and ones where a sequence may have many labels. If `config.problem_type`
                does not say which, it is set by the labels.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return all hidden states.
            **kwargs: Passed on.

        Returns:
            `loss`, a mean over the batch, where there are labels; `logits` `(batch, num_labels)`.
        """
        outputs = self.kdnas(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        logits = self.classify(outputs.last_hidden_state, attention_mask)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.dtype in (torch.long, torch.int):
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        if self.config.problem_type == "regression":
            return nn.functional.mse_loss(logits, labels.view_as(logits).to(logits.dtype))
        if self.config.problem_type == "single_label_classification":
            return nn.functional.cross_entropy(logits, labels.flatten().long())
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class KDNASForTokenClassification(KDNASPreTrainedModel):
    """The encoder with a head that classifies every token."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.kdnas = KDNASModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def classify(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Make logits of the encoder's last hidden states, with dropout where the model trains.

        Args:
            hidden_states: `(batch, sequence, hidden_size)`, or `(tokens, hidden_size)`.
            attention_mask: Plays no part: every token is classified by itself. Taken as other heads need one.

        Returns:
            `(batch, sequence, num_labels)`, or `(tokens, num_labels)`.
        """
        return self.classifier(self.dropout(hidden_states))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Classify tokens. Arguments that are not listed are those of `KDNASModel.forward`.

        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`.
            position_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, word_embedding_size)`.
            labels: `(batch, sequence)`, -100 for tokens without a class.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return all hidden states.
            **kwargs: Passed on.

        Returns:
            `loss`, the mean cross-entropy over labelled tokens, where there are labels; `logits`
            `(batch, sequence, num_labels)`.
        """
        outputs = self.kdnas(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        logits = self.classify(outputs.last_hidden_state, attention_mask)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.to(logits.device).flatten())
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class KDNASForQuestionAnswering(KDNASPreTrainedModel):
    """The encoder with a head that finds the first and the last token of an answer."""

    def __init__(self, config: KDNASConfig) -> None:
        super().__init__(config)
        self.kdnas = KDNASModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Find answers. Arguments that are not listed are those of `KDNASModel.forward`.

        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, sequence)`.
            token_type_ids: `(batch, sequence)`.
            position_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, word_embedding_size)`.
            start_positions: `(batch,)`, first token of each answer. Positions beyond the sequence are not learnt.
            end_positions: `(batch,)`, last token of each answer.
            output_attentions: Whether to return attention probabilities.
            output_hidden_states: Whether to return all hidden states.
            **kwargs: Passed on.

        Returns:
            `loss`, the mean cross-entropy of first and last tokens, where both are given; `start_logits` and
            `end_logits` `(batch, sequence)`.
        """
        outputs = self.kdnas(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            ignored = start_logits.shape[1]
            losses = [
                nn.functional.cross_entropy(
                    logits, positions.to(logits.device).flatten().clamp(0, ignored), ignore_index=ignored
                )
                for logits, positions in ((start_logits, start_positions), (end_logits, end_positions))
            ]
            loss = (losses[0] + losses[1]) / 2
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits.contiguous(),
            end_logits=end_logits.contiguous(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _classifier_dropout(config: KDNASConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


__all__ = [
    "KDNASForMaskedLM",
    "KDNASForQuestionAnswering",
    "KDNASForSequenceClassification",
    "KDNASForTokenClassification",
    "KDNASModel",
    "KDNASPreTrainedModel",
]
