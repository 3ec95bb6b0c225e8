"""The study of a search: every trial in one Optuna storage, of a lone worker or of several that share it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from transformers.utils import logging

from ..export.budgets import UNLIMITED, Budget, costs_of
from ..latency import Latency
from ..students import Architecture
from ..utils.json_lines import JsonLines
from ..utils.leases import ALONE, Leases, keep_worker, worker_of
from ..utils.run_directory import configuration_differences
from ..utils.shared_storage import CLOCK, open_file, open_storage, public_storage
from .controllers.base import ArchitectureSampler, architecture_of, distributions
from .trial import COMPLETE, FAILED, RUNNING, STOPPED, Trial

logger = logging.get_logger(__name__)

STUDY_FILE = "study.db"
VIEW_FILE = "architectures.jsonl"
NEXT_POOL = "choice of the next pool"  # a lease
EARLIER_EPISODE = -1  # of results of another search
STATES = {
    RUNNING: TrialState.RUNNING, COMPLETE: TrialState.COMPLETE, STOPPED: TrialState.PRUNED, FAILED: TrialState.FAIL
}  # fmt: skip
# fields of `Trial` that are user attributes
ATTRIBUTES = ("costs", "machine", "quality", "loss", "tokens", "seconds", "reward", "failure", "latency")


class SearchStudy:
    """The trials of a search in an Optuna storage: ``study.db`` of the run directory, or one that workers share.

    A worker that was killed anywhere and is started again in its directory goes on with the same trials. Those of a
    worker that gives no sign of life are killed, and others get their architectures; if it comes back, its results do
    not count. ``acquire``, ``finish`` and ``holder`` are those of `Leases`, of what one worker does for all.

    Args:
        folder: The run directory of this worker.
        sampler: The controller.
        configuration: That of the search, the same for all workers.
        budget: Trials that miss it are not feasible.
        objective: Optuna's values are the ``"reward"``; or, for ``"pareto"``, the quality, to be maximized, and the
            latency as a share of the teacher's, to be minimized.
        storage: Address of a storage to share, see `open_storage`.
        name: Of the study in the storage.
        worker_timeout: Seconds after which a worker that gives no sign of life is dead.
        asynchronous: Whether trials are chosen before those of earlier episodes are finished.

    Raises:
        ValueError: If the storage cannot be opened, or the study or the run directory is that of another search.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: ArchitectureSampler,
        configuration: Mapping[str, Any],
        *,
        budget: Budget = UNLIMITED,
        objective: str = "reward",
        storage: str | None = None,
        name: str = "kdnas",
        worker_timeout: float = 120.0,
        asynchronous: bool = False,
    ) -> None:
        self.folder, self.sampler, self.budget, self.objective = Path(folder), sampler, budget, objective
        self.asynchronous = sampler.asynchronous = asynchronous
        self.poll_seconds = min(worker_timeout / 20, 5.0)  # until one asks again
        self.view = JsonLines(self.folder / VIEW_FILE, Trial.from_json)
        self._seconds_before = CLOCK.seconds
        self.worker = worker_of(self.folder, None if storage is None else name)
        self.storage = open_file(self.folder / STUDY_FILE) if storage is None else open_storage(storage)
        where = f"{STUDY_FILE} of output_dir={str(folder)!r}"
        if storage is not None:
            where = f"study_name={name!r} in storage={public_storage(storage)!r}"
        self.leases = Leases(self.storage, name, self.worker, worker_timeout)
        self.acquire, self.finish, self.holder = self.leases.acquire, self.leases.finish, self.leases.holder
        self._refuse_other_search(configuration, where)
        try:
            if storage is not None:
                keep_worker(self.folder, self.worker, name)
                self.leases.start()
            directions = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: 1 if objective == "reward" else 2]
            self.study = optuna.create_study(
                storage=self.storage, study_name=name, sampler=sampler, directions=directions, load_if_exists=True
            )
            self._restore(where)
            self.write_view()
        except BaseException:
            self.leases.stop()
            raise

    def close(self) -> None:
        """End the work on the study: what this worker has not finished is free for others at once."""
        CLOCK.patience = 1.0
        with contextlib.suppress(Exception):  # the storage is away
            self.write_view()
        CLOCK.patience = math.inf
        self.leases.stop()

    def _refuse_other_search(self, configuration: Mapping[str, Any], where: str) -> None:
        now = json.loads(json.dumps(configuration, default=str))
        differences = "\n  ".join(configuration_differences(self.leases.first("configuration", now), now))
        if differences:
            remedy = "Give the same configuration to work on it, or choose another."
            raise ValueError(f"{where} is a search of another configuration:\n  {differences}\n{remedy}")

    def _restore(self, where: str) -> None:
        """Take from the view what a new ``study.db`` in the place of a damaged one does not have."""
        lines = {trial.number: trial for trial in self.view.read()}
        known = {trial.number: trial.architecture for trial in self.trials()}
        lost = [number for number, trial in lines.items() if known.get(number) != trial.architecture]
        if not lost:
            return
        count = len(self._frozen())
        if self.worker != ALONE or min(lost) < count:  # another study, or an older copy of it
            holds = f"output_dir={str(self.folder)!r} holds {len(lost)} measured architecture(s)"
            remedy = "choose another output_dir, and hand them over with warm_start."
            raise ValueError(f"{holds} that {where} does not have; {remedy}")
        logger.warning(f"{len(lost)} trial(s) that {STUDY_FILE} does not have are taken from {self.view.path}.")
        last = lines[max(lines)]
        for number in range(count, last.number + 1):
            if number in lines:
                self._add(lines[number])
            else:  # it was running: its architecture is chosen again
                self._create(RUNNING, {"episode": last.episode, "pool": "restored", "worker": self.worker})

    def ask(self, count: int, num_episodes: int) -> list[Trial] | None:
        """The trials that this worker trains next, together.

        Workers choose one after another, so that each choice knows all before it, and is the same whoever makes it.

        Returns:
            The pool that this worker has begun and not finished, all of it; or ``count`` new trials of one episode,
            fewer if others are idle; none when the search has ended; None while others must finish first: ask again.
        """
        _, size, nothing = self._plan(count, num_episodes)
        if not size or not self.acquire(NEXT_POOL):
            return None if size else nothing
        plan, size, nothing = self._plan(count, num_episodes)  # others may have chosen in the meantime
        pool = self._fill(plan, size) if size else []
        return (pool or nothing) if self.leases.release(NEXT_POOL) else None

    def _plan(self, count: int, num_episodes: int) -> tuple[dict[str, Any], int, list[Trial] | None]:
        """Of this worker's next pool what its trials have in common, its size, and the answer if there is none."""
        alive = self.leases.alive()
        for trial in self._frozen():
            if trial.state == TrialState.RUNNING and alive.get(trial.user_attrs["worker"]) is False:
                logger.warning(f"worker {trial.user_attrs['worker']} is gone; its #{trial.number} is tried again.")
                self._kill(trial)
        trials = self._frozen()
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        nothing: list[Trial] | None = None if running else []
        places = self.sampler.candidates_per_episode
        mine = next((trial for trial in running if trial.user_attrs["worker"] == self.worker), None)
        if mine is None:
            newest = max([0, *map(_episode, trials)])
            full = sum(_episode(trial) == newest and not is_killed(trial) for trial in trials) >= places
            episode = min([newest + full, *map(_episode, _retries(trials))])
            waits = not self.asynchronous and any(_episode(trial) < episode for trial in running)
            if episode >= num_episodes or waits:
                return {}, 0, nothing
            plan = {"episode": episode, "pool": f"{len(trials):04d}", "worker": self.worker}
        else:
            plan = {name: mine.user_attrs[name] for name in ("episode", "pool", "worker")}
        others = [trial for trial in trials if not is_killed(trial) and not plan.items() <= trial.user_attrs.items()]
        places = max(1, places - sum(_episode(trial) == plan["episode"] for trial in others))
        busy = {self.worker, *(trial.user_attrs["worker"] for trial in running)}
        idle = sum(lives is not False for worker, lives in alive.items() if worker not in busy)
        return plan, count if places - count >= idle else min(count, math.ceil(places / (idle + 1))), nothing

    def _fill(self, plan: Mapping[str, Any], size: int) -> list[Trial]:
        """A pool of this worker: what it lacks before its training begins is created, and its architectures chosen."""
        while self.holder(NEXT_POOL) == self.worker:
            trials = self._frozen()
            pool = [trial for trial in trials if plan.items() <= trial.user_attrs.items() and not is_killed(trial)]
            retry = next((trial for trial in _retries(trials) if _episode(trial) == plan["episode"]), None)
            unchosen = next((trial for trial in pool if not self._is_chosen(trial)), None)
            whole = len(pool) >= size or any(trial.user_attrs.get("latency") for trial in pool)
            if unchosen is not None:
                self._choose(unchosen)
            elif retry is not None and not whole:
                self._create(RUNNING, {**plan, "retry_of": retry.number}, architecture_of(retry))
            elif not whole and self.sampler.available(self.study, len(trials)):
                self._create(RUNNING, plan)
            else:
                return [trial_of(trial) for trial in pool]
        return []

    def _is_chosen(self, trial: FrozenTrial) -> bool:
        return len(trial.params) == len(self.sampler.space.choices)

    def _choose(self, trial: FrozenTrial) -> None:
        # a choice that was cut short is not made alike when others' results have come in
        if (self.asynchronous and trial.params) or not self.sampler.available(self.study, trial.number):
            return self._kill(trial)
        with contextlib.suppress(UpdateFinishedTrialError):  # handed to another worker
            # Optuna has no public way to go on with a trial of a process that died
            chosen = optuna.Trial(self.study, trial._trial_id)
            for name, choices in self.sampler.space.choices.items():
                chosen.suggest_categorical(name, choices)

    def _kill(self, trial: FrozenTrial) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # it was told in the meantime
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def set_latency(self, number: int, latency: Latency, costs: Mapping[str, float], machine: str) -> None:
        """Keep what a trial costs: it is measured once, also if its mini-KD is interrupted."""
        # the latency last: with it all is known
        self._keep(number, {"costs": dict(costs), "machine": machine, "latency": list(astuple(latency))})

    def report(self, number: int, step: int, quality: float) -> None:
        """Report a trial's quality after ``step`` optimizer steps; a resumed mini-KD passes the same steps again."""
        trial = self._frozen()[number]
        if step not in trial.intermediate_values:
            with contextlib.suppress(UpdateFinishedTrialError):  # handed to another worker
                self.storage.set_trial_intermediate_value(trial._trial_id, step, quality)

    def tell(self, trial: Trial) -> bool:
        """Tell the result of a trial, on the disk when this returns; whether it counts, being this worker's yet."""
        self._keep(trial.number, _attributes(trial))
        with contextlib.suppress(UpdateFinishedTrialError):
            self.study.tell(trial.number, self._values(trial), STATES[trial.state], skip_if_finished=True)
        if is_killed(self._frozen()[trial.number]):
            silence = f"this one gave no sign of life for {self.leases.timeout:.0f} seconds (worker_timeout)"
            logger.warning(f"#{trial.number} was handed to another worker, as {silence}; its result does not count.")
            return False
        self.write_view()
        return True

    def add(self, trials: Sequence[Trial]) -> None:
        """Take over results of another search, of architectures that the study does not have."""
        while not self.acquire(NEXT_POOL):
            time.sleep(self.poll_seconds)
        known = {architecture_of(trial) for trial in self._frozen() if not is_killed(trial)}
        for trial in trials:
            if trial.architecture not in known and self.holder(NEXT_POOL) == self.worker:
                self._add(replace(trial, episode=EARLIER_EPISODE))
                known.add(trial.architecture)
        if not self.leases.release(NEXT_POOL):
            return self.add(trials)
        self.write_view()

    def _keep(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Write what is new of a running trial, and by how much it misses limits."""
        before = self._frozen()[number]
        with contextlib.suppress(UpdateFinishedTrialError):  # handed to another worker
            for name, value in attributes.items():
                if before.user_attrs.get(name) != value:
                    self.storage.set_trial_user_attr(before._trial_id, name, value)
            for name, excess in self.budget.excess(costs_of(trial_of(self._frozen()[number]))).items():
                if name not in before.constraints:
                    optuna.Trial(self.study, before._trial_id).set_constraint(name, excess)

    def _values(self, trial: Trial) -> list[Any] | None:
        if trial.state != COMPLETE:
            return None
        return [trial.reward] if self.objective == "reward" else [trial.quality, 1.0 / costs_of(trial)["speedup"]]

    def _add(self, trial: Trial) -> None:
        known = {"values": self._values(trial), "constraints": self.budget.excess(costs_of(trial))}
        told = {"episode": trial.episode, **_attributes(trial)}
        self._create(trial.state, told, trial.architecture, intermediate_values=dict(trial.readings), **known)

    def _create(self, state: str, told: Mapping[str, Any], shape: Architecture | None = None, **known: Any) -> None:
        """Create a trial with all that is known of it at once, so that nobody finds half of it."""
        space = self.sampler.space
        if shape is not None:
            known |= {"params": space.encode(shape), "distributions": distributions(space)}
        self.study.add_trial(create_trial(state=STATES[state], user_attrs=dict(told), **known))

    def _frozen(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def is_finished(self, number: int) -> bool:
        """Whether a trial has its result, or was handed to another worker."""
        return self._frozen()[number].state.is_finished()

    def trials(self) -> list[Trial]:
        """All that are finished, by number, without those that were killed."""
        return [trial_of(trial) for trial in self._frozen() if trial.state.is_finished() and not is_killed(trial)]

    def running(self) -> list[Trial]:
        """All that have an architecture and no result, by number."""
        unfinished = [trial for trial in self._frozen() if not trial.state.is_finished()]
        return [trial_of(trial) for trial in unfinished if self._is_chosen(trial)]

    def write_view(self) -> None:
        """Bring ``architectures.jsonl`` up to date."""
        self.view.set_to(self.trials())

    def machines(self) -> set[str]:
        """The machines on which latency was measured."""
        return {trial.user_attrs["machine"] for trial in self._frozen() if trial.user_attrs.get("machine")}

    @property
    def storage_seconds(self) -> float:
        """Time that this thread has spent with a shared storage, in seconds."""
        return CLOCK.seconds - self._seconds_before

    def remember(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold, of the whole search."""
        self.study.set_user_attr(name, value)

    def remembered(self, name: str) -> Any | None:
        """What was remembered, by whichever worker."""
        return self.study.user_attrs.get(name)


def trial_of(trial: FrozenTrial) -> Trial:
    """What Optuna knows of a trial that has its architecture."""
    told = {name: trial.user_attrs[name] for name in ATTRIBUTES if name in trial.user_attrs}
    return Trial(
        number=trial.number,
        episode=_episode(trial),
        architecture=Architecture.from_params(trial.params),
        state=next(name for name, state in STATES.items() if state == trial.state),
        readings=dict(trial.intermediate_values),
        **told | {"latency": Latency(*told["latency"]) if told.get("latency") else None},
    )


def is_killed(trial: FrozenTrial) -> bool:
    """Whether a trial failed with its worker, which says nothing of its architecture."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get("failure") is None


def _attributes(trial: Trial) -> dict[str, Any]:
    latency = None if trial.latency is None else list(astuple(trial.latency))
    return {name: getattr(trial, name) for name in ATTRIBUTES} | {"latency": latency, "costs": dict(trial.costs)}


def _episode(trial: FrozenTrial) -> int:
    return trial.user_attrs["episode"]


def _retries(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were killed, whose architectures no other trial has."""
    taken = {None, *(architecture_of(trial) for trial in trials if not is_killed(trial))}
    return [trial for trial in trials if is_killed(trial) and architecture_of(trial) not in taken]
