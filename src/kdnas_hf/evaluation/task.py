"""What a downstream task is: its data, its columns, its labels and its metric. Presets are files in ``tasks/``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ..students.task_heads import TASK_HEADS, TOKEN_CLASSIFICATION
from .metrics import METRICS

EMBEDDED_DATA = ("intents",)


@dataclass(frozen=True)
class HubData:
    """Where a task's data are on the Hub.

    Attributes:
        dataset: The data set's name, or a local directory that is laid out like one.
        config: Its configuration for a language; ``{language}`` is replaced by what the data set calls the language.
        languages: What the data set calls each language, by its code; a list, where the names are the codes.
        train: Split to train on.
        validation: Split that decides when to stop.
        test: Split to test on.
    """

    dataset: str
    languages: dict[str, str]
    config: str | None = None
    train: str = "train"
    validation: str = "validation"
    test: str = "test"

    @classmethod
    def from_dict(cls, content: Any, where: str) -> HubData:
        """Where data are, from what a YAML file says.

        Raises:
            ValueError: If a key is missing or unknown, or a language code is no text.
        """
        values = checked_keys(content, cls, where)
        languages = values["languages"]
        if not isinstance(languages, Mapping):
            languages = {language: language for language in languages}
        # YAML 1.1 reads the code of Norwegian as a truth value
        wrong = [code for code in languages if not isinstance(code, str)]
        if wrong:
            raise ValueError(f"{where}.languages holds {wrong[0]!r}; write language codes in quotes.")
        return cls(**(values | {"languages": dict(languages)}))

    def config_of(self, language: str) -> str | None:
        """The configuration of one of the languages; None where the data set has none."""
        return None if self.config is None else self.config.format(language=self.languages[language])


@dataclass(frozen=True)
class LocalData:
    """What a task's local files are called: ``<name>-<language>-<split>.jsonl``, compressed or not.

    Attributes:
        train: Names of the files to train on; the first that exists is taken.
        test: Names of the files to test on; for each language the first that exists is taken.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A downstream task: trained in one language, tested in many.

    Attributes:
        name: What results call it.
        kind: ``sequence_classification`` (a label for a text or a pair of texts) or ``token_classification`` (a label
            for each word).
        metric: Name of one of `METRICS`.
        text: Column of the text, or of the list of words.
        label: Column of the label, or of the list of labels.
        text_pair: Column of the second text, where there is one.
        labels: The labels in the order of their numbers; None: those that occur in the training data, sorted.
        train_language: The language to train in.
        hub: Its data on the Hub.
        local: Its data in local files.
        embedded: Name of its data in the extra ``demo``, which is then used where no ``data_dir`` is given.

    Raises:
        ValueError: If a value is impossible.
    """

    name: str
    kind: str
    metric: str
    text: str
    label: str
    text_pair: str | None = None
    labels: tuple[str, ...] | None = None
    train_language: str = "en"
    hub: HubData | None = None
    local: LocalData | None = None
    embedded: str | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r} of a task must be a word: it names its results.")
        if self.kind not in TASK_HEADS:
            raise ValueError(f"task {self.name}: kind={self.kind!r} is unknown; choose from {', '.join(TASK_HEADS)}.")
        able = [name for name, metric in METRICS.items() if metric.kind == self.kind]
        if self.metric not in able:
            raise ValueError(
                f"task {self.name}: metric={self.metric!r} is none for {self.kind}; choose from {', '.join(able)}."
            )
        if self.kind == TOKEN_CLASSIFICATION and self.text_pair is not None:
            raise ValueError(f"task {self.name}: text_pair={self.text_pair!r} goes with sequence_classification alone.")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"task {self.name}: labels={list(self.labels)} name one twice.")
        if self.labels is not None and len(self.labels) < 2:
            raise ValueError(f"task {self.name}: labels={list(self.labels)} must be at least two.")
        if self.embedded is not None and self.embedded not in EMBEDDED_DATA:
            raise ValueError(
                f"task {self.name}: embedded={self.embedded!r} is unknown; choose from {', '.join(EMBEDDED_DATA)}."
            )
        if self.hub is None and self.local is None and self.embedded is None:
            raise ValueError(f"task {self.name}: say where its data are: hub, local or embedded.")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that its data must have."""
        return tuple(name for name in (self.text, self.text_pair, self.label) if name is not None)

    @classmethod
    def load(cls, name_or_path: str) -> Task:
        """A preset by its name, or a task of your own from a YAML file.

        Raises:
            ValueError: If there is no such preset or file, or the file does not describe a task.
        """
        return cls.from_dict(read_task(name_or_path, preset_files(__package__)), name_or_path)

    @classmethod
    def from_dict(cls, content: Any, where: str = "the task") -> Task:
        """A task from what its YAML file says.

        Raises:
            ValueError: If a key is missing or unknown, or a value impossible.
        """
        values = checked_keys(content, cls, where)
        if values.get("labels") is not None:
            values["labels"] = tuple(str(label) for label in values["labels"])
        if values.get("local") is not None:
            local = checked_keys(values["local"], LocalData, f"{where}: local")
            values["local"] = LocalData(**{key: _names(value) for key, value in local.items()})
        if values.get("hub") is not None:
            values["hub"] = HubData.from_dict(values["hub"], f"{where}: hub")
        return cls(**values)


@dataclass(frozen=True)
class Example:
    """One labelled example.

    Attributes:
        text: A text, or the words of one.
        label: The number of its label, or of each word's.
        text_pair: The second text, where there is one.
    """

    text: str | list[str]
    label: int | list[int]
    text_pair: str | None = None


@dataclass
class LanguageData:
    """Examples of one language with where they came from.

    Attributes:
        examples: The examples.
        source: File or data set and split.
        omitted: How many rows were left out, by the reason.
    """

    examples: list[Example]
    source: str
    omitted: dict[str, int] = field(default_factory=dict)


def task_presets() -> list[str]:
    """Names of the tasks that come with the package and are fine-tuned on."""
    return sorted(preset_files(__package__))


def preset_files(package: str) -> dict[str, Traversable]:
    """The YAML files in a package's folder ``tasks``, by the name of their task."""
    entries = files(package).joinpath("tasks").iterdir()
    return {entry.name.removesuffix(".yaml"): entry for entry in entries if entry.name.endswith(".yaml")}


def read_task(name_or_path: str, presets: Mapping[str, Traversable]) -> Any:
    """What the YAML file of a preset says, or a YAML file of one's own.

    Raises:
        ValueError: If there is no such preset or file, or the file is no YAML.
    """
    if name_or_path in presets:
        return yaml.safe_load(presets[name_or_path].read_text(encoding="utf-8"))
    if not name_or_path.endswith((".yaml", ".yml")):
        nearest = difflib.get_close_matches(name_or_path, presets, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(sorted(presets))}"
        raise ValueError(f"tasks: {name_or_path!r} is unknown; {hint} (or give a YAML file of your own).")
    try:
        return yaml.safe_load(Path(name_or_path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"tasks: {name_or_path!r} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"tasks: {name_or_path!r} is not valid YAML: {error}") from error


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def checked_keys(content: Any, kind: type, where: str) -> dict[str, Any]:
    """What a mapping holds for a dataclass, if it has all that it must have and no more.

    Raises:
        ValueError: If a key is missing or unknown.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must map keys to values, as 'name: mine'.")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in content:
        if key not in fields:
            nearest = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(fields)}."
            raise ValueError(f"{where} has the key {key!r}, which is unknown; {hint}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in content:
            raise ValueError(f"{where} lacks the key {name!r}.")
    return dict(content)
