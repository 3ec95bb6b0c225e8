"""How token states become a sentence vector, in the files of sentence-transformers: pooling, layers and prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn

from .atomic_files import write_atomically
from .model_digest import digest_of_module

MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"
LENGTH_FILE = "sentence_bert_config.json"

# the names of a mode's flag in the files of all versions of sentence-transformers; the newest write `pooling_mode`
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
POOLING_MODES = tuple(_FLAGS)
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "torch.nn.modules.linear.Identity": nn.Identity,
    "torch.nn.modules.activation.Tanh": nn.Tanh,
    "torch.nn.modules.activation.ReLU": nn.ReLU,
    "torch.nn.modules.activation.GELU": nn.GELU,
    "torch.nn.modules.activation.SiLU": nn.SiLU,
    "torch.nn.modules.activation.Sigmoid": nn.Sigmoid,
}


def pool(states: torch.Tensor, attention_mask: torch.Tensor, mode: str) -> torch.Tensor:
    """One vector for each text, in float32 or wider.

    Args:
        states: ``(batch, sequence, size)``, padded on the right.
        attention_mask: ``(batch, sequence)``, 1 for real tokens, of which each text has one at least.
        mode: One of `POOLING_MODES`, as sentence-transformers defines them.

    Returns:
        ``(batch, size)``.
    """
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        last = attention_mask.sum(1) - 1
        return states[torch.arange(len(states), device=states.device), last]
    real = attention_mask.bool()[..., None]
    if mode == "max":
        return states.masked_fill(~real, -torch.inf).amax(1)
    weights = real.to(states.dtype)
    if mode == "weightedmean":
        weights = weights * torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
    # nothing of padding, not even a NaN, may reach the sum
    total, count = (states.masked_fill(~real, 0) * weights).sum(1), weights.sum(1)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


class Normalize(nn.Module):
    """Scales vectors to length 1."""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Scale ``(…, dimension)``."""
        return nn.functional.normalize(vectors, dim=-1)


class SentenceHead(nn.Module):
    """Makes a sentence vector of an encoder's last states: pooling, then layers.

    Args:
        pooling: One of `POOLING_MODES`, or several, whose vectors are put side by side.
        layers: What follows the pooling: `torch.nn.Linear`, an activation behind it, or `Normalize`.
        prompts: What stands before a text, by what the text is for, as ``{"query": "query: "}``.
        default_prompt: The prompt of a text for which none is named.
        similarity: Which similarity vectors are compared by: ``cosine``, ``dot``, ``euclidean`` or ``manhattan``.
        max_length: Tokens of a text that are read; None for as many as the encoder can.

    Raises:
        ValueError: If a value is impossible.
    """

    def __init__(
        self,
        pooling: str | Sequence[str] = "mean",
        layers: Sequence[nn.Module] = (),
        prompts: Mapping[str, str] | None = None,
        default_prompt: str | None = None,
        similarity: str = "cosine",
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.pooling = (pooling,) if isinstance(pooling, str) else tuple(pooling)
        for mode in self.pooling or ("",):
            if mode not in POOLING_MODES:
                raise ValueError(f"pooling={mode!r} is unknown; choose from {', '.join(POOLING_MODES)}.")
        self.layers = nn.ModuleList(layers)
        self.prompts = {name: text for name, text in (prompts or {}).items() if text is not None}
        self.default_prompt = default_prompt
        if default_prompt is not None and default_prompt not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"default_prompt={default_prompt!r} is not one of the prompts, which are: {known}.")
        self.similarity = similarity
        self.max_length = max_length

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Sentence vectors ``(batch, dimension)`` of last states ``(batch, sequence, hidden_size)``; see `pool`."""
        with torch.autocast(states.device.type, enabled=False):
            vectors = torch.cat([pool(states, attention_mask, mode) for mode in self.pooling], dim=-1)
            for layer in self.layers:
                vectors = layer(vectors)
        return vectors

    def dimension(self, hidden_size: int) -> int:
        """Size of the vectors, for an encoder's hidden size."""
        linear = [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]
        return linear[-1] if linear else hidden_size * len(self.pooling)

    def digest(self) -> str:
        """A digest of all that vectors depend on."""
        return digest_of_module(self, f"{self.pooling} {self.layers}")

    @property
    def normalizes(self) -> bool:
        """Whether vectors have length 1."""
        return bool(self.layers) and isinstance(self.layers[-1], Normalize)

    def prompt(self, name: str | None) -> str:
        """The prompt of this name, by default the default one, empty if there is none.

        Raises:
            ValueError: If it is unknown.
        """
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            raise ValueError(f"prompt_name={name!r} is unknown; choose from {', '.join(self.prompts) or 'none'}.")
        return self.prompts[name]

    @property
    def commutes(self) -> bool:
        """Whether a linear map of the states, with a constant, is the same map of the pooled vector."""
        return self.pooling in (("mean",), ("cls",), ("lasttoken",), ("weightedmean",))

    def followed_by(self, *layers: nn.Module) -> SentenceHead:
        """A head with the same pooling, prompts, similarity and length, and other layers."""
        return SentenceHead(self.pooling, layers, self.prompts, self.default_prompt, self.similarity, self.max_length)

    # ---- the files of sentence-transformers ----

    def save(self, folder: str | Path) -> None:
        """Write what sentence-transformers, of any version, reads beside the files of the encoder in ``folder``."""
        folder = Path(folder)
        modules = [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")]
        config = {"word_embedding_dimension": _read_json(folder / "config.json")["hidden_size"]}
        config |= {flag: mode in self.pooling for mode, flag in _FLAGS.items()} | {"include_prompt": True}
        _write(folder / "1_Pooling" / "config.json", config)
        layers = list(self.layers)
        while layers:
            layer, number = layers.pop(0), len(modules)
            if isinstance(layer, Normalize):
                modules.append(_module(number, f"{number}_Normalize", "Normalize"))  # it has no files
                continue
            assert isinstance(layer, nn.Linear)
            activation = layers.pop(0) if layers and type(layers[0]) in ACTIVATIONS.values() else nn.Identity()
            modules.append(_module(number, f"{number}_Dense", "Dense"))
            path = folder / f"{number}_Dense"
            _write(path / "config.json", _dense_config(layer, activation))
            weights = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in layer.named_parameters()}
            write_atomically(path / "model.safetensors", partial(save_file, weights))
        settings: dict[str, Any] = {"model_type": "SentenceTransformer", "prompts": self.prompts}
        settings |= {"default_prompt_name": self.default_prompt, "similarity_fn_name": self.similarity}
        _write(folder / PROMPTS_FILE, settings)
        _write(folder / LENGTH_FILE, {"max_seq_length": self.max_length, "do_lower_case": False})
        _write(folder / MODULES_FILE, modules)

    @classmethod
    def load(cls, name_or_path: str | Path, revision: str | None = None, field: str = "teacher") -> SentenceHead | None:
        """Read the head of a model on the Hub or in a local directory; None if it has no ``modules.json``.

        Args:
            name_or_path: Hub id or local directory.
            revision: Branch, tag or commit on the Hub.
            field: What errors call ``name_or_path``: the argument that named it.

        Raises:
            ValueError: If it has modules or settings that are not understood.
        """
        named = f"{field}={str(name_or_path)!r}"

        def read(path: str, parse: Callable[[Path], Any] = _read_json) -> Any:
            file = _file_of(name_or_path, path, revision)
            return None if file is None else parse(file)

        modules = read(MODULES_FILE)
        if modules is None:
            return None
        pooling: tuple[str, ...] | None = None
        layers: list[nn.Module] = []
        for module in modules:
            kind, path = module["type"].rpartition(".")[2], module["path"]
            if kind == "Pooling":
                pooling = _pooling_of(read(f"{path}/config.json") or {}, named)
            elif kind == "Normalize":
                layers.append(Normalize())
            elif kind == "Dense":
                layers += _dense_of(read(f"{path}/config.json"), read(f"{path}/model.safetensors", load_file), named)
            elif kind not in ("Transformer", "Dropout"):
                raise ValueError(
                    f"{named} has the module {module['type']!r}, which is not supported; choose a model of "
                    "Transformer, Pooling, Dense and Normalize."
                )
        if pooling is None:
            raise ValueError(f"{named} has no module Pooling; its pooling is unknown. Add one to its {MODULES_FILE}.")
        settings, length = read(PROMPTS_FILE) or {}, read(LENGTH_FILE) or {}
        return cls(
            pooling,
            layers,
            settings.get("prompts"),
            settings.get("default_prompt_name"),
            settings.get("similarity_fn_name") or "cosine",
            length.get("max_seq_length"),
        )


def copy_sentence_head(source: str | Path, target: str | Path) -> None:
    """Keep beside a copy of an encoder, which may be compressed, what made its sentence vectors, if there is any."""
    if head := SentenceHead.load(source, field="student"):
        head.save(target)


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _file_of(name_or_path: str | Path, path: str, revision: str | None) -> Path | None:
    """A file of a model, None if the model has none of this name."""
    if Path(name_or_path).is_dir():
        file = Path(name_or_path) / path
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), path, revision=revision))
    except LocalEntryNotFoundError:  # offline, and not in the cache: as far as can be known it is not there
        return None
    except EntryNotFoundError:
        return None


def _pooling_of(config: Mapping[str, Any], named: str) -> tuple[str, ...]:
    if not config.get("include_prompt", True):
        raise ValueError(f"{named} leaves its prompt out of the pooling (include_prompt), which is not supported.")
    mode = config.get("pooling_mode") or [mode for mode, flag in _FLAGS.items() if config.get(flag)]
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if not modes or not set(modes) <= set(POOLING_MODES):
        raise ValueError(f"{named}: its pooling {list(modes)} is unknown; choose from {', '.join(POOLING_MODES)}.")
    return modes


def _dense_of(config: Mapping[str, Any] | None, weights: Mapping[str, torch.Tensor] | None, named: str) -> list:
    if config is None or weights is None:
        raise ValueError(f"{named} has a module Dense without config.json and model.safetensors; save it anew.")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS or config.get("use_residual"):
        raise ValueError(f"{named} has a module Dense with {activation} or a residual, which is not supported.")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in weights.items()})
    made = ACTIVATIONS[activation]()
    return [linear] if isinstance(made, nn.Identity) else [linear, made]


def _dense_config(linear: nn.Linear, activation: nn.Module) -> dict[str, Any]:
    name = next(name for name, kind in ACTIVATIONS.items() if type(activation) is kind)
    sizes = {"in_features": linear.in_features, "out_features": linear.out_features}
    return sizes | {"bias": linear.bias is not None, "activation_function": name}


def _module(number: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(content, indent=2) + "\n")
