"""Arguments of a publication, and of the compression that may come before it."""

# No `from __future__ import annotations` here: HfArgumentParser needs annotations that are types, not strings.

from dataclasses import dataclass, field

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..export.budgets import Budget, parse_budgets
from ..search.report import BUDGETS


@dataclass
class PublishArguments:
    """What is published, and where.

    Raises:
        ValueError: A field has an impossible value.
    """

    student: str = field(
        default="runs/quickstart/student",
        metadata={"help": "Directory of the student; with all_budgets that of the search, which holds the students."},
    )
    repo_id: str | None = field(
        default=None,
        metadata={
            "help": "Repository, as <owner>/<name>. Without it nothing is sent: what would be is left in output_dir. "
            "With all_budgets the repositories are called after it and the budget."
        },
    )
    native: bool = field(
        default=False,
        metadata={
            "help": "Insist on a stock XLM-RoBERTa checkpoint, which needs no code of ours. A student whose shape "
            "allows it becomes one anyway."
        },
    )
    custom_code: bool = field(
        default=False, metadata={"help": "Keep the student's own code also where its shape needs none."}
    )
    private: bool = field(
        default=True, metadata={"help": "Whether a new repository is private; false makes one public."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch to commit to, made if it is missing; by default main."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence to state, by default the teacher's; the Hub's name of one, as mit."}
    )
    without_scores: bool = field(
        default=False, metadata={"help": "Publish a student that no downstream task was scored on; its card says so."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace what the repository holds also if it is no student of kdnas_hf."}
    )
    all_budgets: bool = field(
        default=False, metadata={"help": "Publish a search's students, one for each latency budget, as a collection."}
    )
    speedup_budgets: list[float] | None = field(
        default=None,
        metadata={
            "help": "Latency budgets of all_budgets: how many times faster than the teacher; by default 2 4 7 10, "
            "where latency_budgets are not given either."
        },
    )
    latency_budgets: list[str] | None = field(
        default=None, metadata={"help": "The same as latencies on the machine of the search, like 5ms 10ms."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Show what would be sent, and send nothing."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "Also leave what is, or would be, sent in this new or empty directory; without repo_id by default "
            "beside the student, as <student>-published."
        },
    )
    commit_message: str = field(default="Publish a student", metadata={"help": "Message of the commit."})

    def __post_init__(self) -> None:
        if self.repo_id is not None:
            try:
                validate_repo_id(self.repo_id)
            except HFValidationError as error:
                raise ValueError(f"repo_id={self.repo_id!r} names no repository: {error}") from error
            if "/" not in self.repo_id:
                raise ValueError(f"repo_id={self.repo_id!r} must be <owner>/<name>.")
        if self.native and self.custom_code:
            raise ValueError("native and custom_code exclude each other; give one of them.")
        _ = self.budgets  # checked before anything slow starts
        if not self.commit_message.strip():
            raise ValueError("commit_message must not be empty.")

    @property
    def budgets(self) -> list[Budget]:
        """The budgets of all_budgets, the widest first."""
        return parse_budgets(self.speedup_budgets, self.latency_budgets) or list(BUDGETS)


@dataclass
class CompressionArguments:
    """How the embedding table or the sentence vectors of a trained student are made smaller.

    Raises:
        ValueError: A field has an impossible value.
    """

    student: str = field(default="runs/quickstart/student", metadata={"help": "Directory of the student."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "New or empty directory of the smaller student; by default beside the other, as "
            "<student>-compressed."
        },
    )
    trim_to: list[str] | None = field(
        default=None,
        metadata={
            "help": "Keep only the tokens that this text uses: embedded, datasets of the Hub, paths or globs of files; "
            "it takes the place of dataset."
        },
    )
    keep_tokens: list[str] = field(
        default_factory=list, metadata={"help": "Tokens that stay although the text of trim_to lacks them."}
    )
    embedding_size: int | None = field(
        default=None,
        metadata={"help": "Factorise the word embeddings to this size, weighted by how often the text has each token."},
    )
    embedding_dimension: int | None = field(
        default=None,
        metadata={
            "help": "Sentence vectors of so many dimensions: the directions in which they vary most on the text, in "
            "that order, so that vectors can be cut off further. An index has to be made anew."
        },
    )
    seed: int = field(default=0, metadata={"help": "Decides which sentences are held out to measure the result."})

    def __post_init__(self) -> None:
        if isinstance(self.trim_to, str):
            self.trim_to = [self.trim_to]
        if self.trim_to is None and self.embedding_size is None and self.embedding_dimension is None:
            raise ValueError("nothing to do: give trim_to, embedding_size, embedding_dimension, or several of them.")
        if self.trim_to is not None and not self.trim_to:
            raise ValueError("trim_to is empty; name the text whose tokens stay.")
        if self.keep_tokens and self.trim_to is None:
            raise ValueError(f"keep_tokens={self.keep_tokens} needs trim_to.")
        if self.embedding_size is not None and self.embedding_size < 1:
            raise ValueError(f"embedding_size={self.embedding_size} must be at least 1.")
        if self.embedding_dimension is not None and self.embedding_dimension < 1:
            raise ValueError(f"embedding_dimension={self.embedding_dimension} must be at least 1.")
