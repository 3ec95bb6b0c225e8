"""Claims: which worker does what in a study that several share, and which of them are alive."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from transformers.utils import logging

logger = logging.get_logger(__name__)

BEATS_IN_TIMEOUT = 6
WORKER = "worker "  # start of the study attribute that a worker's heartbeat is kept in


class ClaimLostError(RuntimeError):
    """A worker was taken for dead, and another has what it did."""


@dataclass(frozen=True)
class Claim:
    """What a worker does, or has done.

    Attributes:
        what: What is claimed: a candidate, say.
        worker: Who claimed it.
        pool: Claims of one worker with the same pool were taken together.
        done: Whether it is done; then it stays with that worker for ever.
        record: What came out of it.
    """

    what: str
    worker: str
    pool: str
    done: bool
    record: str | None
    trial_id: int


class Workers:
    """The workers of a study, by the beats that each counts in the storage.

    No clock is compared with that of another machine: a worker is dead if its count has stood still for ``timeout``
    seconds of the clock of the one who watches.

    Args:
        storage: Of the study.
        study_id: Of the study of claims.
        worker: This worker.
        timeout: In seconds.
    """

    def __init__(self, storage: BaseStorage, study_id: int, worker: str, timeout: float) -> None:
        self.storage = storage
        self.study_id = study_id
        self.worker = worker
        self.timeout = timeout
        self._session = uuid.uuid4().hex[:8]  # a worker that is started again counts from 0
        self._beats = 0
        self._seen: dict[str, tuple[Any, float, bool]] = {}  # last beat, since when, whether it was seen to change
        self._watched = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Count beats from now on, and watch those of the others."""
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """Say that this worker has ended: what it had claimed is free at once."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        self.storage.clock.patience = 1.0  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):  # the storage is away: that this worker has ended is seen later
            self.beat(ended=True)

    def beat(self, ended: bool = False) -> None:
        """Count one beat."""
        self._beats += 1
        value = {"session": self._session, "beats": self._beats, "ended": ended}
        self.storage.set_study_user_attr(self.study_id, WORKER + self.worker, value)

    def _beat_on(self) -> None:
        self.storage.clock.patience = 1.0  # type: ignore[attr-defined]
        while not self._stopped.wait(self.timeout / BEATS_IN_TIMEOUT):
            try:
                self.beat()
                self.watch()
            except Exception as error:  # the storage is away: the search says so, and others wait as well
                logger.debug(f"heartbeat: {error}")

    def watch(self) -> None:
        """Look at everybody's beats."""
        attributes = self.storage.get_study_user_attrs(self.study_id)
        with self._lock:
            now = time.monotonic()
            if now - self._watched > self.timeout / 2:
                # this worker was suspended itself, or the storage was away: nobody was watched
                self._seen = {name: (beat, now, moved) for name, (beat, _, moved) in self._seen.items()}
            self._watched = now
            for key, value in attributes.items():
                if not key.startswith(WORKER):
                    continue
                name = key.removeprefix(WORKER)
                beat = (value["session"], value["beats"], value["ended"])
                before = self._seen.get(name)
                if before is None or before[0] != beat:
                    self._seen[name] = (beat, now, before is not None)

    def is_dead(self, worker: str) -> bool:
        """Whether a worker has ended, or its beats have stood still for too long."""
        if worker == self.worker:
            return False
        self.watch()
        return self._is_dead(worker)

    def _is_dead(self, worker: str) -> bool:
        with self._lock:
            seen = self._seen.setdefault(worker, (("", 0, False), time.monotonic(), False))
            return seen[0][2] or time.monotonic() - seen[1] > self.timeout

    def is_alive(self, worker: str) -> bool:
        """Whether a worker was seen to count; one that is neither alive nor dead has not been watched for long."""
        return not self.is_dead(worker) and (worker == self.worker or self._seen[worker][2])

    def living(self) -> list[str]:
        """All that are not dead, this worker among them, in order."""
        self.watch()
        return sorted({self.worker, *(name for name in list(self._seen) if not self._is_dead(name))})


class Claims:
    """Claims as trials of a second study, in the order in which the storage took them.

    The first claim of something that was not withdrawn counts. A claim changes its state once: it is done by its
    worker, or withdrawn: by its worker if it was not the first, by another if its worker is dead. The storage lets one
    of the two happen, so nothing is done twice, whoever is suspended when and comes back.

    Args:
        storage: Of the study.
        name: Of the study.
        worker: This worker.
        timeout: Seconds after which a worker whose beats stand still is dead.
    """

    def __init__(self, storage: BaseStorage, name: str, worker: str, timeout: float) -> None:
        self.storage = storage
        self.worker = worker
        study = optuna.create_study(storage=storage, study_name=f"{name} claims", load_if_exists=True)
        self.study_id = study._study_id
        self.workers = Workers(storage, self.study_id, worker, timeout)

    def standing(self) -> dict[str, Claim]:
        """The claim that counts, for everything that is claimed."""
        found: dict[str, Claim] = {}
        for trial in self.storage.get_all_trials(self.study_id, deepcopy=False):
            claim = _claim_of(trial)
            if claim is not None:
                found.setdefault(claim.what, claim)
        return found

    def take(self, what: str, pool: str = "") -> bool:
        """Claim something, from a dead worker if need be.

        Returns:
            Whether this worker has it, and it is not done.
        """
        claim = self.standing().get(what)
        if claim is not None and not claim.done and self.workers.is_dead(claim.worker):
            logger.warning(f"worker {claim.worker} is gone; its {what} is taken over.")
            self._withdraw(claim)
            claim = self.standing().get(what)
        if claim is not None:
            return claim.worker == self.worker and not claim.done
        attributes = {"what": what, "worker": self.worker, "pool": pool}
        template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        own = self.storage.create_new_trial(self.study_id, template_trial=template)
        first = self.standing().get(what)
        if first is not None and first.worker == self.worker:
            return not first.done
        mine = _claim_of(self.storage.get_trial(own))
        if mine is not None:
            self._withdraw(mine)
        return False

    def finish(self, what: str, record: str) -> None:
        """Say that something is done, and what came out of it.

        Raises:
            ClaimLostError: If this worker does not have it any more.
        """
        claim = self.standing().get(what)
        if claim is None or claim.worker != self.worker:
            raise ClaimLostError(what)
        try:
            self.storage.set_trial_user_attr(claim.trial_id, "record", record)
            self.storage.set_trial_state_values(claim.trial_id, TrialState.COMPLETE, values=[0.0])
        except UpdateFinishedTrialError as error:
            # done, where the storage took the call and went away before it could say so
            if self.storage.get_trial(claim.trial_id).state != TrialState.COMPLETE:
                raise ClaimLostError(what) from error

    def _withdraw(self, claim: Claim) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # done in the meantime, or withdrawn by another
            self.storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)


def _claim_of(trial: FrozenTrial) -> Claim | None:
    """What a trial of the study of claims says; None if it was withdrawn."""
    if trial.state == TrialState.FAIL:
        return None
    done = trial.state == TrialState.COMPLETE
    told = trial.user_attrs
    return Claim(
        told["what"], told["worker"], told["pool"], done, told.get("record") if done else None, trial._trial_id
    )
