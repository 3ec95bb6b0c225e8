"""What a student costs by its shape alone: parameters, the size of its artefact, operations of a call."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..latency import SequenceLengths, shares_of
from ..students import KDNASConfig
from .backends import OPENVINO, TORCH, Backend, get_backend

# kB of an artefact that are no weights: names of tensors, or the graph; for each layer, and 0.4 times for the rest
_GRAPH_KB = {"onnx": 79, "onnx-int8": 68, "onnx-int8-static": 85, "openvino-int8": 60}
_GRAPH_KB_OTHERWISE = {OPENVINO: 35, TORCH: 1.7}


class Sizes(NamedTuple):
    """Sizes of an encoder, or of many: numbers, or arrays ``(encoders,)``.

    Attributes:
        layers: Layers.
        hidden: Hidden size.
        neurons: Intermediate sizes of all layers together.
        words: Size of the word embeddings.
    """

    layers: Any
    hidden: Any
    neurons: Any
    words: Any

    @classmethod
    def of(cls, config: KDNASConfig) -> Sizes:
        """The sizes of a configuration."""
        neurons = sum(config.intermediate_sizes_per_layer)
        return cls(config.num_hidden_layers, config.hidden_size, neurons, config.word_embedding_size)


def shape_costs(
    config: KDNASConfig,
    backend: str | Backend = "torch",
    batch_size: int = 1,
    sequence_length: SequenceLengths = 128,
    sizes: Sizes | None = None,
) -> dict[str, Any]:
    """Costs of an encoder by name, or of many where there are many sizes: some microseconds of arithmetic.

    Args:
        config: Configuration of a student; what is not in its sizes is the same for all.
        backend: What it is deployed with; word embeddings are int8 where linear maps are.
        batch_size: Texts in a call.
        sequence_length: Tokens in a text; of several lengths, operations are the mean by their shares.
        sizes: Sizes; by default those of the configuration.

    Returns:
        ``parameters`` without a head, ``encoder_parameters`` without embeddings, ``size_mb`` of the artefact (within
        3 %; MB are 10^6 bytes), and ``flops`` of a call: two for each multiplication with a sum, of linear maps and
        attention.
    """
    chosen = get_backend(backend)
    layers, hidden, neurons, words = Sizes.of(config) if sizes is None else sizes
    maps = 4 * layers * hidden * hidden + 2 * hidden * neurons  # queries, keys, values, output; feed-forward blocks
    outputs = 5 * layers * hidden + neurons
    encoder = maps + outputs + 4 * layers * hidden  # biases, and two layer norms
    table, positions = config.vocab_size * words, config.max_position_embeddings * hidden
    projection = (words != hidden) * words * hidden
    parameters = table + projection + positions + (config.type_vocab_size + 2) * hidden + encoder
    size = 4 * parameters
    if chosen.precision == "int8":  # a byte for each weight, a float32 scale for each row of the table and each output
        rounded = table + maps + projection + positions * (chosen.runtime == OPENVINO)
        size = size - 3 * rounded + 4 * (config.vocab_size + outputs)
    graph = 1000 * _GRAPH_KB.get(chosen.name, _GRAPH_KB_OTHERWISE.get(chosen.runtime, 0)) * (layers + 0.4)
    flops = 0
    for tokens, share in shares_of(sequence_length).items():
        flops = flops + share * batch_size * tokens * (2 * (maps + projection) + 4 * layers * tokens * hidden)
    return {
        "parameters": parameters,
        "encoder_parameters": encoder,
        "size_mb": (size + graph) / 1e6,
        "flops": flops,
    }
