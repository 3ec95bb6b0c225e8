"""Leases: what one of several workers does at a time, and which of the workers are alive."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from transformers.utils import logging

from ..utils.atomic_files import write_atomically
from .storage import impatient

logger = logging.get_logger(__name__)

WORKER_FILE = "worker.json"
ALONE = "alone"  # the worker of a study that is not shared
BEATS_IN_TIMEOUT = 6
ENDED = "ended"  # a worker's last beat


class Workers:
    """The workers of a study, by the heartbeats that they leave in its attributes.

    No clock is compared with that of another machine: a worker is dead if its heartbeat has stood still for ``timeout``
    seconds of the clock of the one who watches.
    """

    def __init__(self, storage: BaseStorage, study_id: int, worker: str, timeout: float) -> None:
        self.storage = storage
        self.study_id = study_id
        self.worker = worker
        self.timeout = timeout
        self._seen: dict[str, tuple[str, float, bool]] = {}  # last beat, since when, whether it was seen to change
        self._watched = time.monotonic()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat from now on, and watch the others."""
        self.beat()
        self._thread.start()

    def stop(self) -> None:
        """Say that this worker has ended, so that nobody waits for it."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
            with impatient(), contextlib.suppress(Exception):  # the storage is away: others see it later
                self.beat(ENDED)

    def beat(self, value: str = "") -> None:
        """Leave a heartbeat that is like no other."""
        self.storage.set_study_user_attr(self.study_id, self.worker, value or uuid.uuid4().hex)

    def _beat_on(self) -> None:
        with impatient():
            while not self._stopped.wait(self.timeout / BEATS_IN_TIMEOUT):
                try:
                    self.beat()
                    self.alive()
                except Exception as error:  # the storage is away: the search says so, and others wait as well
                    logger.debug(f"heartbeat: {error}")

    def alive(self) -> dict[str, bool | None]:
        """Look at everybody's heartbeat: whether each worker is alive; None where that is not known yet."""
        beats = self.storage.get_study_user_attrs(self.study_id)
        with self._lock:
            now = time.monotonic()
            # this worker was suspended itself, or the storage was away: nobody was watched
            afresh = now - self._watched > self.timeout / 2
            self._watched = now
            alive: dict[str, bool | None] = {}
            for name, beat in beats.items():
                last, since, moved = self._seen.get(name, (beat, now, False))
                since, moved = (now if afresh or beat != last else since), moved or beat != last
                self._seen[name] = (beat, since, moved)
                alive[name] = False if beat == ENDED or now - since > self.timeout else moved or None
        return alive | {self.worker: True}


class Leases:
    """Leases as trials of a second study, in the order in which the storage took them.

    The first one of something that was not given back counts. It changes its state once: its worker finishes it, or it
    is given back, by its worker or, if that is dead, by another. The storage lets one of the two happen, so nothing is
    done twice, whoever is suspended when and comes back.
    """

    def __init__(self, storage: BaseStorage, name: str, worker: str, timeout: float) -> None:
        self.storage = storage
        self.worker = worker
        optuna.create_study(storage=storage, study_name=f"{name} leases", load_if_exists=True)
        self.study_id = storage.get_study_id_from_name(f"{name} leases")
        self.workers = Workers(storage, self.study_id, worker, timeout)

    def acquire(self, what: str) -> bool | None:
        """Take something, from a dead worker if need be.

        Returns:
            Whether it is this worker's, finished or not; None if that is not known yet.
        """
        alive = self.workers.alive()
        for lease in self._standing(what):
            holder = lease.user_attrs["worker"]
            if holder == self.worker or lease.state == TrialState.COMPLETE:
                return holder == self.worker
            if alive.get(holder) is not False:
                return False if alive.get(holder) else None
            logger.warning(f"worker {holder} is gone; its {what} is taken over.")
            self._end(what, holder, TrialState.FAIL)
        self._write(what, TrialState.RUNNING)
        if self.holder(what) == self.worker:
            return True
        self.release(what)  # another was faster
        return None

    def finish(self, what: str) -> bool:
        """Say that something is done, for ever; and whether it was this worker's to the end."""
        self._end(what, self.worker, TrialState.COMPLETE, [0.0])
        return self.holder(what) == self.worker

    def release(self, what: str) -> bool:
        """Give something back, for whoever wants it next; and say whether it was this worker's to the end."""
        kept = self.holder(what) == self.worker
        self._end(what, self.worker, TrialState.FAIL)
        return kept

    def holder(self, what: str) -> str | None:
        """The worker that has something, or has finished it."""
        return next((lease.user_attrs["worker"] for lease in self._standing(what)), None)

    def first(self, what: str, value: Any) -> Any:
        """The first value that a worker gave something, as JSON has it: this one if there is none yet."""
        if not self._standing(what):
            self._write(what, TrialState.COMPLETE, values=[0.0], value=value)
        return self._standing(what)[0].user_attrs["value"]

    def _standing(self, what: str) -> list[FrozenTrial]:
        trials = self.storage.get_all_trials(self.study_id, deepcopy=False)
        return [trial for trial in trials if trial.user_attrs["what"] == what and trial.state != TrialState.FAIL]

    def _write(self, what: str, state: TrialState, values: list[float] | None = None, **attributes: Any) -> None:
        told = {"what": what, "worker": self.worker, **attributes}
        self.storage.create_new_trial(self.study_id, create_trial(state=state, values=values, user_attrs=told))

    def _end(self, what: str, worker: str, state: TrialState, values: list[float] | None = None) -> None:
        for lease in self._standing(what):  # several where the storage took a call and could not say so
            if lease.user_attrs["worker"] == worker:
                with contextlib.suppress(UpdateFinishedTrialError):  # another was faster
                    self.storage.set_trial_state_values(lease._trial_id, state, values)


def worker_of(folder: Path, study: str | None) -> str:
    """The worker that a run directory belongs to: the same when it is started again, and another in a copy.

    Raises:
        ValueError: If it belongs to one of another study than that of this name; None is a study that is not shared.
    """
    path = folder / WORKER_FILE
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    told: dict[str, Any] = {"study": study, "where": None}
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
    if told["study"] != study:
        raise ValueError(
            f"output_dir={str(folder)!r} is that of a worker; give the storage of its study and "
            f"study_name={told['study']!r}, or choose another output_dir."
        )
    if study is None:
        return ALONE
    if told["where"] != where:
        told = {"worker": f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}", "study": study, "where": where}
        write_atomically(path, json.dumps(told))
    return told["worker"]
