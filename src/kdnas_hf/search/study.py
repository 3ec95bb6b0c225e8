"""The study: every trial of a search in Optuna's storage, and the ledger beside it, kept in step."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers.utils import logging

from .budgets import UNLIMITED, LatencyBudget
from .controllers import REWARD, ArchitectureSampler, architecture_of, distributions
from .ledger import ArchitectureRecord, Ledger
from .space import Architecture

logger = logging.get_logger(__name__)

STUDY_NAME = "kdnas"
STUDY_FILE = "study.db"
LEDGER_FILE = "architectures.jsonl"
LATENCY = "latency_ms"  # user attribute
TRIAL_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
MACHINE = "machine"  # user attribute: where the latency was measured
RECORD = "record"  # user attribute that holds a finished trial's line of the ledger
CURVE = "r2"  # user attribute: R² by steps, where the study cannot take reports
EARLIER = "earlier"  # user attribute of the study: how many trials at its front were taken over from another run
EARLIER_EPISODE = -1
CONFIGURATION = "configuration"  # user attribute of the study


class StudyChangedError(RuntimeError):
    """Another worker has made a trial where this one was about to."""


class SearchStudy:
    """An Optuna study in ``study.db`` and the ledger ``architectures.jsonl``.

    A result is told to the study first and then appended to the ledger, so every line of the ledger is a trial of the
    study. Whichever of the two an interruption left behind is brought up to date on opening.

    Args:
        folder: The run directory.
        sampler: The controller.
        budget: Hard constraint: slower architectures are recorded, but are not feasible.
        objective: What the study's values are: the ``"reward"``; or, for ``"pareto"``, quality (1 - L of the reward),
            to be maximised, and latency as a share of the teacher's, to be minimised.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: ArchitectureSampler,
        budget: LatencyBudget = UNLIMITED,
        objective: str = "reward",
    ) -> None:
        self.folder = Path(folder)
        self.sampler = sampler
        self.budget = budget
        self.objective = objective
        self.ledger = Ledger(self.folder / LEDGER_FILE)
        self.study = self._open()
        self._bring_into_step()

    def close(self) -> None:
        """End the work on the study."""

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
            directions=self.directions,
            load_if_exists=True,
        )

    @property
    def directions(self) -> list[StudyDirection]:
        """Of the study's values."""
        one = [StudyDirection.MAXIMIZE]
        return one if self.objective == "reward" else [*one, StudyDirection.MINIMIZE]

    def _values(self, record: ArchitectureRecord) -> list[float] | None:
        """What the study knows a result as; None where there is none."""
        if record.loss is None or record.reward is None:
            return None
        return [record.reward] if self.objective == "reward" else [1.0 - record.loss, 1.0 / record.speedup]

    def _attributes(self, record: ArchitectureRecord) -> dict[str, Any]:
        """User attributes of a trial that has its result."""
        told = record.state == "complete" and self.objective == "reward"
        return {RECORD: record.to_json()} | ({} if told or record.reward is None else {REWARD: record.reward})

    def _bring_into_step(self) -> None:
        """Add to the study what only the ledger has, and to the ledger what only the study has."""
        in_ledger = {record.number: record for record in self.ledger.read()}
        earlier = sum(record.episode == EARLIER_EPISODE for record in in_ledger.values())
        if earlier and EARLIER not in self.study.user_attrs:  # lost with a damaged study
            self.study.set_user_attr(EARLIER, earlier)
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
        state = TRIAL_STATES[record.state]
        return optuna.trial.create_trial(
            state=state,
            values=None if state is TrialState.FAIL else self._values(record),
            params=self.sampler.space.encode(record.architecture),
            distributions=distributions(self.sampler.space),
            user_attrs={"episode": record.episode} | self._attributes(record),
            constraints=self.budget.excess(record),
        )

    def begin(self, earlier: Sequence[ArchitectureRecord] | None) -> None:
        """Take over another run's results as the study's first trials, if it has not begun yet.

        Args:
            earlier: The results; None if none are to be taken over.

        Raises:
            ValueError: If results are to be taken over and the study has begun without any.
        """
        count = self.study.user_attrs.get(EARLIER, 0)
        trials = len(self.study.get_trials(deepcopy=False))
        if earlier is not None and not count:
            if trials:
                raise ValueError(
                    f"warm_start: the search in output_dir={str(self.folder)!r} has begun without; choose another "
                    "output_dir, or leave it out."
                )
            count = len(earlier)
            self.study.set_user_attr(EARLIER, count)
        if trials < count:
            if earlier is None or len(earlier) != count:
                raise ValueError(
                    f"warm_start: {trials} of {count} architectures were taken over before this search was "
                    "interrupted; start it with the same warm_start as before."
                )
            for number in range(trials, count):
                record = replace(earlier[number], number=number, episode=EARLIER_EPISODE)
                self.study.add_trial(self._trial_from(record))
            self.ledger.set_to(self.records())
        self.sampler.first_number = count

    def keep_configuration(self, configuration: Mapping[str, Any]) -> None:
        """Keep the search's configuration with the study, for searches that begin with its results."""
        if CONFIGURATION not in self.study.user_attrs:
            self.study.set_user_attr(CONFIGURATION, json.loads(json.dumps(configuration, default=str)))

    # ---- asking and telling ----

    def candidates(self, episode: int) -> dict[int, Architecture] | None:
        """The candidates of an episode by trial number; those that the study does not have yet are chosen now.

        There are fewer than ``candidates_per_episode`` where the space is exhausted.

        Raises:
            StudyChangedError: If another process works on this study.
        """
        first = self.sampler.first_number + episode * self.sampler.candidates_per_episode
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
                trial = self.study.ask()
                if trial.number != number:
                    raise StudyChangedError(f"trial {trial.number} was made where {number} was expected.")
                architecture = self._choose(trial)
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

    def take(self, chosen: Mapping[int, Architecture], pool_size: int = 0) -> list[int] | None:
        """Candidates of an episode to train next: all, unless all have their result; then None."""
        return None if all(self.is_finished(number) for number in chosen) else list(chosen)

    def is_finished(self, number: int) -> bool:
        """Whether a trial has its result."""
        return self.study.get_trials(deepcopy=False)[number].state.is_finished()

    def latency(self, number: int) -> tuple[float, float, float] | None:
        """Median, interquartile range and the teacher's median, in milliseconds, if a trial's latency was measured."""
        values = self.study.get_trials(deepcopy=False)[number].user_attrs.get(LATENCY)
        return None if values is None else (values[0], values[1], values[2])

    def set_latency(self, number: int, latency: tuple[float, float, float], machine: str = "") -> None:
        """Keep a trial's latency: it is measured once, also if the mini-KD that follows is interrupted."""
        trial = self._reopen(number)
        trial.set_user_attr(LATENCY, list(latency))
        trial.set_user_attr(MACHINE, machine)

    def report(self, number: int, value: float, step: int) -> None:
        """Report the progress of a running trial: ``value`` (R²) after ``step`` optimizer steps."""
        trial = self._reopen(number)
        known = self.study.get_trials(deepcopy=False)[number]
        # a resumed mini-KD passes the same steps again
        if step in curve_of(known):
            return
        if self.objective == "reward":
            trial.report(value, step)
        else:  # Optuna takes reports on one objective alone
            trial.set_user_attr(CURVE, {**known.user_attrs.get(CURVE, {}), str(step): value})

    def record(self, record: ArchitectureRecord) -> bool:
        """Tell a result to the study and write its line; it is on the disk when this returns.

        Returns:
            Whether it counts: this worker still had the candidate.
        """
        self._tell(record)
        self.ledger.append(record)
        return True

    def _tell(self, record: ArchitectureRecord) -> None:
        trial = self._reopen(record.number)
        for name, value in self._attributes(record).items():
            trial.set_user_attr(name, value)
        for name, excess in self.budget.excess(record).items():
            trial.set_constraint(name, excess)
        state = TRIAL_STATES[record.state]
        # of a pruned trial Optuna keeps what was reported last
        values = self._values(record) if state is TrialState.COMPLETE else None
        self.study.tell(record.number, values, state=state, skip_if_finished=True)

    def _reopen(self, number: int) -> Trial:
        # Optuna has no public way to go on with a running trial of another process
        return Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)

    # ---- results ----

    def records(self) -> list[ArchitectureRecord]:
        """Everything measured, by trial number."""
        return read_records(self.study)

    def curves(self) -> dict[int, dict[int, float]]:
        """R² by optimizer steps, of each trial that has a result."""
        return {
            trial.number: curve_of(trial)
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and RECORD in trial.user_attrs
        }

    def best(self, count: int = 1) -> list[ArchitectureRecord]:
        """The feasible architectures of the highest reward that trained to the end, best first."""
        feasible = [r for r in self.records() if r.state == "complete" and self.budget.met_by(r)]
        return sorted(feasible, key=lambda r: -(r.reward or 0.0))[:count]


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """R² of a trial by optimizer steps."""
    reported = trial.intermediate_values or trial.user_attrs.get(CURVE, {})
    return {int(step): value for step, value in reported.items()}


def read_records(study: optuna.Study) -> list[ArchitectureRecord]:
    """Everything that a study has measured, by trial number."""
    return [
        ArchitectureRecord.from_json(trial.user_attrs[RECORD])
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and RECORD in trial.user_attrs
    ]


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
