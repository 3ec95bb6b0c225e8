"""How far an exported model's outputs are from those of the model that it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .backends import Backend
from .exported_model import ExportedModel
from .quantization import Batch

MAX_FLOAT32_DIFFERENCE = 1e-3
MIN_COSINE = 0.99
MAX_SCORE_DROP = 1.0


@dataclass(frozen=True)
class ArtefactCheck:
    """What an artefact was found to be, beside the model in PyTorch in float32.

    Attributes:
        max_difference: Greatest difference of any number of the outputs.
        median_cosine: Median of the cosines of the outputs, one for each token (for each text where a head gives one
            row for a text), padding left out.
        low_cosine: First percentile of them.
        label_agreement: Of heads: the share of tokens or texts with the same most probable label; None without a head.
        rows: Tokens or texts that were compared.
        score: On the task that was given: its score, in percent; None without one.
        torch_score: The score of the model in PyTorch.
        score_name: Metric of the scores, averaged over languages.
    """

    max_difference: float
    median_cosine: float
    low_cosine: float
    label_agreement: float | None
    rows: int
    score: float | None = None
    torch_score: float | None = None
    score_name: str | None = None

    def failures(
        self, backend: Backend, min_cosine: float = MIN_COSINE, max_score_drop: float = MAX_SCORE_DROP
    ) -> list[str]:
        """What is worse than its bound, a sentence each; empty if the artefact may be used.

        Args:
            backend: The artefact's: float32 may differ by 1e-3 at most.
            min_cosine: Least median cosine.
            max_score_drop: Points that the score may be lower than that in PyTorch.
        """
        found = []
        if not np.isfinite(self.max_difference):
            found.append("its outputs are not all finite.")
        if backend.precision == "float32" and not self.max_difference <= MAX_FLOAT32_DIFFERENCE:
            found.append(f"float32 outputs differ by {self.max_difference:.1e}, more than {MAX_FLOAT32_DIFFERENCE:g}.")
        if not self.median_cosine >= min_cosine:
            found.append(f"the median cosine is {self.median_cosine:.6f}, less than min_cosine={min_cosine:g}.")
        if self.score is not None and self.torch_score is not None:
            drop = self.torch_score - self.score
            if drop > max_score_drop:
                found.append(f"the score drops by {drop:.1f} points, more than max_score_drop={max_score_drop:g}.")
        return found

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [
            f"cosine {self.median_cosine:.5f} (1st percentile {self.low_cosine:.4f})",
            f"greatest difference {self.max_difference:.2g}",
        ]
        if self.label_agreement is not None:
            parts.append(f"same label {self.label_agreement:.1%}")
        if self.score is not None and self.torch_score is not None:
            parts.append(f"{self.score_name} {self.score:.1f} (PyTorch {self.torch_score:.1f})")
        return ", ".join(parts)


def compare_outputs(exported: ExportedModel, model: PreTrainedModel, batches: Sequence[Batch]) -> ArtefactCheck:
    """Compare an exported model's outputs on text with those of the model in PyTorch.

    Args:
        exported: The exported model.
        model: The model that it was made of, in float32.
        batches: Text, as `text_batches` makes it.
    """
    model.eval()
    differences, cosines, agreements = [0.0], [], []
    for batch in batches:
        with torch.inference_mode():
            outputs = model(**{name: torch.from_numpy(values) for name, values in batch.items()})
        found = exported(**batch)
        for name in exported.output_names:
            expected, given = outputs[name].numpy().astype(np.float64), np.asarray(found[name], dtype=np.float64)
            if expected.ndim == 3:  # (batch, sequence, size): of tokens, not of padding
                real = batch["attention_mask"].astype(bool)
                expected, given = expected[real], given[real]
            elif expected.shape == batch["input_ids"].shape:  # (batch, sequence): spans
                real = batch["attention_mask"].astype(bool)
                expected, given = np.where(real, expected, 0), np.where(real, given, 0)
            differences.append(float(np.abs(expected - given).max()))
            cosines.append(_cosines(expected, given))
            if name != "last_hidden_state":
                agreements.append(expected.argmax(-1) == given.argmax(-1))
    every = np.concatenate(cosines)
    return ArtefactCheck(
        max_difference=float(np.max(differences)),
        median_cosine=float(np.median(every)),
        low_cosine=float(np.percentile(every, 1)),
        label_agreement=float(np.concatenate(agreements).mean()) if agreements else None,
        rows=len(every),
    )


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / np.maximum(norms, 1e-12)
