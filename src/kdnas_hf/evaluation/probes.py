"""Quick checks of a student that need no labels: how much of its teacher's last layer is in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from .finetuning import ModelSource
from .task_data import TaskData

RIDGE = 1e-2  # of the mean variance of the student's states
MAX_TEXTS = 1_000
MAX_PAIRS = 500


@dataclass(frozen=True)
class ProbeTexts:
    """Texts that probes read.

    Attributes:
        texts: Texts of all languages.
        parallel: Texts by language, the n-th meaning the same in all; empty where there are none.
        sources: Tasks that they came from.
    """

    texts: list[str]
    parallel: dict[str, list[str]]
    sources: list[str]


@dataclass(frozen=True)
class ProbeResult:
    """What probes say of a model.

    Attributes:
        r2: Share of the variance of the teacher's last states that a ridge regression from the model's last states
            explains on texts that it was not fitted to, averaged over dimensions; None where the vocabularies differ.
        nearest_neighbour_overlap: Share of texts whose nearest other text (mean of the last states, cosine) is the
            teacher's.
        retrieval: Share of texts for which the nearest of all texts of the training language means the same, and the
            other way round, averaged over languages; None without parallel texts.
        method: How it was measured.
    """

    r2: float | None
    nearest_neighbour_overlap: float
    retrieval: float | None
    method: str


def probe_texts(tasks: Sequence[TaskData]) -> ProbeTexts:
    """Texts of the tasks' test sets: of all languages in equal parts, and parallel ones where a task has them."""
    by_language: dict[str, list[str]] = {}
    parallel: dict[str, list[str]] = {}
    sources = []
    for data in tasks:
        sources.append(data.task.name)
        for language, part in data.test.items():
            texts = by_language.setdefault(language, [])
            for example in part.examples[: MAX_TEXTS // len(data.test) + 1]:
                texts.append(" ".join(example.text) if isinstance(example.text, list) else example.text)
        if data.task.parallel and not parallel:
            parallel = _parallel_texts(data)
    share = max(1, MAX_TEXTS // max(len(by_language), 1))
    texts = list(dict.fromkeys(text for texts in by_language.values() for text in texts[:share]))
    return ProbeTexts(texts, parallel, sources)


def _parallel_texts(data: TaskData) -> dict[str, list[str]]:
    """The texts of every language whose rows are still those of the training language: the first comes first."""
    pivot = data.task.train_language
    if pivot not in data.test or data.test[pivot].omitted:
        return {}
    rows = data.test[pivot].examples
    # the second text of a pair is another in each row; the first may be shared
    chosen: dict[str, int] = {}
    for number, example in enumerate(rows):
        chosen.setdefault(str(example.text_pair or example.text), number)
    numbers = list(chosen.values())[:MAX_PAIRS]
    found = {}
    for language in [pivot, *(language for language in data.test if language != pivot)]:
        part = data.test[language]
        same = len(part.examples) == len(rows) and not part.omitted
        # labels are those of the same rows, too
        if same and all(part.examples[n].label == rows[n].label for n in numbers):
            found[language] = [str(part.examples[n].text_pair or part.examples[n].text) for n in numbers]
    return found if len(found) > 1 else {}


def probe_models(
    sources: Mapping[str, ModelSource], teacher: ModelSource, texts: ProbeTexts, max_length: int, batch_size: int = 64
) -> dict[str, ProbeResult]:
    """Probe models.

    Args:
        sources: The models by name.
        teacher: Their teacher.
        texts: What they read.
        max_length: Longest text in tokens.
        batch_size: Texts in a batch.
    """
    reference = _Encoder(teacher, max_length, batch_size)
    states = reference.states(texts.texts)
    neighbours = nearest(mean_vectors(states))
    results = {}
    for name, source in sources.items():
        encoder = _Encoder(source, max_length, batch_size)
        own = encoder.states(texts.texts)
        comparable = [len(a) == len(b) for a, b in zip(own, states, strict=True)]
        r2 = None
        if all(comparable) and encoder.reads_alike(reference, texts.texts):
            r2 = linear_r2(own, states)
        vectors = mean_vectors(own)
        pairs = {language: mean_vectors(encoder.states(found)) for language, found in texts.parallel.items()}
        results[name] = ProbeResult(
            r2=r2,
            nearest_neighbour_overlap=(nearest(vectors) == neighbours).float().mean().item(),
            retrieval=retrieval_accuracy(pairs) if pairs else None,
            method=_method(texts),
        )
    return results


def linear_r2(inputs: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], ridge: float = RIDGE) -> float:
    """R² of a ridge regression from states to states, fitted on every other text and scored on the rest.

    Args:
        inputs: For each text ``(tokens, hidden_size)``.
        targets: For each text ``(tokens, teacher_hidden_size)``.
        ridge: Penalty in shares of the inputs' mean variance.

    Returns:
        The mean of R² over the targets' dimensions.

    Raises:
        ValueError: If there are fewer than two texts.
    """
    if len(inputs) < 2:
        raise ValueError(f"R² needs two texts or more, one to fit and one to score, not {len(inputs)}.")
    fitted_x, fitted_y = torch.cat(list(inputs[::2])).double(), torch.cat(list(targets[::2])).double()
    scored_x, scored_y = torch.cat(list(inputs[1::2])).double(), torch.cat(list(targets[1::2])).double()
    mean_x, mean_y = fitted_x.mean(0), fitted_y.mean(0)
    x, y = fitted_x - mean_x, fitted_y - mean_y
    gram = x.T @ x
    penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram + penalty, x.T @ y)
    residual = scored_y - mean_y - (scored_x - mean_x) @ weights
    variance = (scored_y - scored_y.mean(0)).square().mean(0)
    return float((1 - residual.square().mean(0) / variance.clamp_min(1e-12)).mean())


@torch.no_grad()
def read_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[Sequence[int]], batch_size: int = 64
) -> Iterator[tuple[int, torch.Tensor]]:
    """Number and last states ``(tokens, hidden_size)`` of each text, the shortest first, in float32 on the CPU.

    Args:
        model: Without a head, in eval mode.
        tokenizer: Pads the texts.
        input_ids: Of each text.
        batch_size: Texts in a batch, which are of similar length.

    Yields:
        Views of a batch's states, which the caller reduces or copies.
    """
    collate: Any = DataCollatorWithPadding(tokenizer)
    order = sorted(range(len(input_ids)), key=lambda number: len(input_ids[number]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([{"input_ids": input_ids[number]} for number in chosen])
        output = model(**{name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")})
        for number, states in zip(chosen, output.last_hidden_state.float().cpu(), strict=True):
            yield number, states[: len(input_ids[number])]


def last_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[Sequence[int]], batch_size: int = 64
) -> list[torch.Tensor]:
    """The last states ``(tokens, hidden_size)`` of each text in the order of the texts; see `read_texts`."""
    found = {number: states.clone() for number, states in read_texts(model, tokenizer, input_ids, batch_size)}
    return [found[number] for number in range(len(input_ids))]


def mean_vectors(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of each text's states, of length 1: ``(texts, hidden_size)``."""
    return torch.nn.functional.normalize(torch.stack([one.mean(0) for one in states]), dim=-1)


def nearest(vectors: torch.Tensor) -> torch.Tensor:
    """Index of each vector's nearest other vector ``(texts,)``; the vectors ``(texts, hidden_size)`` have length 1."""
    return (vectors @ vectors.T).fill_diagonal_(-2).argmax(1)


def retrieval_accuracy(vectors: Mapping[str, torch.Tensor]) -> float:
    """Share of texts whose nearest text in the other language means the same; the first language against each other.

    Args:
        vectors: For each language ``(texts, hidden_size)``, of length 1, the n-th meaning the same in all.
    """
    pivot, *others = vectors.values()
    right = torch.arange(len(pivot))
    shares = []
    for other in others:
        similarity = pivot @ other.T
        shares += [(similarity.argmax(1) == right).float().mean(), (similarity.argmax(0) == right).float().mean()]
    return float(torch.stack(shares).mean())


class _Encoder:
    """A model without a head, and its tokenizer."""

    def __init__(self, source: ModelSource, max_length: int, batch_size: int) -> None:
        self.tokenizer: PreTrainedTokenizerBase = source.load_tokenizer()
        self.model: PreTrainedModel = source.load_encoder().eval()
        self.max_length = max_length
        self.batch_size = batch_size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids."""
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_length, verbose=False)["input_ids"]

    def reads_alike(self, other: _Encoder, texts: Sequence[str]) -> bool:
        """Whether another model's tokenizer gives the same ids."""
        return self.encode(texts) == other.encode(texts)

    def states(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """The last states of each text ``(tokens, hidden_size)``."""
        return last_states(self.model, self.tokenizer, self.encode(texts), self.batch_size)


def _method(texts: ProbeTexts) -> str:
    method = (
        f"R² of a linear map, fitted on half of {len(texts.texts):,} test texts of {', '.join(texts.sources)} and "
        "scored on the other half; nearest neighbours by cosine of mean states among the same texts."
    )
    if texts.parallel:
        pivot, *others = texts.parallel
        method += (
            f" Retrieval: the nearest of {len(texts.parallel[pivot])} parallel texts, {pivot} against "
            f"{', '.join(others)}, both ways."
        )
    return method
