"""The full distillation: the chosen architectures on the whole corpus, saved as students."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..distillation import DistillationTrainer, HiddenStateStatistics, distill
from ..distillation.stored_targets import CACHE_FOLDER
from ..utils.atomic_files import remove_directory, remove_leftovers, replace_directory, write_atomically
from .callback import read_qualities
from .result import RESULTS_FILE, Confirmation, DistilledStudent
from .setting import SearchSetting

LOG_FILE = "distillation_log.json"
STUDENT_FOLDER = "student"
FOLDER = "distillation"


class SearchError(RuntimeError):
    """A search that ended without a student."""


def distill_chosen(
    setting: SearchSetting,
    chosen: Sequence[Confirmation],
    heldout_texts: Any,
    statistics: HiddenStateStatistics | None,
    tracker: TrainerCallback,
) -> list[DistilledStudent]:
    """Distill architectures on the full corpus, together, and save them; what was done before is not repeated.

    The held-out texts may have stored targets.

    Raises:
        SearchError: If no student is left.
    """
    if setting.is_main:  # left by a process that died while it wrote
        remove_leftovers(setting.folder)
    done = setting.from_main(lambda: distilled_before(setting.folder))
    if {one.architecture for one in done} == {one.architecture for one in chosen}:
        clean_up(setting)
        return done
    names = {f"student_{number}": one for number, one in enumerate(chosen, start=1)}
    with setting.cost.clock("distillation"):
        args = setting.arguments(setting.folder / FOLDER / _slug(chosen))
        staged = args.stages is not None  # stages may learn from other layers than the candidates did
        trainer = distill(
            {name: setting.student_config(one.architecture) for name, one in names.items()},
            setting.teacher,
            args,
            setting.train_dataset,
            setting.heldout_dataset if staged else heldout_texts,
            statistics=None if staged else statistics,
            callbacks=[*setting.callbacks, tracker],
        )
        metrics = trainer.evaluate()
    students = _save(setting, trainer, names, int(metrics.get("eval_trained_tokens", 0)))
    if not students:
        raise SearchError(
            "no student is left of the full distillation; lower the learning rate if they diverged, and "
            f"per_device_train_batch_size if they did not fit: {'; '.join(trainer.pool.dropped.values())}."
        )
    if setting.is_main:
        write_atomically(setting.folder / LOG_FILE, json.dumps(trainer.state.log_history, indent=1))
        write_atomically(setting.folder / RESULTS_FILE, json.dumps([one.to_dict() for one in students], indent=2))
    clean_up(setting)
    return students


def distilled_before(folder: Path) -> list[DistilledStudent]:
    """The students that a run directory holds, best first."""
    path = folder / RESULTS_FILE
    if not path.is_file():
        return []
    return [DistilledStudent.from_dict(one) for one in json.loads(path.read_text(encoding="utf-8"))]


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log of the full distillation; of several students the mean of their losses."""
    path = folder / LOG_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def clean_up(setting: SearchSetting) -> None:
    """Remove checkpoints and stored targets, which a finished search no longer needs."""
    setting.wait()
    if setting.is_main:
        own_cache = [CACHE_FOLDER] if setting.training_args.cache_dir is None else []
        for name in (FOLDER, "episodes", "confirmation", *own_cache):
            remove_directory(setting.folder / name)


def _slug(chosen: Sequence[Confirmation]) -> str:
    """A folder for checkpoints of these students alone: a search that goes on may choose others."""
    return "-".join(f"{one.architecture}".replace(" ", "_").replace(",", ".") for one in chosen)[:150]


def _save(
    setting: SearchSetting, trainer: DistillationTrainer, names: Mapping[str, Confirmation], tokens: int
) -> list[DistilledStudent]:
    """Save the students, the best as ``student``, the others as ``student_2`` and so on; each process its own."""
    readings = read_qualities(trainer.pool, setting.quality, tokens)
    rewards = {name: setting.reward(one.quality, names[name].latency) for name, one in readings.items()}
    students = []
    for rank, name in enumerate(sorted(rewards, key=lambda name: -rewards[name]), start=1):
        path = STUDENT_FOLDER if rank == 1 else f"{STUDENT_FOLDER}_{rank}"
        # a lone student is in every process
        if name in trainer.pool.models and (trainer.pool.divided or setting.is_main):
            replace_directory(setting.folder / path, partial(trainer.save_student, name))
        measured, layer = trainer.pool.measured[name], "r2_layer_"
        students.append(
            DistilledStudent(
                path=path,
                architecture=names[name].architecture,
                quality=readings[name].quality,
                loss=readings[name].loss,
                quality_per_layer={key.removeprefix(layer): v for key, v in measured.items() if key.startswith(layer)},
                latency=names[name].latency,
                costs=names[name].costs,
                tokens=tokens,
                reward=rewards[name],
            )
        )
    setting.wait()
    return students
