"""What is scored: anything that encodes sentences, with its prompts, its vectors and what tells it from others."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from ...data import embedded_teacher
from ...distillation.teacher import EMBEDDED
from ...students import SentenceEncoder
from ...students.layer_copying import check_copyable
from ...students.starts import default_layers
from ...utils.atomic_files import replace_directory
from ...utils.cache_directory import default_cache_dir
from ...utils.encoders import encoder_config
from .kinds import PASSAGE, QUERY

# what an encoder may call the prompt of a role, the first that it has
PROMPT_NAMES = {QUERY: ("query",), PASSAGE: ("passage", "document")}

# texts of a column whose vectors tell an encoder from others
SAMPLE = 8


class Encoder(Protocol):
    """Gives sentences vectors, as ``sentence_transformers.SentenceTransformer`` does.

    An encoder that reads texts with prompts has them by name in an attribute ``prompts``; only names that are there are
    ever passed.
    """

    def encode(self, sentences: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        """Vectors ``(sentences, dimension)``, each sentence read behind the prompt of that name."""


class EncoderVectors:
    """The vectors of an encoder, computed once for each text and prompt.

    Attributes:
        name: What results call the encoder.
        width: The dimension of its vectors.

    Args:
        name: What results call the encoder.
        encoder: The encoder.

    Raises:
        ValueError: If it gives something else than a row of finite numbers for each sentence.
    """

    def __init__(self, name: str, encoder: Encoder) -> None:
        self.name = name
        self._encoder = encoder
        self._known: dict[str | None, dict[str, np.ndarray]] = {}
        self.width = 0
        for role in (QUERY, PASSAGE):
            self.width = self._encode(["A text.", "Another."], self._prompt(role), "a first text").shape[1]

    def fingerprint(self, texts: Sequence[str], role: str, where: str) -> str:
        """What tells this encoder from others: a digest of the vectors, to four decimals, of some of the texts.

        They are not taken from what is known: in another batch, the last digits would differ.
        """
        distinct = list(dict.fromkeys(texts))
        sample = distinct[:: -(-len(distinct) // SAMPLE)]
        vectors = np.round(self._encode(sample, self._prompt(role), where), 4) + 0.0  # no negative zeros
        return hashlib.sha256(vectors.tobytes()).hexdigest()[:16]

    def of(self, texts: Sequence[str], role: str, where: str) -> np.ndarray:
        """Normalised vectors ``(texts, width)`` in float32; a vector of zeros stays one.

        Args:
            texts: The texts.
            role: ``query`` or ``passage``.
            where: What errors call the texts.

        Raises:
            ValueError: If the encoder gives a vector that is not finite, or of another width than before.
        """
        prompt = self._prompt(role)
        known = self._known.setdefault(prompt, {})
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, self._encode(new, prompt, where), strict=True))
        return np.stack([known[text] for text in texts])

    def forget(self) -> None:
        """Give the memory of all vectors back."""
        self._known.clear()

    def _prompt(self, role: str) -> str | None:
        prompts = getattr(self._encoder, "prompts", None) or {}
        return next((name for name in PROMPT_NAMES[role] if name in prompts), None)

    def _encode(self, texts: list[str], prompt: str | None, where: str) -> np.ndarray:
        given: dict[str, Any] = {} if prompt is None else {"prompt_name": prompt}
        vectors = np.asarray(self._encoder.encode(texts, **given), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.shape[1]:
            raise ValueError(
                f"encoder {self.name}: encode gives an array of shape {vectors.shape} for {len(texts)} sentences; it "
                "must be (sentences, dimension)."
            )
        if self.width not in (0, vectors.shape[1]):
            raise ValueError(f"encoder {self.name}: vectors of {vectors.shape[1]} after {self.width} ({where}).")
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            raise ValueError(
                f"encoder {self.name}: the vector of {texts[wrong[0]][:60]!r} ({where}) holds NaN or infinity; "
                f"{len(wrong)} of {len(texts)} do. Check its weights, or load it in float32."
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)


def load_encoder(path: str, field: str = "student") -> SentenceEncoder:
    """The sentence encoder at a path or Hub id; ``embedded`` is the teacher of the extra ``demo``.

    Errors call the path ``field``, the argument that named it.

    Raises:
        ValueError: If there is none.
    """
    return SentenceEncoder.from_pretrained(str(embedded_teacher()) if path == EMBEDDED else path, field=field)


def cut_baseline(teacher_path: str, student_path: str) -> Encoder:
    """The teacher without the layers that a student does not keep, untrained: what distillation should surpass.

    Args:
        teacher_path: Hub id or path of the teacher, or ``embedded``.
        student_path: Hub id or path of the student: the layers that its configuration names are kept, or those that a
            student of its depth starts from by default.

    Raises:
        ValueError: If one of them is no sentence encoder, or the teacher's layers cannot be taken out.
    """
    encoder = load_encoder(teacher_path, "teacher")
    check_copyable(encoder.model)
    config = encoder_config(student_path, None, "student")
    depth = encoder.model.config.num_hidden_layers
    kept = getattr(config, "teacher_layers", None) or default_layers(config.num_hidden_layers, depth)
    if max(kept) > depth:
        raise ValueError(f"vector_baselines=cut: student={student_path!r} keeps layers {kept} of a teacher of {depth}.")
    stack: Any = encoder.model.get_submodule("encoder")
    stack.layer = nn.ModuleList(stack.layer[layer - 1] for layer in kept)
    encoder.model.config.num_hidden_layers = len(kept)
    return encoder


def static_baseline(teacher_path: str, dimension: int = 256, cache_dir: str | Path | None = None) -> Encoder:
    """Model2Vec of a teacher: a vector for each token, made of the teacher's vectors of single tokens, and their mean.

    What a distilled student should surpass: it takes no text and no training, and is as fast as a table. Every token of
    the vocabulary is read once, which takes minutes for 250,000 tokens; the result is kept and found again. See
    https://github.com/MinishLab/model2vec.

    Args:
        teacher_path: Hub id or path of the teacher, or ``embedded``.
        dimension: Width of the vectors after principal component analysis.
        cache_dir: Where it is kept; by default `$KDNAS_HF_CACHE`, else `~/.cache/kdnas_hf`.

    Raises:
        ImportError: If Model2Vec is not installed.
        ValueError: If there is no such teacher.
    """
    from ..finetuning import ModelSource  # which imports this folder's tasks by its arguments

    try:
        distill = importlib.import_module("model2vec.distill").distill
        static_model = importlib.import_module("model2vec").StaticModel
    except ImportError as error:
        raise ImportError(
            f"vector_baselines=static needs model2vec[distill] ({error}): pip install 'kdnas_hf[embedders]', "
            "or leave it out."
        ) from error
    teacher = ModelSource(teacher_path)
    root = default_cache_dir() if cache_dir is None else Path(cache_dir)
    path = root / "static" / f"{teacher.fingerprint()}-{dimension}".replace("/", "--")
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = distill(teacher.location, pca_dims=dimension)
        replace_directory(path, made.save_pretrained)
    return static_model.from_pretrained(path)
