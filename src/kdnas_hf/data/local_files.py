"""Reads sentences from local files: text, JSON lines, JSON, CSV, TSV and Parquet, compressed or not."""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

LANGUAGE_COLUMN = "language"

_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
# A file name such as zh-Hant.txt.xz says its language; train.txt and corpus.txt do not.
_MAX_PRIMARY_SUBTAG = 3


class ColumnError(ValueError):
    """The text column is missing, or does not hold text."""


@dataclass(frozen=True)
class LocalFile:
    """A file of sentences, with its format (`"text"`, `"jsonl"`, `"json"`, `"csv"` or `"parquet"`)."""

    path: Path
    format: str

    @property
    def language(self) -> str | None:
        """The language of a plain text file that is named after one, such as `de.txt` or `zh-Hant.txt.xz`."""
        stem = self.path.name.partition(".")[0]
        return stem if self.format == "text" and _is_language_code(stem) else None

    def check(self, text_column: str) -> None:
        """Looks at the file's first record.

        Raises:
            ColumnError: It has no such column, or that holds no text.
            ValueError: The file is not of the format that its name says.
        """
        if self.format != "json":  # which would have to be read whole
            for _ in self.sentences(text_column):
                break

    def sentences(self, text_column: str) -> Iterator[tuple[str, str | None]]:
        """Yields every text in the file, as it stands, and its language where that is known.

        Args:
            text_column: Where the text is, in all formats but plain text. The language is taken from the column
                `language`, if there is one.

        Raises:
            ColumnError: There is no such column, or it holds something other than text.
            ValueError: The file is not of the format that its name says.
        """
        with self._readable():
            if self.format == "text":
                with _opened(self.path) as stream:
                    for line in stream:
                        yield line, self.language
            else:
                for number, record in enumerate(self._records([text_column]), start=1):
                    yield text_of_record(record, text_column, f"{self.path}, record {number}"), language_of(record)

    def records(self, columns: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        """Yields every record of a file of any format but plain text.

        Args:
            columns: What each record must have; there may be more.

        Raises:
            ColumnError: A record lacks a column.
            ValueError: The file is not of the format that its name says, or is plain text.
        """
        columns = list(columns)
        if self.format == "text":
            raise ValueError(f"{self.path} is plain text and has no columns; it needs {', '.join(columns)}.")
        with self._readable():
            for number, record in enumerate(self._records(columns), start=1):
                for column in columns:
                    if column not in record:
                        raise ColumnError(
                            f"{self.path}, record {number} has no column {column!r}; its columns are {sorted(record)}."
                        )
                yield record

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Says which file it was that could not be read."""
        try:
            yield
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, EOFError, OSError, lzma.LZMAError) as error:
            if isinstance(error, FileNotFoundError | PermissionError):
                raise
            raise ValueError(f"{self.path} cannot be read as {self.format}: {error}.") from error

    def _records(self, columns: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        if self.format == "parquet":
            with pq.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                for column in columns:
                    check_column(column, names, str(self.path))
                read = [name for name in (*columns, LANGUAGE_COLUMN) if name in names]
                for batch in file.iter_batches(batch_size=10_000, columns=read):
                    yield from batch.to_pylist()
            return
        with _opened(self.path) as stream:
            if self.format == "jsonl":
                for line in stream:
                    if line.strip():
                        yield _as_record(json.loads(line), self.path)
            elif self.format == "json":
                content = json.load(stream)
                if isinstance(content, dict) and isinstance(content.get("data"), list):
                    content = content["data"]
                if not isinstance(content, list):
                    raise ValueError(f'{self.path} must hold a list of records, or {{"data": [...]}}.')
                for record in content:
                    yield _as_record(record, self.path)
            else:
                delimiter = "\t" if ".tsv" in self.path.suffixes else ","
                yield from csv.DictReader(stream, delimiter=delimiter)


def find_local_files(pattern: str) -> list[LocalFile] | None:
    """Finds the files that a path or glob means.

    Args:
        pattern: A path or glob (`**` for any depth), or something else.

    Returns:
        The files, sorted by path; `None` if `pattern` does not look like a path to files, but like the name of a
        dataset (or is an existing directory, which `datasets` can load).

    Raises:
        FileNotFoundError: It looks like files, but there are none.
        ValueError: A file's format cannot be told from its name, or its compression cannot be read here.
    """
    expanded = str(Path(pattern).expanduser())
    paths = sorted(Path(path) for path in glob.glob(expanded, recursive=True))
    files = [path for path in paths if path.is_file()]
    if not files:
        if any(path.is_dir() for path in paths) or not _looks_like_files(pattern):
            return None
        raise FileNotFoundError(f"dataset={pattern!r} matches no file (looked in {Path.cwd()}).")
    return [LocalFile(path, _format_of(path)) for path in files]


def check_column(text_column: str, columns: Iterable[str], where: str) -> None:
    """Raises a `ColumnError` that names the existing columns if the text column is not among them."""
    columns = list(columns)
    if text_column not in columns:
        raise ColumnError(f"{where} has no column text_column={text_column!r}; its columns are {sorted(columns)}.")


def text_of_record(record: Mapping[str, Any], text_column: str, where: str) -> str:
    """Returns a record's text, empty if it is null.

    Raises:
        ColumnError: The record has no such column, or it holds something other than text.
    """
    check_column(text_column, (name for name in record if name is not None), where)
    text = record[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ColumnError(f"{where}: text_column={text_column!r} holds {type(text).__name__} and not text: {text!r}.")
    return text


def language_of(record: Mapping[str, Any]) -> str | None:
    """Returns a record's language, where it states one."""
    language = record.get(LANGUAGE_COLUMN)
    return language if isinstance(language, str) and language else None


def _looks_like_files(pattern: str) -> bool:
    has_wildcard = any(character in pattern for character in "*?[")
    return has_wildcard or pattern.startswith((".", "/", "~")) or _suffix(Path(pattern)) in _FORMATS


def _suffix(path: Path) -> str:
    """Returns the suffix that tells the format, beneath a suffix that tells the compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _format_of(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in _FORMATS:
        raise ValueError(
            f"{path} has a format that is not known; name it {', '.join(_FORMATS)}, with {', '.join(_COMPRESSIONS)} "
            "behind if it is compressed."
        )
    compression = path.suffix.lower()
    if _FORMATS[suffix] == "parquet" and compression in _COMPRESSIONS:
        raise ValueError(f"{path} must be unpacked: Parquet files are compressed inside.")
    if compression == ".zst":
        _import_zstd()
    return _FORMATS[suffix]


def _is_language_code(stem: str) -> bool:
    primary, *others = stem.replace("_", "-").split("-")
    return (
        primary.isascii()
        and primary.isalpha()
        and primary.islower()
        and 2 <= len(primary) <= _MAX_PRIMARY_SUBTAG
        and all(subtag.isascii() and subtag.isalnum() and 2 <= len(subtag) <= 8 for subtag in others)
    )


def _as_record(record: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold records with named fields, not {type(record).__name__}.")
    return record


def _import_zstd() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError("Files with .zst need the package zstandard: pip install zstandard") from error
    return zstandard


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """Opens a text file in UTF-8 (a byte order mark is skipped), through its compression."""
    suffix = path.suffix.lower()
    binary: Any
    if suffix == ".zst":
        binary = _import_zstd().open(path, "rb")
    else:
        openers: dict[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        binary = openers.get(suffix, open)(path, "rb")
    with binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as stream:
        yield stream
