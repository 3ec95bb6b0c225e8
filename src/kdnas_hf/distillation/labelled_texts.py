"""Texts with a task's labels: what students ask of them, and how they become batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from ..data.labels import LABELS, check_labels
from ..students import KDNASForTokenClassification
from .pool import StudentPool


def text_columns(pool: StudentPool) -> list[str]:
    """The columns of a data set that a pool reads: labels, which may be there anyway, only where it learns a task."""
    return ["input_ids", LABELS] if pool.classifies else ["input_ids"]


def padding_collator(tokenizer: PreTrainedTokenizerBase, tags: bool) -> Any:
    """What pads texts to a batch, and with them the labels of tokens, if these have any (``tags``), by -100."""
    return (DataCollatorForTokenClassification if tags else DataCollatorWithPadding)(tokenizer)


def classifies_tokens(pool: StudentPool) -> bool:
    """Whether students learn a class for each token."""
    return any(isinstance(model, KDNASForTokenClassification) for model in pool.models.values())


def check_labelled_texts(name: str, texts: Any, pool: StudentPool) -> None:
    """Refuse texts (a data set, several by name, or None) whose labels are not those that a pool's students learn.

    ``name`` is the argument that they were given as. Of a stream only the columns are known.

    Raises:
        ValueError: If there are no labels, or they are not of one class for each text (or for each token).
    """
    if not pool.classifies or texts is None:
        return
    classes = min((int(model.config.num_labels or 0) for model in pool.models.values()), default=0)
    if isinstance(texts, Mapping):
        for part, dataset in texts.items():
            check_labelled_texts(f"{name}[{part!r}]", dataset, pool)
        return
    check_labels(name, texts, classes, classifies_tokens(pool), ", ".join(pool.labeled_losses))
