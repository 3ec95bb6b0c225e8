"""Gathers what of a student is published, and checks it: whole, valid, and nothing private."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig
from transformers.utils import logging

from ..evaluation import ModelSource
from ..export import read_exports
from ..export.backends import ONNX_FOLDER, OPENVINO_FOLDER
from ..students import KDNASConfig, copy_tokenizer, why_not_native, write_native_checkpoint
from ..utils.sentence_head import copy_sentence_head
from ..utils.tokenizers import load_tokenizer
from .evidence import EVIDENCE_FOLDER, StudentEvidence
from .model_card import CARD_FILE, Sibling, is_edited, list_artefacts, load_card, write_model_card
from .public_text import find_private

logger = logging.get_logger(__name__)

ARTEFACT_FOLDERS = (ONNX_FOLDER, OPENVINO_FOLDER)
CODE_FILES = ("configuration_kdnas.py", "modeling_kdnas.py")
TEXT_SUFFIXES = (".md", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".py", ".txt", ".xml")
# texts of this size are vocabularies
MAX_CHECKED_BYTES = 4_000_000
PRIVATE_KEYS = {
    "config.json": ("_name_or_path",),
    "tokenizer_config.json": ("name_or_path", "_name_or_path", "is_local", "local_files_only"),
}


class PublicationError(ValueError):
    """A student cannot be published as it is; the message says what to do."""


@dataclass(frozen=True)
class StagedStudent:
    """A student's directory as it is published.

    Attributes:
        folder: Where it lies.
        native: Whether it is a stock checkpoint, which needs no code of ours.
        why_custom: Why it is none, in a sentence; empty if it is.
        evidence: What is known of the student.
    """

    folder: Path
    native: bool
    why_custom: str
    evidence: StudentEvidence

    @property
    def files(self) -> dict[str, int]:
        """Sizes in bytes by path in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    @property
    def card(self) -> str:
        """The text of the card."""
        return (self.folder / CARD_FILE).read_text(encoding="utf-8")

    def describe(self) -> str:
        """What would be sent, a line for each file."""
        kind = "stock XLM-RoBERTa checkpoint, needs no code" if self.native else f"custom code ({self.why_custom})"
        lines = [f"{_size(size)}  {name}" for name, size in self.files.items()]
        return "\n".join([kind, *lines, f"{_size(sum(self.files.values()))}  in all"])


def stage_student(
    student: str | Path,
    folder: str | Path,
    repo_id: str | None = None,
    native: bool | None = None,
    license: str | None = None,
    without_scores: bool = False,
    siblings: Sequence[Sibling] = (),
) -> StagedStudent:
    """Gather what of a student is published in an empty directory.

    Args:
        student: The student's directory.
        folder: The new directory.
        repo_id: Where it will be published, for the card.
        native: Whether it becomes a stock checkpoint; by default if its shape allows it.
        license: In place of the teacher's.
        without_scores: Whether it may lack scores on downstream tasks.
        siblings: Students of the same search for other budgets.

    Raises:
        FileNotFoundError: If there is no student.
        PublicationError: If it is not whole, or something private would be published.
    """
    source, target = Path(student), Path(folder)
    check_student(source, without_scores)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise PublicationError(f"output_dir={str(folder)!r} is not empty; choose another.")
    why_custom = why_custom_code(source)
    if native and why_custom:
        raise PublicationError(f"native: the student cannot be a stock checkpoint: {why_custom} Leave native out.")
    made_native = not why_custom if native is None else native
    if made_native:
        write_native_checkpoint(source, target)
    else:
        _copy_checkpoint(source, target)
        why_custom = why_custom or "custom_code is on."
    copy_sentence_head(source, target)
    _copy_artefacts(source, target)
    if (source / EVIDENCE_FOLDER).is_dir():
        shutil.copytree(source / EVIDENCE_FOLDER, target / EVIDENCE_FOLDER, ignore=shutil.ignore_patterns("*.tmp"))
    _strip_names(target)
    if is_edited(source / CARD_FILE):
        shutil.copyfile(source / CARD_FILE, target / CARD_FILE)  # somebody's words are not replaced
    write_model_card(target, repo_id, license, made_native, siblings)
    _check_card(target)
    check_nothing_private(target)
    return StagedStudent(target, made_native, "" if made_native else why_custom, StudentEvidence.load(target))


def check_student(student: str | Path, without_scores: bool = False) -> StudentEvidence:
    """Check that a student is whole before anything is written or sent.

    Raises:
        FileNotFoundError: If there is no student.
        PublicationError: If weights, tokenizer or scores are missing.
    """
    folder = Path(student)
    if not folder.is_dir():
        raise FileNotFoundError(f"student={str(student)!r} is no directory.")
    evidence = StudentEvidence.load(folder)
    _check_artefacts(folder)
    if not any(folder.glob("*.safetensors")):
        raise PublicationError(f"{folder} holds no weights (*.safetensors); distil or download the student again.")
    if not (folder / "tokenizer_config.json").is_file():
        raise PublicationError(
            f"{folder} holds no tokenizer; save the teacher's there: "
            f"AutoTokenizer.from_pretrained(<teacher>).save_pretrained({str(folder)!r})."
        )
    try:
        load_tokenizer(folder, field="student", require_fast=False)
    except ValueError as error:
        raise PublicationError(str(error)) from error
    if not evidence.evaluations and evidence.vectors is None and not without_scores:
        raise PublicationError(
            f"{folder} was not scored on any downstream task: run python recipes/evaluate.py --student {folder}, or "
            "publish it with --without_scores true; its card will say so."
        )
    return evidence


def why_custom_code(student: str | Path) -> str:
    """Why a student cannot be a stock checkpoint, in a sentence; empty if it can."""
    config = AutoConfig.from_pretrained(student)
    return (why_not_native(config) or "") if isinstance(config, KDNASConfig) else ""


def check_nothing_private(folder: str | Path) -> None:
    """Refuse a directory whose texts hold access tokens, or paths of this machine.

    Raises:
        PublicationError: The message names files and what was found.
    """
    found = []
    for path in sorted(Path(folder).rglob("*")):
        if not path.is_file() or path.suffix not in TEXT_SUFFIXES or path.stat().st_size > MAX_CHECKED_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(folder).as_posix()}: {what}" for what in find_private(text)]
    if found:
        shown = "\n  ".join(found[:10])
        raise PublicationError(f"something private would be published:\n  {shown}\nRemove it, and publish again.")


def _size(count: int) -> str:
    return f"{count / 1e6:8.1f} MB" if count >= 1e6 else f"{count / 1e3:8.1f} kB"


def _copy_checkpoint(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        wanted = path.suffix in (".safetensors", ".json", ".model") or path.name in (
            *CODE_FILES,
            "vocab.txt",
            "merges.txt",
        )
        training = path.name in (
            "distillation.json",
            "teacher_statistics.safetensors",
            "targets.json",
            "trainer_state.json",
            "heldout.json",
        )
        if path.is_file() and wanted and not training:
            _link(path, target / path.name)
    config = AutoConfig.from_pretrained(source)
    copy_tokenizer(source, target, getattr(config, "max_tokens", config.max_position_embeddings))
    if isinstance(config, KDNASConfig):  # the code of this version: it reads what it wrote
        import kdnas_hf.students as students

        code = Path(students.__file__).parent
        for name in CODE_FILES:
            (target / name).unlink(missing_ok=True)
            shutil.copyfile(code / name, target / name)


def _copy_artefacts(source: Path, target: Path) -> None:
    for name in ARTEFACT_FOLDERS:
        for path in sorted((source / name).rglob("*")) if (source / name).is_dir() else []:
            if path.is_file():
                relative = path.relative_to(source)
                (target / relative).parent.mkdir(parents=True, exist_ok=True)
                _link(path, target / relative)


def _check_artefacts(student: Path) -> None:
    """Refuse artefacts of weights that were since trained on.

    Raises:
        PublicationError: The message names the artefact.
    """
    there = list_artefacts(student)
    records = [record for record in read_exports(student) if record.file in there]
    if not records:
        return
    weights = ModelSource(str(student)).fingerprint()
    for record in records:
        if record.weights != weights:
            raise PublicationError(
                f"{record.file} was exported from other weights than the checkpoint's; export it again "
                "(recipes/export.py), or remove it."
            )


def _link(source: Path, target: Path) -> None:
    """Files that will be changed are copied; weights are linked, which takes no space."""
    if source.suffix not in (".safetensors", ".onnx", ".bin", ".data"):
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _strip_names(folder: Path) -> None:
    """Configurations remember where they were loaded from."""
    for name, keys in PRIVATE_KEYS.items():
        path = folder / name
        if not path.is_file():
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        if any(key in values for key in keys):
            kept = {key: value for key, value in values.items() if key not in keys}
            path.unlink()
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_card(folder: Path) -> None:
    try:
        data = load_card(folder).data
    except Exception as error:
        raise PublicationError(f"the metadata of {folder / CARD_FILE} cannot be read: {error}") from error
    if not data.to_dict():
        raise PublicationError(f"{folder / CARD_FILE} has no metadata; remove it, and it is written anew.")
