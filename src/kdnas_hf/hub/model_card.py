"""The card of a distilled student: only what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..search import DistilledStudent, SearchResult
from ..version import __version__

EMBEDDED_TEACHER_ID = "intfloat/multilingual-e5-small"
TEMPLATE = Path(__file__).parent / "card_template.md"


class KDNASModelCardData(ModelCardData):
    """Metadata of a student's card.

    Args:
        base_model: Hub id of the teacher, if it has one.
        license: That of the teacher.
        language: Languages of the text.
        **kwargs: What else `ModelCardData` takes.
    """

    def __init__(
        self,
        base_model: str | None = None,
        license: str | None = None,
        language: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            base_model=base_model,
            license=license,
            language=language,
            library_name="transformers",
            pipeline_tag="feature-extraction",
            tags=["kdnas", "knowledge-distillation", "neural-architecture-search", "multilingual", "arxiv:2303.09639"],
            **kwargs,
        )

    @classmethod
    def of(cls, teacher: str, languages: Iterable[str] = ()) -> KDNASModelCardData:
        """Metadata that follow from the teacher, as it was asked for, and the languages of the text.

        A teacher that is a local directory has no place on the Hub and is not named; what is unknown is left out.
        """
        # primary subtags: the Hub lists languages by these
        codes = sorted({language.split("-")[0].lower() for language in languages if language})
        if teacher == "embedded":
            return cls(base_model=EMBEDDED_TEACHER_ID, license="mit", language=codes or None)
        return cls(base_model=None if Path(teacher).exists() else teacher, language=codes or None)


def write_model_card(
    result: SearchResult,
    student: DistilledStudent,
    card_data: KDNASModelCardData,
    teacher: str,
    sources: Iterable[str],
    command: Sequence[str],
) -> Path:
    """Write ``README.md`` into a student's directory. Local paths are cut to their last part.

    Args:
        result: The search that found it.
        student: The student.
        card_data: Metadata.
        teacher: What the teacher is called.
        sources: Where the training text came from.
        command: The command that made it.

    Returns:
        The path of the card.
    """
    architecture = student.architecture
    name = f"KDNAS {architecture.num_hidden_layers}x{architecture.hidden_size}"
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        model_name=name,
        architecture=architecture,
        student=student,
        teacher=_public(teacher),
        text=", ".join("the embedded sentences of kdnas_hf" if s == "embedded" else _public(s) for s in sources),
        command=shlex.join(_public(part) for part in command),
        version=__version__,
        latency_method=result.latency_method,
        searched=len(result.records),
        repo=f"<owner>/{name.lower().replace(' ', '-')}",
    )
    path = result.folder / student.path / "README.md"
    card.save(path)
    return path


def _public(text: str) -> str:
    """An absolute path without its folders: they say more about a machine and its user than a card should."""
    return Path(text).name if Path(text).is_absolute() else text
