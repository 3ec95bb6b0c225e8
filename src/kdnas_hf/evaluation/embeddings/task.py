"""What an embedding task is: its kind, and where its data are. Presets are files in ``tasks/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...utils.choices import check_choice
from ..task import HubData, Task, checked_keys, preset_files, read_task
from .kinds import KINDS, Kind

EMBEDDED_BITEXT = "intent_translations"


@dataclass(frozen=True)
class EmbeddingTask:
    """A task that vectors are scored by as they are, without training.

    Attributes:
        name: What results call it.
        kind: Name of one of `KINDS`, which says what columns its data have and what is measured.
        local: What its local files are called: ``<local>-<language>-<split>.jsonl``, and for a kind with a corpus
            ``<local>-<language>-<split>-corpus.jsonl`` and ``…-queries.jsonl``, compressed or not.
        hub: Its data on the Hub. A retrieval has a row for each query, with the text of its passage in the column
            ``text``; the corpus is made of the distinct ones.
        hub_columns: What the data set on the Hub calls a column, where it has another name there.
        embedded: Name of its data in the extra ``demo``, which is then used where no ``data_dir`` is given.

    Raises:
        ValueError: If a value is impossible.
    """

    name: str
    kind: str
    local: str | None = None
    hub: HubData | None = None
    hub_columns: dict[str, str] = field(default_factory=dict)
    embedded: str | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r} of a task must be a word: it names its results.")
        check_choice(f"task {self.name}: kind", self.kind, KINDS)
        if self.embedded is not None:
            check_choice(f"task {self.name}: embedded", self.embedded, [EMBEDDED_BITEXT])
            check_choice(f"task {self.name}: kind (of {EMBEDDED_BITEXT})", self.kind, ["bitext"])
        if self.hub is None and self.local is None and self.embedded is None:
            raise ValueError(f"task {self.name}: say where its data are: hub, local or embedded.")

    @property
    def measured(self) -> Kind:
        """The kind itself."""
        return KINDS[self.kind]

    @classmethod
    def load(cls, name_or_path: str) -> EmbeddingTask:
        """A preset by its name, or a task of your own from a YAML file.

        Raises:
            ValueError: If there is no such preset or file, or the file does not describe a task.
        """
        return cls.from_dict(read_task(name_or_path, preset_files(__package__)), name_or_path)

    @classmethod
    def from_dict(cls, content: Any, where: str = "the task") -> EmbeddingTask:
        """A task from what its YAML file says.

        Raises:
            ValueError: If a key is missing or unknown, or a value impossible.
        """
        values = checked_keys(content, cls, where)
        if values.get("hub") is not None:
            values["hub"] = HubData.from_dict(values["hub"], f"{where}: hub")
        return cls(**values)


def embedding_task_presets() -> list[str]:
    """Names of the embedding tasks that come with the package."""
    return sorted(preset_files(__package__))


def load_tasks(names_or_paths: Sequence[str]) -> list[Task | EmbeddingTask]:
    """Tasks of both families: those that models are fine-tuned on, and those that vectors are scored by.

    Raises:
        ValueError: If there is no such preset or file, or a file does not describe a task, or a name is there twice.
    """
    presets = {**preset_files(Task.__module__.rpartition(".")[0]), **preset_files(__package__)}
    tasks: list[Task | EmbeddingTask] = []
    for name in names_or_paths:
        content = read_task(name, presets)
        kind = content.get("kind") if isinstance(content, Mapping) else None
        family = EmbeddingTask if kind in KINDS else Task
        tasks.append(family.from_dict(content, name))
    found = [task.name for task in tasks]
    if len(set(found)) < len(found):
        raise ValueError(f"tasks={list(names_or_paths)} name one twice.")
    return tasks
