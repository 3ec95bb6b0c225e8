"""Writes the encoder in an E5S1 file as an ordinary checkpoint: a float32 `BertModel` and its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from .e5s1_format import E5S1File, E5S1Header, E5S1Tokenizer
from .e5s1_tokenizer import save_tokenizer


def convert_e5s1(source: str | Path, directory: str | Path) -> None:
    """Dequantises an E5S1 file into a directory that `AutoModel` and `AutoTokenizer` load.

    The embedding table is cut to one row per tokenizer piece (250,002 of 250,037 for multilingual-e5-small): the rows
    beyond belong to no token, and the tokenizer cannot emit their ids.

    Args:
        source: The E5S1 file.
        directory: Where to write `config.json`, `model.safetensors` and the tokenizer's files; must exist.

    Raises:
        E5S1FormatError: The file cannot be read.
    """
    file = E5S1File(source)
    directory = Path(directory)
    config = _bert_config(file.header, file.tokenizer)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_tokenizer(file.tokenizer, directory, model_max_length=file.header.max_position_embeddings)
    save_file(_bert_weights(file), directory / "model.safetensors", metadata={"format": "pt"})


def _bert_config(header: E5S1Header, tokenizer: E5S1Tokenizer) -> dict[str, object]:
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "dtype": "float32",
        "eos_token_id": tokenizer.eos_token_id,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": header.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": header.intermediate_size,
        # The file stores it as float32; the nearest short decimal is what was meant.
        "layer_norm_eps": float(f"{header.layer_norm_eps:.6g}"),
        "max_position_embeddings": header.max_position_embeddings,
        "model_type": "bert",
        "num_attention_heads": header.num_attention_heads,
        "num_hidden_layers": header.num_hidden_layers,
        "pad_token_id": tokenizer.pad_token_id,
        "tokenizer_class": "XLMRobertaTokenizerFast",
        "type_vocab_size": header.type_vocab_size,
        "vocab_size": len(tokenizer.pieces),
    }


def _bert_weights(file: E5S1File) -> dict[str, np.ndarray]:
    """Returns the tensors of a `BertModel` without pooler, by their names in its state dict."""
    header = file.header
    hidden, intermediate = header.hidden_size, header.intermediate_size
    weights = {
        "embeddings.word_embeddings.weight": file.tensor(
            "emb.word", (header.vocab_size, hidden), num_rows=len(file.tokenizer.pieces)
        ),
        "embeddings.position_embeddings.weight": file.tensor("emb.pos", (header.max_position_embeddings, hidden)),
        "embeddings.token_type_embeddings.weight": file.tensor("emb.type", (header.type_vocab_size, hidden)),
        "embeddings.LayerNorm.weight": file.tensor("emb.ln.w", (hidden,)),
        "embeddings.LayerNorm.bias": file.tensor("emb.ln.b", (hidden,)),
    }
    linear_layers = {
        "attention.self.query": ("q", hidden, hidden),
        "attention.self.key": ("k", hidden, hidden),
        "attention.self.value": ("v", hidden, hidden),
        "attention.output.dense": ("ao", hidden, hidden),
        "intermediate.dense": ("fi", intermediate, hidden),
        "output.dense": ("fo", hidden, intermediate),
    }
    layer_norms = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    for layer in range(header.num_hidden_layers):
        prefix = f"encoder.layer.{layer}"
        for module, (name, outputs, inputs) in linear_layers.items():
            weights[f"{prefix}.{module}.weight"] = file.tensor(f"l{layer}.{name}.w", (outputs, inputs))
            weights[f"{prefix}.{module}.bias"] = file.tensor(f"l{layer}.{name}.b", (outputs,))
        for module, name in layer_norms.items():
            weights[f"{prefix}.{module}.weight"] = file.tensor(f"l{layer}.{name}.w", (hidden,))
            weights[f"{prefix}.{module}.bias"] = file.tensor(f"l{layer}.{name}.b", (hidden,))
    return weights
