"""Results of another search of the same teacher, texts and training, which a new one begins with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError
from transformers.utils import logging

from ..utils.run_directory import CONFIGURATION_FILE, configuration_differences
from .ledger import ArchitectureRecord, Ledger
from .space import SearchSpace
from .storage import JOURNAL, open_storage, public_storage
from .study import CONFIGURATION, LEDGER_FILE, STUDY_FILE, STUDY_NAME, read_records

logger = logging.get_logger(__name__)

# what an architecture's own result does not depend on: who chose it, among which, and what was done with the best
SEARCH_MAY_DIFFER = (
    "space",
    "controller",
    "num_episodes",
    "candidates_per_episode",
    "epsilon_start",
    "epsilon_decay",
    "reward",  # the preset's name: its values are compared
    "halving_rungs",
    "halving_keep",
    "pool_size",
    "speedup",
    "latency_budget",
    "top_k",
    "speedup_budgets",
    "latency_budgets",
    "latency_repeats",
)
TRAINING_MAY_DIFFER = ("seed", "data_seed", "num_train_epochs", "max_steps")


def read_warm_start(source: str, space: SearchSpace, configuration: Mapping[str, Any]) -> list[ArchitectureRecord]:
    """Results of another search that count for this one: of members of the space, each once.

    Args:
        source: Its run directory, ``study.db`` or storage; the latter with ``#study_name`` if that is another.
        space: The search space.
        configuration: That of this search.

    Raises:
        ValueError: If there is no search, or its teacher, texts, training or reward are others.
    """
    shown = public_storage(source)
    try:
        before, records = _read(source)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ValueError(f"warm_start={shown!r} cannot be read ({type(error).__name__}).") from None
    if before is None:
        raise ValueError(f"warm_start={shown!r} has no configuration beside it; name its run directory.")
    differences = configuration_differences(_compared(before), _compared(configuration))
    if differences:
        lines = "\n  ".join(differences)
        raise ValueError(
            f"warm_start={shown!r} is a search whose results do not fit this one:\n  {lines}\n"
            "Give the same values, or leave warm_start out."
        )
    found = {record.architecture: record for record in reversed(records) if record.architecture in space}
    logger.info(f"{len(found)} of {len(records)} measured architectures of {shown} are in the space and taken over")
    return sorted(found.values(), key=lambda record: record.number)


def _compared(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What an architecture's result depends on."""

    def without(section: str, names: tuple[str, ...]) -> dict[str, Any]:
        return {key: value for key, value in configuration.get(section, {}).items() if key not in names}

    return {
        "teacher": configuration.get("teacher"),
        "teacher_revision": configuration.get("teacher_revision"),
        "texts": configuration.get("texts"),
        "search": without("search", SEARCH_MAY_DIFFER),
        "training": without("training", TRAINING_MAY_DIFFER),
    }


def _read(source: str) -> tuple[Mapping[str, Any] | None, list[ArchitectureRecord]]:
    """The configuration of a search, if it is known, and its results."""
    address, hash_sign, name = source.rpartition("#")
    if not hash_sign:
        address, name = source, STUDY_NAME
    if "://" in address or address.startswith(JOURNAL):
        study = _load(address, name)
        return study.user_attrs.get(CONFIGURATION), read_records(study)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    database = path / STUDY_FILE if path.is_dir() else path
    beside = folder / CONFIGURATION_FILE
    configuration = yaml.safe_load(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    if database.is_file():
        study = _load(f"sqlite:///{database.resolve()}", STUDY_NAME)
        return configuration or study.user_attrs.get(CONFIGURATION), read_records(study)
    if path.is_dir() and (folder / LEDGER_FILE).is_file():  # a worker's: its study is in a storage
        return configuration, Ledger(folder / LEDGER_FILE).read()
    raise ValueError(f"warm_start={source!r}: there is no {STUDY_FILE}; name a run directory, a study.db or a storage.")


def _load(address: str, name: str) -> optuna.Study:
    storage = open_storage(address)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = ", ".join(study.study_name for study in storage.get_all_studies()) or "none"
        raise ValueError(
            f"warm_start={public_storage(address)!r} has no study {name!r}, but {names}; append #study_name to it."
        ) from None
