"""The card of a student: what its evidence says, and nothing else."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined
from transformers import AutoModel, PretrainedConfig
from transformers.utils import logging

from ..evaluation import EvaluationResults
from ..evaluation.embeddings import EmbeddingResults
from ..evaluation.report import plot_scores
from ..evaluation.results import STUDENT
from ..export.backends import ONNX_FOLDER, OPENVINO_FOLDER
from ..export.budgets import written
from ..search.report import PLOT_FILE as PARETO_PLOT
from ..search.report import comparison_table
from ..search.result import SEARCH, pareto_front
from ..utils.markdown_table import markdown_table
from ..version import __version__
from .eval_results import model_index, write_eval_results
from .evidence import (
    EVIDENCE_FOLDER,
    CompressionEvidence,
    SearchEvidence,
    StudentEvidence,
    TrainingEvidence,
    record_evaluation,
    record_vectors,
)
from .figures import CURVE_PLOT, plot_curve
from .scores_section import BEGIN, END, put_scores, scores_section, vectors_section
from .usage import usage

logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).parent / "card_template.md"
NO_SCORES = "Scores on downstream tasks were not measured."
TAGS = ["kdnas", "knowledge-distillation", "neural-architecture-search", "multilingual", "arxiv:2303.09639"]
PIPELINE_TAGS = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# the last line of a card that nobody edited
SIGNATURE = "<!-- written by kdnas_hf, {} -->"


class KDNASModelCardData(ModelCardData):
    """Metadata of a student's card.

    Args:
        base_model: Hub id of the teacher, if it has one.
        license: That of the teacher.
        language: Languages of the text.
        pipeline_tag: What the student does.
        library_name: The library that the Hub suggests for it.
        **kwargs: What else `ModelCardData` takes.
    """

    def __init__(
        self,
        base_model: str | None = None,
        license: str | None = None,
        language: list[str] | None = None,
        pipeline_tag: str = "feature-extraction",
        library_name: str = "transformers",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            base_model=base_model,
            license=license,
            language=language,
            library_name=library_name,
            pipeline_tag=pipeline_tag,
            tags=[*TAGS, *kwargs.pop("tags", [])],
            **kwargs,
        )

    @classmethod
    def of(cls, evidence: StudentEvidence, license: str | None = None) -> KDNASModelCardData:
        """What follows from a student's evidence; what is unknown is left out.

        Args:
            evidence: Of the student.
            license: In place of the teacher's.
        """
        training, embeds = evidence.training, evidence.sentence_head is not None
        results = [entry for found in evidence.evaluations for entry in model_index(found)]
        return cls(
            base_model=training.teacher_id if training else None,
            license=license or (training.teacher_license if training else None),
            language=primary_subtags(training.languages) or None if training else None,
            datasets=training.datasets or None if training else None,
            pipeline_tag="sentence-similarity" if embeds else _pipeline_tag(evidence.config),
            library_name="sentence-transformers" if embeds else "transformers",
            model_name=student_name(evidence.config) if results else None,
            eval_results=results or None,
            metrics=sorted({result.metric_type for result in results}) or None,
        )


@dataclass(frozen=True)
class Sibling:
    """Another student of the same search, published beside this one.

    Attributes:
        repo_id: Its repository.
        budget: The budget that it meets, in words.
        evidence: What is known of it.
    """

    repo_id: str
    budget: str
    evidence: StudentEvidence


def write_model_card(
    student: str | Path,
    repo_id: str | None = None,
    license: str | None = None,
    native: bool = False,
    siblings: Sequence[Sibling] = (),
) -> Path:
    """Write ``README.md``, its plots and ``.eval_results`` into a student's directory, from the student's evidence.

    Of a card that somebody edited only the scores are replaced, and a warning says so.

    Args:
        student: The student's directory.
        repo_id: Where it is published; by default a place-holder.
        license: In place of the teacher's.
        native: Whether it is a stock checkpoint, which needs no code of ours.
        siblings: Students of the same search for other budgets.

    Returns:
        The card.

    Raises:
        FileNotFoundError: If there is no student.
        ValueError: If its evidence is damaged.
    """
    folder = Path(student)
    evidence = StudentEvidence.load(folder)
    _write_plots(evidence, folder)
    for results in evidence.evaluations:
        write_eval_results(results, folder)
    path = folder / CARD_FILE
    if is_edited(path):
        logger.warning(f"{path} was edited by hand: only its scores are brought up to date.")
        put_scores(path, _scores(evidence))
        return path
    text = render_card(evidence, folder, repo_id, license, native, list_artefacts(folder), siblings)
    path.write_text(text + SIGNATURE.format(_digest(text)) + "\n", encoding="utf-8")
    return path


def write_scores_into_card(results: EvaluationResults | EmbeddingResults, student: str | Path) -> Path | None:
    """Keep scores as evidence of a local student, and bring its card up to date.

    Args:
        results: What was measured.
        student: The student's directory.

    Returns:
        The card; None if the student has neither a card of ours nor one with a place for scores, which is logged.
    """
    folder = Path(student)
    if not (folder / "config.json").is_file():
        logger.warning(f"{folder} is no local student; scores are written into no card.")
        return None
    if isinstance(results, EmbeddingResults):
        record_vectors(folder, results)
    else:
        record_evaluation(folder, results)
    path = folder / CARD_FILE
    if is_edited(path) and BEGIN not in path.read_text(encoding="utf-8"):
        logger.warning(f"{path} has no place for scores ({BEGIN} … {END}); it stays as it is.")
        return None
    return write_model_card(folder)


def list_artefacts(student: str | Path) -> list[str]:
    """The exported models in a student's directory, by file name."""
    folder = Path(student)
    found = [path for name in (ONNX_FOLDER, OPENVINO_FOLDER) for path in sorted((folder / name).rglob("*"))]
    return [path.relative_to(folder).as_posix() for path in found if path.suffix in (".onnx", ".xml")]


def render_card(
    evidence: StudentEvidence,
    folder: Path | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    native: bool = False,
    artefacts: Sequence[str] = (),
    siblings: Sequence[Sibling] = (),
) -> str:
    """The text of a card.

    Args:
        evidence: What is known of the student.
        folder: Its directory: a plot that is not there is not shown.
        repo_id: Where it is published.
        license: In place of the teacher's.
        native: Whether it is a stock checkpoint.
        artefacts: Exported models beside it.
        siblings: Students of the same search for other budgets.
    """
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    config, training, search = evidence.config, evidence.training, evidence.search
    data = KDNASModelCardData.of(evidence, license)
    return template.render(
        card_data=data.to_yaml(),
        name=student_name(config),
        version=training.versions.get("kdnas-hf", __version__) if training else __version__,
        config=config,
        training=training,
        search=search,
        teacher=_teacher(training),
        summary=_summary(evidence),
        shape=_shape(config, search),
        outcomes=_outcomes(search) if search else "",
        confirmed=_confirmed(search) if search else "",
        front=_front(search) if search else "",
        on_front=search is not None and search.shape in pareto_front(search.trials, search.confirmations),
        comparison_table=comparison_table(search.comparison) if search and search.comparison else "",
        siblings=_siblings(siblings),
        latency=_latency(evidence),
        exports=_exports(evidence, artefacts),
        scores=f"{BEGIN}\n{_scores(evidence)}\n{END}",
        distillation=_distillation(training) if training else "",
        pareto_plot=_plot(folder, PARETO_PLOT),
        curve_plot=_plot(folder, CURVE_PLOT),
        usage=usage(config, repo_id or f"<owner>/{repository_name(config)}", native, artefacts, evidence.sentence_head),
        command=shlex.join(training.command) if training else "",
        provenance=_provenance(training, search) if training else "",
        limits=_limits(evidence, data),
    )


def student_name(config: PretrainedConfig) -> str:
    """What a student is called: its layers and its width."""
    return f"KDNAS {config.num_hidden_layers}x{config.hidden_size}"


def repository_name(config: PretrainedConfig) -> str:
    """A student's name as one of a repository."""
    return student_name(config).lower().replace(" ", "-")


def primary_subtags(languages: Iterable[str]) -> list[str]:
    """Languages as the Hub lists them: without script and region, each once."""
    return sorted({language.split("-")[0].lower() for language in languages if language})


# ---- sections ----


def _summary(evidence: StudentEvidence) -> str:
    training, latency = evidence.training, evidence.latency
    speedup = "not measured"
    if latency:
        best = latency[0]
        speedup = f"**{best.speedup:.1f}x** ({best.backend}, {best.batch_size} x {best.sequence_length} tokens)"
    kept = "not measured"
    shares = retention(evidence)
    if shares:
        average = sum(shares.values()) / len(shares)
        several = [f"{task} {share:.1f} %" for task, share in shares.items()]
        by_task = ", ".join(several if len(shares) > 1 else shares)
        kept = f"**{average:.1f} %** ({by_task})"
    r2 = "not measured" if training is None or training.r2 is None else f"{training.r2:.3f}"
    encoder, embeddings = parameters(evidence.config)
    parts = f"{embeddings:,} of embeddings, {encoder:,} of layers"
    languages = primary_subtags(training.languages) if training else []
    rows = [
        ["speed-up over the teacher", speedup],
        ["kept of the teacher's score", kept],
        ["R² of the teacher's last layer on held-out text", r2],
        ["parameters", f"{encoder + embeddings:,}: {parts}"],
        ["languages of the text", str(len(languages)) if languages else "not recorded"],
    ]
    return markdown_table(["what", "measured"], rows)


def retention(evidence: StudentEvidence) -> dict[str, float]:
    """Percent of the teacher's average score that the student keeps, by task."""
    found = {}
    if evidence.vectors is not None:
        for name, vectors in evidence.vectors.tasks.items():
            share = vectors.encoders[STUDENT].average_share if STUDENT in vectors.encoders else None
            if share is not None:
                found[name] = 100 * share.value
    for results in evidence.evaluations:
        for name, task in results.tasks.items():
            model = task.models.get(STUDENT)
            if model is not None and model.average.retention is not None:
                found[name] = model.average.retention
    return found


def parameters(config: PretrainedConfig) -> tuple[int, int]:
    """Parameters of a student's layers, and those of its embeddings."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    embeddings = sum(p.numel() for p in model.embeddings.parameters())
    pooler = sum(p.numel() for name, p in model.named_parameters() if name.startswith("pooler."))
    return sum(p.numel() for p in model.parameters()) - embeddings - pooler, embeddings


def _shape(config: PretrainedConfig, search: SearchEvidence | None) -> str:
    def shown(value: Any) -> str:
        return " / ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)

    embedding_size = getattr(config, "embedding_size", None)
    rows = [
        ["layers", str(config.num_hidden_layers)],
        ["hidden size", str(config.hidden_size)],
        ["attention heads", shown(config.num_attention_heads)],
        ["FFN size", shown(config.intermediate_size)],
        ["activation", shown(config.hidden_act)],
        ["vocabulary", f"{config.vocab_size:,} tokens, that of the teacher"],
        ["embedding size", shown(embedding_size or config.hidden_size)],
        ["longest text", f"{_max_tokens(config)} tokens"],
    ]
    if search is not None and search.shape is not None:
        titles = {"size_mb": "size in the search's backend", "memory_mb": "memory", "flops": "operations of a call"}
        costs = search.shape.costs
        rows += [[title, written(name, costs[name])] for name, title in titles.items() if name in costs]
    return markdown_table(["choice", "value"], rows)


def _max_tokens(config: PretrainedConfig) -> int:
    return getattr(config, "max_tokens", config.max_position_embeddings - (config.pad_token_id or 0) - 1)


def _outcomes(search: SearchEvidence) -> str:
    counts = Counter(trial.failure or trial.state for trial in search.trials)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())


def _confirmed(search: SearchEvidence) -> str:
    """The shape's figures with further seeds, as the search's own is its luckiest; and whose shape it is."""
    again = search.shape
    if again is None or not search.is_confirmed:
        return (
            f"Its {search.label} in the search is that of one seed, and the best of many such readings is partly luck: "
            "it was not measured again."
        )
    origin = ""
    if again.origin != SEARCH:
        what = f"a rule of thumb, {again.origin}" if again.is_rule else "a random shape"
        origin = f"The controller did not choose it: it is {what}, which was measured beside the best candidates. "
    seeds = f" ± {again.deviation:.4f} (standard deviation over seeds)" if len(again.qualities) > 1 else ""
    return (
        f"{origin}It was distilled briefly once more with each of {len(again.qualities)} further seed(s), and timed "
        f"with more calls: {search.label} {again.quality:.4f}{seeds}, {again.latency.student_ms:.2f} ms, "
        f"{again.speedup:.2f}x."
    )


def _front(search: SearchEvidence) -> str:
    shown = pareto_front(search.trials, search.confirmations)
    if search.shape is not None and search.shape not in shown:
        shown.append(search.shape)
    rows = []
    for one in sorted(shown, key=lambda shape: -shape.speedup):
        cells = [str(one.architecture), f"{one.quality:.3f}", f"{one.latency.student_ms:.2f}", f"{one.speedup:.2f}x"]
        rows.append([f"**{cell}**" for cell in cells] if one.architecture == search.architecture else cells)
    return markdown_table(["architecture", search.label, "latency (ms)", "speed-up"], rows)


def _siblings(siblings: Sequence[Sibling]) -> str:
    if not siblings:
        return ""
    rows = []
    for sibling in siblings:
        latency, training = sibling.evidence.latency, sibling.evidence.training
        rows.append(
            [
                f"[{sibling.repo_id}](https://huggingface.co/{sibling.repo_id})",
                sibling.budget,
                f"{latency[0].speedup:.2f}x" if latency else "not measured",
                f"{training.r2:.3f}" if training and training.r2 is not None else "not measured",
            ]
        )
    return markdown_table(["student", "budget", "speed-up", "R²"], rows)


def _latency(evidence: StudentEvidence) -> str:
    if not evidence.latency:
        return ""
    header = ["backend", "batch x tokens", "threads", "teacher (ms)", "student (ms)", "speed-up", "device"]
    rows = [
        [
            row.backend if row.teacher_backend is None else f"{row.backend}; the teacher in {row.teacher_backend}",
            f"{row.batch_size} x {row.sequence_length}",
            str(row.threads),
            f"{row.teacher_ms:.2f} (IQR {row.teacher_iqr_ms:.2f})",
            f"{row.student_ms:.2f} (IQR {row.student_iqr_ms:.2f})",
            f"{row.speedup:.2f}x",
            f"{row.device}, {row.samples} calls each",
        ]
        for row in evidence.latency
    ]
    return markdown_table(header, rows)


def _exports(evidence: StudentEvidence, artefacts: Sequence[str]) -> str:
    """What was found of the artefacts that are there."""
    rows = []
    for record in evidence.exports:
        if record.file not in artefacts:
            continue
        check, memory = record.check, record.peak_memory_mb
        score = "not measured"
        if check.score is not None and check.torch_score is not None:
            score = f"{check.score_name} {check.score:.1f} ({check.torch_score:.1f})"
        rows.append(
            [
                f"`{record.file}`",
                record.description,
                f"{record.size_mb:,.0f} MB",
                "not measured" if memory is None else f"{memory:,.0f} MB",
                f"{check.median_cosine:.4f} ({check.low_cosine:.4f})",
                score,
            ]
        )
    if not rows:
        return ""
    header = ["artefact", "runs in", "size", "memory", "cosine (1st percentile)", "score (of the checkpoint)"]
    return markdown_table(header, rows)


def _scores(evidence: StudentEvidence) -> str:
    sections = [] if evidence.vectors is None else [vectors_section(evidence.vectors)]
    for number, results in enumerate(evidence.evaluations):
        plot = f"![Scores against latency]({EVIDENCE_FOLDER}/{_scores_plot(number)})"
        sections += [scores_section(results), plot]
    return "\n\n".join(sections) or NO_SCORES


def _scores_plot(number: int) -> str:
    return f"scores_{number + 1}.png" if number else "scores.png"


def _distillation(training: TrainingEvidence) -> str:
    settings = training.settings
    layers = ", ".join(f"layer {layer}: {r2:.3f}" for layer, r2 in training.r2_per_layer.items())
    texts = ", ".join(training.texts)
    seconds = "not recorded," if training.seconds is None else _duration(training.seconds)
    rows = [
        ["teacher", _teacher(training)],
        ["text", f"{training.sentences:,} sentences of at most {training.max_length} tokens: {texts}"],
        ["tokens", f"{training.tokens:,}, repetitions counted"],
        ["losses", ", ".join(training.losses)],
        ["layer mapping", str(settings.get("layer_mapping", "not recorded"))],
        ["texts in a step", str(settings.get("texts_per_step", "not recorded"))],
        ["learning rate", f"{settings['learning_rate']:g}" if "learning_rate" in settings else "not recorded"],
        ["seed", str(training.seed)],
        ["R² on held-out text", layers or "not measured"],
        ["wall-clock time", f"{seconds} on {training.device}, {training.processes} process(es)"],
    ]
    return markdown_table(["setting", "value"], rows)


def _provenance(training: TrainingEvidence, search: SearchEvidence | None) -> str:
    names = ", ".join(f"{name} {version}" for name, version in training.versions.items())
    lines = [f"- {training.date}, seed {training.seed}, on {training.device}.", f"- {names}."]
    if search is not None:
        stages = {
            "design": "latencies before the first episode",
            "latency": "latency",
            "mini_kd": "brief distillations",
            "confirmation": "confirmation with further seeds",
            "distillation": "the full distillation",
        }
        spent = ", ".join(f"{name} {_duration(search.seconds[k])}" for k, name in stages.items() if k in search.seconds)
        total = search.seconds.get("total")
        lines.append(f"- Time: {spent}{f'; {_duration(total)} in all' if total else ''}.")
    return "\n".join(lines)


def _limits(evidence: StudentEvidence, data: KDNASModelCardData) -> str:
    training = evidence.training
    lines = [
        "- It has learnt the teacher's hidden states on the text named above and nothing else: languages and domains "
        "that the text does not cover are carried by the inherited embeddings alone.",
        "- One seed was trained.",
    ]
    if evidence.compression is not None:
        lines.append(_compression(evidence.compression))
    if evidence.config.architectures and "For" not in evidence.config.architectures[0]:
        lines.append("- It is an encoder without a head: fine-tune it before it decides anything.")
    if len(evidence.latency) == 1:
        lines.append("- Latency was measured on one machine, in one setting.")
    if not evidence.evaluations and evidence.vectors is None:
        lines.append("- What it is worth on downstream tasks was not measured.")
    if data.license is None:
        lines.append(
            "- The licence of its teacher, under which it stands, is not recorded here; look it up before you use it."
        )
    if training is not None and training.teacher_id is None:
        lines.append("- Its teacher is not on the Hub.")
    return "\n".join(lines)


def _compression(made: CompressionEvidence) -> str:
    """What compression changed, in a point of a list."""
    how = []
    if made.vocab_size < made.vocab_size_before:
        how.append(
            f"of {made.vocab_size_before:,} tokens the {made.vocab_size:,} are left that {', '.join(made.texts)} needs "
            "(other text is split into smaller pieces, or unknown)"
        )
    if made.embedding_size < made.embedding_size_before:
        how.append(
            f"the word embeddings were factorised from {made.embedding_size_before} to {made.embedding_size} "
            f"({made.kept_variance:.1%} of their variance)"
        )
    if made.neighbours_kept:
        kept = ", ".join(f"{share:.1%} with {size}" for size, share in made.neighbours_kept.items())
        how.append(
            f"its sentence vectors were shortened from {made.dimension_before} to {made.dimension} dimensions in the "
            f"order of their share, so that they may be cut off further (of held-out sentences, {kept} dimensions have "
            "the nearest neighbour that they had)"
        )
    return (
        f"- It was compressed after its distillation, from {made.bytes_before / 1e6:.1f} to {made.bytes / 1e6:.1f} MB: "
        f"{'; '.join(how) or 'nothing could be left out'}. On {made.heldout_sentences:,} held-out sentences its "
        f"sentence vectors have a mean cosine of {made.cosine:.4f} to those before (lowest {made.lowest_cosine:.3f}, "
        f"R² {made.r2:.3f}); {made.unknown:.2%} of their tokens are unknown, {made.unknown_before:.2%} before. What "
        f"was measured before is not shown here. Made by `{' '.join(made.command)}`."
    )


def _teacher(training: TrainingEvidence | None) -> str:
    if training is None:
        return "a teacher that is not recorded"
    if training.teacher_id is None:
        return training.teacher
    revision = f" at revision {training.teacher_revision}" if training.teacher_revision else ""
    link = f"[{training.teacher_id}](https://huggingface.co/{training.teacher_id})"
    return link + revision + (f" ({training.teacher})" if training.teacher != training.teacher_id else "")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _pipeline_tag(config: PretrainedConfig) -> str:
    (architecture, *_) = config.architectures or [""]
    return next((tag for head, tag in PIPELINE_TAGS.items() if architecture.endswith(head)), "feature-extraction")


# ---- files ----


def _write_plots(evidence: StudentEvidence, folder: Path) -> None:
    plots = folder / EVIDENCE_FOLDER
    if evidence.training is not None and plots.is_dir():
        plot_curve(evidence.training.curve, plots / CURVE_PLOT)
    for number, results in enumerate(evidence.evaluations):
        plot_scores(results, plots / _scores_plot(number))


def _plot(folder: Path | None, name: str) -> str | None:
    return f"{EVIDENCE_FOLDER}/{name}" if folder is not None and (folder / EVIDENCE_FOLDER / name).is_file() else None


def is_edited(card: Path) -> bool:
    """Whether there is a card that is not, or is no longer, as `write_model_card` wrote it."""
    if not card.is_file():
        return False
    body, newline, last = card.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
    return last != SIGNATURE.format(_digest(body + newline))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_card(student: str | Path) -> ModelCard:
    """A student's card, its metadata read.

    Raises:
        FileNotFoundError: If it has none.
    """
    path = Path(student) / CARD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the student has no card; write_model_card writes one.")
    return ModelCard.load(path)
