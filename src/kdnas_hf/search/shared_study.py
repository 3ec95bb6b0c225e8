"""A study that several workers share: each takes candidates that no one has, and all learn from everybody's results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from transformers.utils import logging

from ..utils.atomic_files import write_atomically
from ..utils.run_directory import configuration_differences
from .budgets import UNLIMITED, LatencyBudget
from .claims import ClaimLostError, Claims
from .controllers import ArchitectureSampler, architecture_of
from .ledger import ArchitectureRecord
from .space import Architecture
from .storage import open_storage, public_storage
from .study import CONFIGURATION, MACHINE, SearchStudy, StudyChangedError

logger = logging.get_logger(__name__)

WORKER_FILE = "worker.json"
BEGINNING = "beginning"
DISTILLATION = "full distillation"


class SharedStudy(SearchStudy):
    """`SearchStudy` in a storage that other workers use at the same time.

    An episode's candidates are chosen by one worker, the same ones whichever it is. Each candidate is trained by the
    worker that claims it. Of the results only the claim's holder can record one, and it does so in the claim itself:
    whoever sees that tells it to the study, so no result is lost between the two. The ledger has this worker's lines
    the moment they are measured, and those of the whole study from each episode's end.

    Args:
        folder: This worker's run directory.
        sampler: The controller.
        storage: Address of the storage, see `open_storage`.
        configuration: That of the search; the same for all workers.
        name: Of the study in the storage.
        budget: Hard constraint: slower architectures are recorded, but are not feasible.
        worker_timeout: Seconds after which a worker that gives no sign of life is dead.
        objective: See `SearchStudy`.

    Raises:
        ValueError: If the storage cannot be opened, or its study or the run directory is that of another search.
    """

    def __init__(
        self,
        folder: str | Path,
        sampler: ArchitectureSampler,
        storage: str,
        configuration: Mapping[str, Any],
        name: str = "kdnas",
        budget: LatencyBudget = UNLIMITED,
        worker_timeout: float = 120.0,
        objective: str = "reward",
    ) -> None:
        self.name = name
        self.address = public_storage(storage)
        self.storage = open_storage(storage)
        self.worker = worker_of(Path(folder), name)
        self.claims = Claims(self.storage, name, self.worker, worker_timeout)
        self.poll_seconds = min(worker_timeout / 20, 5.0)
        self._waiting_for = ""
        self.claims.workers.start()
        try:
            self._settle(configuration)
            super().__init__(folder, sampler, budget, objective)
        except BaseException:
            self.claims.workers.stop()
            raise
        logger.info(f"worker {self.worker} of study {name!r} in {self.address}")

    def close(self) -> None:
        """End this worker: what it has not done is free for others at once."""
        with contextlib.suppress(Exception):
            self.ledger.set_to(self.records())
        self.claims.workers.stop()

    @property
    def storage_seconds(self) -> float:
        """Time that this thread has spent with the storage, in seconds."""
        return self.storage.clock.seconds  # type: ignore[attr-defined]

    # ---- opening ----

    def _open(self) -> optuna.Study:
        return optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            sampler=self.sampler,
            directions=self.directions,
            load_if_exists=True,
        )

    def _settle(self, configuration: Mapping[str, Any]) -> None:
        """The first worker's configuration is that of the study."""
        now = json.loads(json.dumps(configuration, default=str))
        before = json.loads(self._once(CONFIGURATION, lambda: json.dumps(now)))
        differences = configuration_differences(before, now)
        if differences:
            shown = "\n  ".join(differences)
            raise ValueError(
                f"study_name={self.name!r} in storage={self.address!r} is a search of another configuration:\n  "
                f"{shown}\nGive the same configuration to work on it, or choose another study_name."
            )

    def _once(self, what: str, do: Callable[[], str]) -> str:
        """What came out of something that one worker does, and for which the others wait."""
        while True:
            claim = self.claims.standing().get(what)
            if claim is not None and claim.record is not None:
                return claim.record
            if self.claims.take(what):
                with contextlib.suppress(ClaimLostError):
                    self.claims.finish(what, do())
            else:
                time.sleep(self.poll_seconds)

    def begin(self, earlier: Sequence[ArchitectureRecord] | None) -> None:
        """Take over another run's results, if the study has not begun yet."""

        def take_over() -> str:
            SearchStudy.begin(self, earlier)
            return str(self.sampler.first_number)

        self.sampler.first_number = int(self._once(BEGINNING, take_over))
        if earlier is not None and not self.sampler.first_number:
            logger.warning("warm_start has no effect: the study has begun without.")

    def _bring_into_step(self) -> None:
        self._tell_what_is_done()
        in_study = {record.number: record for record in self.records()}
        strange = [record for record in self.ledger.read() if in_study.get(record.number) != record]
        if strange:
            raise ValueError(
                f"output_dir={str(self.folder)!r} holds {len(strange)} measured architecture(s) that study_name="
                f"{self.name!r} in storage={self.address!r} does not have; choose another output_dir, and hand them "
                "over with warm_start when the study begins."
            )
        self.ledger.set_to(in_study.values())

    # ---- candidates ----

    def candidates(self, episode: int) -> dict[int, Architecture] | None:
        """The candidates of an episode by trial number; None while another worker chooses them."""
        what = f"choice of episode {episode + 1}"
        claim = self.claims.standing().get(what)
        if claim is not None and claim.record is not None:
            trials = self.study.get_trials(deepcopy=False)
            known = {number: architecture_of(trials[number]) for number in json.loads(claim.record)}
            self.ledger.set_to(self.records())
            return {number: architecture for number, architecture in known.items() if architecture is not None}
        if not self.claims.take(what):
            self._say_waiting(f"worker {claim.worker if claim else ''} to choose the candidates")
            return None
        try:
            chosen = super().candidates(episode) or {}
            self.claims.finish(what, json.dumps(list(chosen)))
        except (ClaimLostError, StudyChangedError):
            return None
        return chosen

    def take(self, chosen: Mapping[int, Architecture], pool_size: int = 0) -> list[int] | None:
        """Candidates that this worker trains next, together.

        Args:
            chosen: The candidates of an episode.
            pool_size: How many at most; 0: a fair share of those that are free.

        Returns:
            Trial numbers; none while all that are left are with other workers; None when all have their result.
        """
        self._tell_what_is_done()
        left = [number for number in chosen if not self.is_finished(number)]
        if not left:
            return None
        standing = self.claims.standing()
        at_work = {claim.worker for claim in standing.values() if not claim.done}
        mine = [standing[_candidate(n)] for n in left if _candidate(n) in standing]
        mine = [claim for claim in mine if claim.worker == self.worker]
        if mine:  # from before this worker was interrupted: the whole pool, as its checkpoint has it
            return [
                number
                for number in chosen
                if (claim := standing.get(_candidate(number))) is not None
                and (claim.worker, claim.pool) == (self.worker, mine[0].pool)
            ]
        living = self.claims.workers.living()
        holders = {number: standing[_candidate(number)].worker for number in left if _candidate(number) in standing}
        free = [number for number in left if holders.get(number) not in living]
        if not free:
            self._say_waiting(f"{len(left)} candidate(s) of {', '.join(sorted(set(holders.values())))}")
            return []
        idle = [worker for worker in living if worker == self.worker or worker not in at_work]
        share = pool_size or math.ceil(len(free) / len(idle))
        # workers that come at the same time begin at different candidates
        start = idle.index(self.worker) * share % len(free)
        return self._claim([*free[start:], *free[:start]], share)

    def _claim(self, numbers: Sequence[int], count: int) -> list[int]:
        pool = uuid.uuid4().hex[:8]
        taken: list[int] = []
        for number in numbers:
            if len(taken) < count and self.claims.take(_candidate(number), pool):
                taken.append(number)
        self._waiting_for = ""
        return sorted(taken)

    def _say_waiting(self, what: str) -> None:
        if what != self._waiting_for:
            logger.info(f"waiting for {what}")
        self._waiting_for = what

    # ---- results ----

    def record(self, record: ArchitectureRecord) -> bool:
        """Record a result in this worker's claim, the study and the ledger, if it still has the candidate."""
        try:
            self.claims.finish(_candidate(record.number), record.to_json())
        except ClaimLostError:
            logger.warning(
                f"#{record.number} was handed to another worker, as this one gave no sign of life for "
                f"{self.claims.workers.timeout:.0f} seconds (worker_timeout); its result does not count."
            )
            return False
        return super().record(record)

    def report(self, number: int, value: float, step: int) -> None:
        """Report the progress of a running trial."""
        with contextlib.suppress(UpdateFinishedTrialError):
            super().report(number, value, step)

    def _tell(self, record: ArchitectureRecord) -> None:
        with contextlib.suppress(UpdateFinishedTrialError):  # another worker saw the result in the claim and told it
            super()._tell(record)

    def _tell_what_is_done(self) -> None:
        """Tell the study what workers recorded that died before they could."""
        for claim in self.claims.standing().values():
            if claim.record is None or not claim.what.startswith(_candidate("")):
                continue
            record = ArchitectureRecord.from_json(claim.record)
            if not self.is_finished(record.number):
                self._tell(record)

    def machines(self) -> set[str]:
        """The machines on which latency was measured."""
        trials = self.study.get_trials(deepcopy=False)
        return {trial.user_attrs[MACHINE] for trial in trials if MACHINE in trial.user_attrs}

    # ---- the full distillation ----

    def may_distil(self) -> bool | None:
        """Whether the full distillation is this worker's; None while its worker may be dead."""
        if self.claims.take(DISTILLATION):
            return True
        claim = self.claims.standing().get(DISTILLATION)
        if claim is None:
            return None
        if claim.worker == self.worker:
            return True  # done here before
        if claim.done or self.claims.workers.is_alive(claim.worker):
            return False
        self._say_waiting(f"a sign of life of worker {claim.worker}, which distils the students")
        return None

    def distilled(self) -> None:
        """Say that the full distillation is done."""
        try:
            self.claims.finish(DISTILLATION, self.worker)
        except ClaimLostError:
            logger.warning("the full distillation was taken over by another worker as well.")

    def distiller(self) -> str | None:
        """The worker that distils the students, or has."""
        claim = self.claims.standing().get(DISTILLATION)
        return None if claim is None else claim.worker


def worker_of(folder: Path, study: str) -> str:
    """The worker that a run directory belongs to: the same when it is started again, and another in a copy.

    Raises:
        ValueError: If it belongs to another study.
    """
    path = folder / WORKER_FILE
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    if path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["study"] != study:
            raise ValueError(
                f"output_dir={str(folder)!r} is of a worker of study_name={told['study']!r}; give that one, or choose "
                "another output_dir."
            )
        if told["where"] == where:
            return told["worker"]
    worker = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
    write_atomically(path, json.dumps({"worker": worker, "study": study, "where": where}))
    return worker


def _candidate(number: int | str) -> str:
    return f"candidate {number}"
