"""The study: every trial of a search in Optuna's storage, and the ledger beside it, kept in step."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers.utils import logging

from .controllers import ArchitectureSampler, architecture_of, distributions
from .ledger import ArchitectureRecord, Ledger
from .space import Architecture

logger = logging.get_logger(__name__)

STUDY_NAME = "kdnas"
STUDY_FILE = "study.db"
LEDGER_FILE = "architectures.jsonl"
LATENCY = "latency_ms"  # user attribute
RECORD = "record"  # user attribute that holds a finished trial's line of the ledger


class SearchStudy:
    """An Optuna study in ``study.db`` and the ledger ``architectures.jsonl``.

    A result is told to the study first and then appended to the ledger, so every line of the ledger is a trial of the
    study. Whichever of the two an interruption left behind is brought up to date on opening.

    Args:
        folder: The run directory.
        sampler: The controller.
        min_speedup: Hard constraint: slower architectures are recorded, but are not feasible.
    """

    def __init__(self, folder: str | Path, sampler: ArchitectureSampler, min_speedup: float = 0.0) -> None:
        self.folder = Path(folder)
        self.sampler = sampler
        self.min_speedup = min_speedup
        self.ledger = Ledger(self.folder / LEDGER_FILE)
        self.study = self._open()
        self._bring_into_step()

    # ---- opening ----

    def _open(self) -> optuna.Study:
        path = self.folder / STUDY_FILE
        try:
            if path.exists():
                _check_integrity(path)
            return self._create(path)
        except sqlite3.OperationalError:
            raise  # locked, disk full or read-only: no damage
        except sqlite3.DatabaseError as error:
            aside = _unused(path.with_name(path.name + ".damaged"))
            path.rename(aside)
            for leftover in self.folder.glob(f"{STUDY_FILE}-*"):  # journals that belong to the damaged file
                leftover.unlink()
            logger.warning(
                f"{path} is damaged ({error}); it is kept as {aside.name}, and a new study is made from the good lines "
                f"of {self.ledger.path.name}."
            )
            return self._create(path)

    def _create(self, path: Path) -> optuna.Study:
        return optuna.create_study(
            storage=f"sqlite:///{path.resolve()}",
            study_name=STUDY_NAME,
            sampler=self.sampler,
            direction="maximize",
            load_if_exists=True,
        )

    def _bring_into_step(self) -> None:
        """Add to the study what only the ledger has, and to the ledger what only the study has."""
        in_ledger = {record.number: record for record in self.ledger.read()}
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        for number in range(max([*in_ledger, -1]) + 1):
            record = in_ledger.get(number)
            trial = trials.get(number)
            if trial is None:
                self.study.add_trial(self._trial_from(record))
            elif record is not None and not trial.state.is_finished():
                self._tell(record)
        self.ledger.set_to(self.records())

    def _trial_from(self, record: ArchitectureRecord | None) -> FrozenTrial:
        if record is None:  # lost with a damaged study; its number must stay taken
            return optuna.trial.create_trial(state=TrialState.FAIL)
        complete = record.state == "complete"
        return optuna.trial.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.FAIL,
            value=record.reward if complete else None,
            params=self.sampler.space.encode(record.architecture),
            distributions=distributions(self.sampler.space),
            user_attrs={"episode": record.episode, RECORD: record.to_json()},
            constraints={"min_speedup": self.min_speedup - record.speedup},
        )

    # ---- asking and telling ----

    def candidates(self, episode: int) -> dict[int, Architecture]:
        """The candidates of an episode by trial number; those that the study does not have yet are chosen now.

        There are fewer than ``candidates_per_episode`` where the space is exhausted.
        """
        first = episode * self.sampler.candidates_per_episode
        chosen: dict[int, Architecture] = {}
        for number in range(first, first + self.sampler.candidates_per_episode):
            trials = self.study.get_trials(deepcopy=False)
            if number < len(trials):
                architecture = architecture_of(trials[number])
                if architecture is None and not trials[number].state.is_finished():
                    # a process died between creating the trial and choosing: the same choice is made again
                    architecture = self._choose(Trial(self.study, trials[number]._trial_id))
            elif not self.sampler.available(self.study, number):
                break
            else:
                architecture = self._choose(self.study.ask())
            if architecture is not None:
                chosen[number] = architecture
        return chosen

    def _choose(self, trial: Trial) -> Architecture:
        trial.set_user_attr("episode", self.sampler.episode_of(trial.number))
        for name, choices in self.sampler.space.choices.items():
            trial.suggest_categorical(name, choices)
        architecture = architecture_of(self.study.get_trials(deepcopy=False)[trial.number])
        assert architecture is not None
        return architecture

    def is_finished(self, number: int) -> bool:
        """Whether a trial has its result."""
        return self.study.get_trials(deepcopy=False)[number].state.is_finished()

    def latency(self, number: int) -> tuple[float, float, float] | None:
        """Median, interquartile range and the teacher's median, in milliseconds, if a trial's latency was measured."""
        values = self.study.get_trials(deepcopy=False)[number].user_attrs.get(LATENCY)
        return None if values is None else (values[0], values[1], values[2])

    def set_latency(self, number: int, latency: tuple[float, float, float]) -> None:
        """Keep a trial's latency: it is measured once, also if the mini-KD that follows is interrupted."""
        self._reopen(number).set_user_attr(LATENCY, list(latency))

    def report(self, number: int, value: float, step: int) -> None:
        """Report the progress of a running trial: ``value`` (R²) after ``step`` optimizer steps."""
        trial = self._reopen(number)
        # a resumed mini-KD passes the same steps again
        if step not in self.study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(value, step)

    def record(self, record: ArchitectureRecord) -> None:
        """Tell a result to the study and write its line; it is on the disk when this returns."""
        self._tell(record)
        self.ledger.append(record)

    def _tell(self, record: ArchitectureRecord) -> None:
        trial = self._reopen(record.number)
        trial.set_user_attr(RECORD, record.to_json())
        trial.set_constraint("min_speedup", self.min_speedup - record.speedup)
        if record.state == "complete":
            self.study.tell(record.number, record.reward)
        else:
            self.study.tell(record.number, state=TrialState.FAIL)

    def _reopen(self, number: int) -> Trial:
        # Optuna has no public way to go on with a running trial of another process
        return Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    # ---- results ----

    def records(self) -> list[ArchitectureRecord]:
        """Everything measured, by trial number."""
        return [
            ArchitectureRecord.from_json(trial.user_attrs[RECORD])
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and RECORD in trial.user_attrs
        ]

    def best(self, count: int = 1) -> list[ArchitectureRecord]:
        """The feasible architectures of the highest reward, best first."""
        feasible = [r for r in self.records() if r.reward is not None and r.speedup >= self.min_speedup]
        return sorted(feasible, key=lambda r: -(r.reward or 0.0))[:count]


def _check_integrity(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _unused(path: Path) -> Path:
    candidate, count = path, 0
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}.{count}")
    return candidate
