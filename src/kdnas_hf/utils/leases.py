"""Leases: what one of several workers does at a time, and which of the workers are alive."""

from __future__ import annotations

import contextlib
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

from .atomic_files import write_atomically
from .shared_storage import CLOCK

logger = logging.get_logger(__name__)

WORKER_FILE = "worker.json"
ALONE = "alone"  # the worker of a study that is not shared
BEATS_IN_TIMEOUT = 6
ENDED = "ended"  # a worker's last beat


class Leases:
    """Leases as trials of a second study, in the order in which the storage took them.

    The first one of something that was not given back counts. Its state changes once: it is finished, or given back, by
    its worker or, if that is dead, by another. So nothing is done twice, whoever is suspended and comes back.

    Workers leave heartbeats in the study's attributes. No clock is compared with that of another machine: a worker is
    dead if its heartbeat has stood still for ``timeout`` seconds of the clock of the one who watches.
    """

    def __init__(self, storage: BaseStorage, name: str, worker: str, timeout: float) -> None:
        self.storage, self.worker, self.timeout = storage, worker, timeout
        optuna.create_study(storage=storage, study_name=f"{name} leases", load_if_exists=True)
        self.study_id = storage.get_study_id_from_name(f"{name} leases")
        self._seen: dict[str, tuple[str, float, bool]] = {}  # last beat, since when, whether it was seen to change
        self._watched = time.monotonic()
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat from now on, and watch the others."""
        self._beat(uuid.uuid4().hex)
        self._thread.start()

    def stop(self) -> None:
        """Say that this worker has ended, so that nobody waits for it."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    def _beat(self, value: str) -> None:
        self.storage.set_study_user_attr(self.study_id, self.worker, value)

    def _beat_on(self) -> None:
        CLOCK.patience = 1.0
        ended = False
        while not ended:
            ended = self._stopped.wait(self.timeout / BEATS_IN_TIMEOUT)
            with contextlib.suppress(Exception):  # the storage is away: the search says so, and others wait as well
                self._beat(ENDED if ended else uuid.uuid4().hex)
                self.alive()

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

    def acquire(self, what: str) -> bool | None:
        """Take something; whether it is this worker's, finished or not. None if that is not known yet: ask again."""
        alive = self.alive()
        for lease in self._standing(what):
            holder = lease.user_attrs["worker"]
            if holder == self.worker or lease.state == TrialState.COMPLETE:
                return holder == self.worker
            if alive.get(holder) is not False:
                return False if alive.get(holder) else None
            logger.warning(f"worker {holder} is gone; its {what} is taken over.")
            self._end(what, holder, TrialState.FAIL)
        self._write(what, TrialState.RUNNING)
        return True if self.holder(what) == self.worker else self.release(what) or None

    def finish(self, what: str) -> None:
        """Say that something is done, for ever."""
        self._end(what, self.worker, TrialState.COMPLETE, [0.0])
        if self.holder(what) != self.worker:
            logger.warning(f"{what} was taken over by another worker as well (worker_timeout).")

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
        attributes |= {"what": what, "worker": self.worker}
        self.storage.create_new_trial(self.study_id, create_trial(state=state, values=values, user_attrs=attributes))

    def _end(self, what: str, worker: str, state: TrialState, values: list[float] | None = None) -> None:
        for lease in self._standing(what):  # several where the storage took a call and could not say so
            if lease.user_attrs["worker"] == worker:
                with contextlib.suppress(UpdateFinishedTrialError):  # another was faster
                    self.storage.set_trial_state_values(lease._trial_id, state, values)


def worker_of(folder: Path, study: str | None) -> str:
    """The worker that a run directory belongs to, or a new one; a copy of a directory is another worker's.

    Raises:
        ValueError: If it belongs to a worker of another study than this; None is one that is not shared.
    """
    path = folder / WORKER_FILE
    told: dict[str, Any] = {"study": study, "folder": None}
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
    if told["study"] != study:
        remedy = f"give the storage of its study and study_name={told['study']!r}, or choose another output_dir."
        raise ValueError(f"output_dir={str(folder)!r} is that of a worker; {remedy}")
    if study is None:
        return ALONE
    here = told["folder"] == str(folder.resolve())
    return str(told["worker"]) if here else f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"


def keep_worker(folder: Path, worker: str, study: str) -> None:
    """Let a run directory be that of a worker."""
    told = {"worker": worker, "study": study, "folder": str(folder.resolve())}
    write_atomically(folder / WORKER_FILE, json.dumps(told))
