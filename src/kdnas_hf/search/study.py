"""The study of a search: every trial in one Optuna storage, of a lone worker or of several that share it."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial
from transformers.utils import logging

from ..latency import Latency
from ..utils.json_lines import JsonLines
from ..utils.run_directory import configuration_differences
from .budgets import UNLIMITED, Budget, costs_of
from .controllers import ArchitectureSampler, architecture_of
from .leases import ALONE, Leases, worker_of
from .optuna_trials import (
    STATES,
    attributes_of,
    episode_of,
    is_killed,
    next_episode,
    retries_of,
    template_of,
    trial_of,
    values_of,
)
from .storage import CLOCK, open_file, open_storage, public_storage
from .trial import KILLED, Trial

logger = logging.get_logger(__name__)

STUDY_FILE = "study.db"
VIEW_FILE = "architectures.jsonl"
NEXT_POOL = "choice of the next pool"  # a lease
EARLIER_EPISODE = -1  # of results of another search


class SearchStudy:
    """The trials of a search in an Optuna storage: ``study.db`` of the run directory, or one that workers share.

    A worker that was killed anywhere and is started again in its directory goes on with the same trials. The trials of
    a worker that gives no sign of life fail as ``"killed"``, and others get their architectures; if it comes back, its
    results do not count. ``architectures.jsonl`` is a view of what is finished, for readers.

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
        self.folder = Path(folder)
        self.sampler = sampler
        self.budget = budget
        self.objective = objective
        self.asynchronous = sampler.asynchronous = asynchronous
        self.poll_seconds = min(worker_timeout / 20, 5.0)  # until one asks again
        self.view = JsonLines(self.folder / VIEW_FILE, Trial.from_json)
        self._seconds_before = CLOCK.seconds
        if storage is None:
            where = f"{STUDY_FILE} of output_dir={str(folder)!r}"
            self.worker, self.storage = worker_of(self.folder, None), open_file(self.folder / STUDY_FILE)
        else:
            where = f"study_name={name!r} in storage={public_storage(storage)!r}"
            self.worker, self.storage = worker_of(self.folder, name), open_storage(storage)
        self.leases = Leases(self.storage, name, self.worker, worker_timeout)
        try:
            if storage is not None:
                self.leases.workers.start()
            self._refuse_other_search(configuration, where)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=name,
                sampler=sampler,
                directions=["maximize"] if objective == "reward" else ["maximize", "minimize"],
                load_if_exists=True,
            )
            self._study_id = self.storage.get_study_id_from_name(name)
            self._restore(where)
            self.write_view()
        except BaseException:
            self.leases.workers.stop()
            raise

    def close(self) -> None:
        """End the work on the study: what this worker has not finished is free for others at once."""
        with contextlib.suppress(Exception):
            self.write_view()
        self.leases.workers.stop()

    def _refuse_other_search(self, configuration: Mapping[str, Any], where: str) -> None:
        now = json.loads(json.dumps(configuration, default=str))
        differences = "\n  ".join(configuration_differences(self.leases.first("configuration", now), now))
        if differences:
            raise ValueError(
                f"{where} is a search of another configuration:\n  {differences}\n"
                "Give the same configuration to work on it, or choose another."
            )

    def _restore(self, where: str) -> None:
        """Take from the view what a new ``study.db`` in the place of a damaged one does not have."""
        lines = {trial.number: trial for trial in self.view.read()}
        known = {trial.number: trial.architecture for trial in self.trials()}
        lost = [number for number, trial in lines.items() if known.get(number) != trial.architecture]
        if not lost:
            return
        count = len(self._frozen())
        if self.worker != ALONE or min(lost) < count:
            raise ValueError(
                f"output_dir={str(self.folder)!r} holds {len(lost)} measured architecture(s) that {where} does not "
                "have; choose another output_dir, and hand them over with warm_start."
            )
        logger.warning(f"{len(lost)} trial(s) that {STUDY_FILE} does not have are taken from {self.view.path}.")
        for number in range(count, max(lines) + 1):
            if number in lines:
                self._create(lines[number])
            else:  # it was running: its architecture is chosen again
                self._create(None, episode=lines[max(lines)].episode, pool="restored", worker=self.worker)

    # ---- asking ----

    def ask(self, count: int, num_episodes: int) -> list[Trial] | None:
        """The trials that this worker trains next, together.

        Workers ask one after another. Each choice knows all before it, so that they are the same whoever makes them.

        Args:
            count: How many at most. Others that have nothing to do are left their share of an episode.
            num_episodes: Episodes of the search.

        Returns:
            The pool that this worker has begun and not finished, all of it; or new trials of one episode; none when
            the search has ended; None while others must finish first: ask again.
        """
        if not (plan := self._plan(count, num_episodes)):
            return None if plan is None else []
        if not self.leases.acquire(NEXT_POOL):
            return None
        plan, running = self._plan(count, num_episodes), self._running()  # others may have asked in the meantime
        pool = self._fill(**plan) if plan else None
        if not self.leases.release(NEXT_POOL) or (running and not pool):
            return None
        return pool

    def _plan(self, count: int, num_episodes: int) -> dict[str, Any] | None:
        """What `_fill` is to make; empty at the end of the search, None while that depends on others."""
        alive = self.leases.workers.alive()
        for trial in self._running():
            if alive.get(trial.user_attrs["worker"]) is False:
                logger.warning(f"worker {trial.user_attrs['worker']} is gone; its #{trial.number} is tried again.")
                self._kill(trial)
        trials = [trial for trial in self._frozen() if not is_killed(trial)]
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        mine = next((trial.user_attrs for trial in running if trial.user_attrs["worker"] == self.worker), None)
        episode = next_episode(self._frozen(), self.sampler.candidates_per_episode) if mine is None else mine["episode"]
        pool = f"{len(self._frozen()):04d}" if mine is None else mine["pool"]
        if mine is None and episode >= num_episodes:
            return None if running else {}
        if mine is None and not self.asynchronous and any(episode_of(trial) < episode for trial in running):
            return None
        taken = sum(episode_of(trial) == episode and trial.user_attrs.get("pool") != pool for trial in trials)
        busy = {self.worker, *(trial.user_attrs["worker"] for trial in running)}
        idle = sum(alive[worker] is not False for worker in alive if worker not in busy)
        places = self.sampler.candidates_per_episode - taken
        size = count if places - count >= idle else min(count, math.ceil(places / (idle + 1)))
        return {"plan": {"episode": episode, "pool": pool, "worker": self.worker}, "size": size}

    def _fill(self, plan: Mapping[str, Any], size: int) -> list[Trial]:
        """A pool of this worker: what it lacks before its training begins is created, and its architectures chosen."""
        while True:
            trials = self._frozen()
            pool = [trial for trial in trials if plan.items() <= trial.user_attrs.items() and not is_killed(trial)]
            unchosen = [trial for trial in pool if not (trial.state.is_finished() or self._is_chosen(trial))]
            retries = [trial for trial in retries_of(trials) if episode_of(trial) == plan["episode"]]
            if unchosen:
                with contextlib.suppress(UpdateFinishedTrialError):  # handed to another worker
                    # Optuna has no public way to go on with a trial of a process that died
                    chosen = optuna.Trial(self.study, unchosen[0]._trial_id)
                    for name, choices in self.sampler.space.choices.items():
                        chosen.suggest_categorical(name, choices)
                continue
            begun = any("latency" in trial.user_attrs for trial in pool)
            if begun or len(pool) >= size or self.leases.holder(NEXT_POOL) != self.worker:
                return [trial_of(trial) for trial in pool]
            if retries:
                again = Trial(len(trials), plan["episode"], trial_of(retries[0]).architecture)
                self._create(again, **plan, retry_of=retries[0].number)
            elif self.sampler.available(self.study, len(trials)):
                self._create(None, **plan)
            else:
                size = len(pool)

    def _is_chosen(self, trial: FrozenTrial) -> bool:
        return len(trial.params) == len(self.sampler.space.choices)

    def _kill(self, trial: FrozenTrial) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # it was told in the meantime
            self.storage.set_trial_user_attr(trial._trial_id, "failure", KILLED)
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    # ---- telling ----

    def set_latency(self, number: int, latency: Latency, costs: Mapping[str, float], machine: str) -> None:
        """Keep what a trial costs: it is measured once, also if its mini-KD is interrupted."""
        known = self._frozen()[number]
        self._keep(known, replace(trial_of(known), latency=latency, costs=costs, machine=machine))

    def report(self, number: int, step: int, quality: float) -> None:
        """Report the quality of a trial after ``step`` optimizer steps; a resumed mini-KD passes steps again."""
        trial = self._frozen()[number]
        if step not in trial.intermediate_values:
            with contextlib.suppress(UpdateFinishedTrialError):  # handed to another worker
                self.storage.set_trial_intermediate_value(trial._trial_id, step, quality)

    def tell(self, trial: Trial) -> bool:
        """Tell the result of a trial; it is on the disk when this returns.

        Returns:
            Whether it counts; not so if the trial was handed to another worker.
        """
        known = self._frozen()[trial.number]
        if not known.state.is_finished():
            self._keep(known, trial)
            with contextlib.suppress(UpdateFinishedTrialError):
                self.study.tell(
                    trial.number, values_of(trial, self.objective), STATES[trial.state], skip_if_finished=True
                )
        if is_killed(self._frozen()[trial.number]):
            logger.warning(
                f"#{trial.number} was handed to another worker, as this one gave no sign of life for "
                f"{self.leases.workers.timeout:.0f} seconds (worker_timeout); its result does not count."
            )
            return False
        self.write_view()
        return True

    def add(self, trials: Sequence[Trial]) -> None:
        """Take over results of another search, of architectures that the study does not have."""
        while not self.leases.acquire(NEXT_POOL):
            time.sleep(self.poll_seconds)
        known = {architecture_of(trial) for trial in self._frozen() if not is_killed(trial)}
        for trial in trials:
            if trial.architecture not in known and self.leases.holder(NEXT_POOL) == self.worker:
                self._create(replace(trial, episode=EARLIER_EPISODE))
        if not self.leases.release(NEXT_POOL):
            return self.add(trials)
        self.write_view()

    def _keep(self, known: FrozenTrial, trial: Trial) -> None:
        """Write what is new of a running trial, and by how much it misses limits."""
        with contextlib.suppress(UpdateFinishedTrialError):  # handed to another worker
            for name, value in attributes_of(trial).items():
                if known.user_attrs.get(name) != value:
                    self.storage.set_trial_user_attr(known._trial_id, name, value)
            for name, excess in self.budget.excess(costs_of(trial)).items():
                if name not in known.constraints:
                    optuna.Trial(self.study, known._trial_id).set_constraint(name, excess)

    def _create(self, trial: Trial | None, **attributes: Any) -> None:
        """Create a trial with all that is known of it at once, so that nobody finds half of it; or an empty one."""
        template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        if trial is not None:
            template = template_of(trial, self.sampler.space, self.objective, self.budget, attributes)
        self.storage.create_new_trial(self._study_id, template)

    # ---- what is known ----

    def _frozen(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _running(self) -> list[FrozenTrial]:
        return [trial for trial in self._frozen() if trial.state == TrialState.RUNNING]

    def is_finished(self, number: int) -> bool:
        """Whether a trial has its result, or was handed to another worker."""
        return self._frozen()[number].state.is_finished()

    def trials(self) -> list[Trial]:
        """All that are finished, by number, without those that were killed."""
        return [trial_of(trial) for trial in self._frozen() if trial.state.is_finished() and not is_killed(trial)]

    def running(self) -> list[Trial]:
        """All that have an architecture and no result, by number."""
        return [trial_of(trial) for trial in self._running() if self._is_chosen(trial)]

    def write_view(self) -> None:
        """Bring ``architectures.jsonl`` up to date."""
        self.view.set_to(self.trials())

    def machines(self) -> set[str]:
        """The machines on which latency was measured."""
        return {trial.user_attrs["machine"] for trial in self._frozen() if "machine" in trial.user_attrs}

    @property
    def storage_seconds(self) -> float:
        """Time that this thread has spent with a shared storage, in seconds."""
        return CLOCK.seconds - self._seconds_before

    # ---- what is of the whole search ----

    def remember(self, name: str, value: Any) -> None:
        """Keep a value that JSON can hold."""
        self.study.set_user_attr(name, value)

    def remembered(self, name: str) -> Any | None:
        """What was remembered, by whichever worker."""
        return self.study.user_attrs.get(name)

    def acquire(self, what: str) -> bool | None:
        """Whether this worker does, or did, what one does for all; None if that is not known yet: ask again."""
        return self.leases.acquire(what)

    def finish(self, what: str) -> None:
        """Say that it is done, for ever."""
        if not self.leases.finish(what):
            logger.warning(f"{what} was taken over by another worker as well (worker_timeout).")

    def holder(self, what: str) -> str | None:
        """The worker that does it, or did."""
        return self.leases.holder(what)
