"""`ArchitectureSearch`: the episodes of KD-NAS on top of Trainer, and the distillation of the best."""

from __future__ import annotations

import copy
import functools
import gc
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from ..data.batching import digest_of_texts, text_lengths
from ..distillation import (
    DistillationTrainer,
    DistillationTrainingArguments,
    HiddenStateStatistics,
    StudentPool,
    Teacher,
    distill,
)
from ..distillation.distill import train_or_resume
from ..distillation.losses import LOSSES
from ..distillation.samples import estimate_statistics
from ..distillation.stored_targets import CACHE_FOLDER, reason_against_storing, store_if_it_pays
from ..distillation.targets import Targets
from ..latency import DeviceFingerprint, LatencyBenchmark
from ..students import KDNASModel
from ..utils.atomic_files import remove_leftovers, replace_directory, write_atomically
from ..utils.memory import is_out_of_memory
from ..utils.run_directory import check_writable, disk_full_reason, refuse_other_run, settle_configuration
from .arguments import SearchArguments
from .callback import Candidate, NASSearchCallback
from .checks import check_length, check_search, example_of, student_config
from .configuration import resolve_configuration
from .controllers import make_controller
from .latencies import ArchitectureLatencies
from .ledger import ArchitectureRecord
from .report import recommend, write_report
from .result import DistilledStudent, SearchResult
from .shared_study import WORKER_FILE, SharedStudy
from .space import Architecture, SearchSpace
from .study import SearchStudy
from .tracking import SearchTracker
from .warm_start import read_warm_start

logger = logging.get_logger(__name__)

STATISTICS_FILE = "teacher_statistics.safetensors"
RESULTS_FILE = "distillation.json"
COST_FILE = "cost.json"
LOG_FILE = "distillation_log.json"
STUDENT_FOLDER = "student"
LOCK_FILE = ".lock"

T = TypeVar("T")


class SearchError(RuntimeError):
    """A search that ended without a student."""


class ArchitectureSearch:
    """KD-NAS: episodes of candidates chosen by a controller, distilled on a proxy set and measured.

    Every measured architecture is on the disk the moment it is measured; a search that is started again in the same
    directory goes on where it was. Under ``accelerate launch`` with several processes all of them train, and the main
    process measures latency and keeps the study.

    Args:
        teacher: The teacher.
        space: The search space.
        train_dataset: The full corpus as ``input_ids``.
        proxy_dataset: The part of it that candidates are distilled on.
        heldout_dataset: Text that no student is trained on.
        args: Of the search.
        training_args: Of every distillation; ``output_dir`` is the run directory, ``num_train_epochs`` (or
            ``max_steps``) is for the full distillation.
        latency_benchmark: What measures latency; by default as ``args`` say, on this machine.
        callbacks: For every trainer of the search.
        configuration: What else the result depends on (the data, say); a run directory is only resumed with the same.

    Raises:
        ValueError: If something does not fit together, before anything slow starts.
    """

    def __init__(
        self,
        teacher: Teacher,
        space: SearchSpace,
        train_dataset: datasets.Dataset,
        proxy_dataset: datasets.Dataset,
        heldout_dataset: datasets.Dataset,
        args: SearchArguments,
        training_args: DistillationTrainingArguments,
        latency_benchmark: LatencyBenchmark | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        self.teacher = teacher
        self.space = space
        self.train_dataset = train_dataset
        self.proxy_dataset = proxy_dataset
        self.heldout_dataset = heldout_dataset
        self.args = args
        self.training_args = training_args
        self.callbacks = list(callbacks)
        self.reward = args.reward_function
        self.folder = Path(training_args.output_dir or "runs")
        report_to = training_args.report_to if self.is_main and isinstance(training_args.report_to, list) else []
        self.tracker = SearchTracker(report_to, self.folder, args.budget)
        self.benchmark = latency_benchmark or LatencyBenchmark(
            batch_size=args.latency_batch_size,
            sequence_length=args.latency_sequence_length,
            threads=args.latency_threads,
            repeats=args.latency_repeats,
        )
        self.latencies = ArchitectureLatencies(
            teacher, lambda one: student_config(teacher, one), self.benchmark, args.latency_backend
        )
        self._check()
        self.configuration = resolve_configuration(
            teacher,
            space,
            args,
            training_args,
            texts={
                "train": _identity(train_dataset),
                "proxy": _identity(proxy_dataset),
                "heldout": _identity(heldout_dataset),
            },
            extra=configuration or {},
        )

    def _check(self) -> None:
        """Everything that could fail late, checked early."""
        self.required = check_search(self.teacher, self.space, self.args, self.training_args)
        for name in ("train", "proxy", "heldout"):
            lengths = text_lengths(getattr(self, f"{name}_dataset"))
            if len(lengths) == 0:
                raise ValueError(f"{name}_dataset is empty; give more text.")
            longest = max(lengths)
            check_length(
                f"{name}_dataset has a text of {longest} tokens; truncate to max_length",
                longest,
                student_config(self.teacher, example_of(self.space)),
            )
        if self.training_args.cache_teacher_states == "true":
            args = self._training_arguments(self.folder)
            for texts in (self.proxy_dataset, self.train_dataset):
                both = [texts, self.heldout_dataset]
                reason = reason_against_storing(self.teacher, both, self.required, self._storable, args, passes=1)
                if reason is not None:
                    raise ValueError(f"cache_teacher_states=true: {reason}")

    @property
    def _storable(self) -> bool:
        return all(LOSSES[name].storable for name in self.training_args.loss_weights)

    # ---- processes ----

    @property
    def is_main(self) -> bool:
        """Whether this process keeps the study and measures latency."""
        return self.training_args.process_index == 0

    def _from_main(self, value: Any) -> Any:
        """What the main process has, in every process."""
        if self.training_args.world_size == 1:
            return value
        return broadcast_object_list([value])[0]

    # ---- the run ----

    def run(self) -> SearchResult:
        """Search, distil the best, and write the report.

        Raises:
            ValueError: If the output directory cannot be written, or holds a run of another configuration.
            SearchError: If no architecture meets the constraints, or the disk is full.
        """
        try:
            return self._run_alone() if self.is_main else self._run()
        except Exception as error:
            reason = disk_full_reason(error)
            if reason is None:
                raise
            raise SearchError(
                f"the disk is full, of output_dir={str(self.folder)!r} or of the cache ({reason}). "
                "Free some space and start the same search again: it goes on where it was."
            ) from error

    def _run_alone(self) -> SearchResult:
        """Search while no other process does in the same directory."""
        check_writable(self.folder)
        try:
            # a killed launcher may leave the process that it launched alive
            with FileLock(self.folder / LOCK_FILE, timeout=0):
                return self._run()
        except Timeout as error:
            raise ValueError(
                f"output_dir={str(self.folder)!r} is in use by another process that searches; wait for it or end it."
            ) from error

    def _run(self) -> SearchResult:
        study = self._open_study() if self.is_main else None
        try:
            return self._run_on(study)
        finally:
            self.tracker.end()
            if study is not None:
                study.close()

    def _open_study(self) -> SearchStudy:
        """Settle the directory, and open its study or that of all workers."""
        refuse_other_run(self.folder, self.configuration, resume=self.args.resume)
        if self.args.storage is None and (self.folder / WORKER_FILE).is_file():
            raise ValueError(
                f"output_dir={str(self.folder)!r} is that of a worker; give the storage of its study, or choose "
                "another output_dir."
            )
        earlier = None
        if self.args.warm_start is not None:
            earlier = read_warm_start(self.args.warm_start, self.space, self.configuration)
        controller = make_controller(
            self.args.controller,
            self.space,
            self.args.candidates_per_episode,
            seed=self.training_args.seed,
            epsilon=self.args.epsilon,
        )
        study: SearchStudy
        if self.args.storage is None:
            settle_configuration(self.folder, self.configuration, resume=self.args.resume)
            study = SearchStudy(self.folder, controller, self.args.budget, self.args.objective)
        else:
            study = SharedStudy(
                self.folder,
                controller,
                self.args.storage,
                self.configuration,
                name=self.args.study_name,
                budget=self.args.budget,
                worker_timeout=self.args.worker_timeout,
                objective=self.args.objective,
            )
            # only now: it is the configuration of the study
            settle_configuration(self.folder, self.configuration, resume=self.args.resume)
        try:
            study.keep_configuration(self.configuration)
            study.begin(earlier)
        except BaseException:
            study.close()
            raise
        return study

    def _run_on(self, study: SearchStudy | None) -> SearchResult:
        started = time.monotonic()
        self._from_main(None)  # nobody goes on before the directory is settled
        self.cost = self._load_cost()
        self.teacher.to(self.training_args.device)
        self._store_targets()
        statistics = self._statistics()
        if study is not None:
            self.tracker.begin(self.configuration, study.records())
        self._search(study, statistics)
        best = self._from_main(self._winners(study) if study is not None else None)
        if not best:
            widest = (self.args.budgets or [self.args.budget])[0]
            raise SearchError(
                f"none of the measured architectures meets the budget: {str(widest) or 'any latency'} (or all of them "
                "diverged); allow smaller shapes in the search space, or a smaller speedup or a larger latency_budget."
            )
        students = self._distil(best, statistics) if self._may_distil(study) else []
        if students and isinstance(study, SharedStudy):
            study.distilled()
        result = SearchResult(
            folder=self.folder,
            records=self._from_main(study.records() if study is not None else None),
            students=students,
            latency_method=self._from_main(self.latencies.describe() if self.is_main else None),
            cost=self.cost,
            log_history=_read_log(self.folder / LOG_FILE),
            curves=study.curves() if study is not None else {},
        )
        if self.is_main:
            self._add_cost("total", time.monotonic() - started)
            if isinstance(study, SharedStudy):
                self._add_cost("storage", study.storage_seconds)
            write_report(result, self.args, self.teacher.name, self.reward, self.space)
        return result

    def _may_distil(self, study: SearchStudy | None) -> bool:
        """Whether this worker distils the students of the study; one of all workers does."""
        if self.args.storage is None:
            return True
        may = self._when_ready(lambda: study.may_distil() if isinstance(study, SharedStudy) else None)
        if not may and isinstance(study, SharedStudy):
            logger.info(f"worker {study.distiller()} distils the students, in its own output_dir; this one has ended.")
            self._clean_up(self.folder / "distillation")
        return may

    def _when_ready(self, ask: Callable[[], T | None]) -> T:
        """What the main process gets from the study, once other workers are ready; in every process."""
        started = time.monotonic()
        while (answer := self._from_main(ask())) is None:
            # short, and not in the main process alone: nobody stays in a collective call for as long as this may take
            time.sleep(self._poll_seconds)
        if self.args.storage is not None and self.is_main:
            self._add_cost("waiting", time.monotonic() - started)
        return answer

    @property
    def _poll_seconds(self) -> float:
        return min(self.args.worker_timeout / 20, 5.0)

    def _winners(self, study: SearchStudy) -> list[ArchitectureRecord]:
        """The architectures to distil on the full corpus: the best, or those that are best for a budget."""
        if self.args.budgets is None:
            return study.best(self.args.top_k)
        records = study.records()
        best = [recommend(records, budget) for budget in self.args.budgets]
        return list({record.number: record for record in best if record is not None}.values())

    def _search(self, study: SearchStudy | None, statistics: HiddenStateStatistics | None) -> None:
        earlier = self._from_main(study.sampler.first_number if study is not None else 0)
        planned = min(self.args.num_episodes * self.args.candidates_per_episode + earlier, self.space.size)
        with tqdm(
            total=planned,
            desc="search",
            unit="architecture",
            initial=self._from_main(len(study.records()) if study is not None else 0),
            disable=self.training_args.disable_tqdm or not self.is_main,
        ) as progress:
            self._show_best(progress)
            for episode in range(self.args.num_episodes):
                progress.set_description(f"episode {episode + 1}/{self.args.num_episodes}")
                chosen = self._when_ready(functools.partial(_candidates, study, episode))
                if not chosen:
                    logger.info(f"all {self.space.size} architectures of the space are measured.")
                    break
                while taken := self._when_ready(functools.partial(_take, study, chosen, self.args.pool_size)):
                    for numbers in self._pools({number: chosen[number] for number in taken}):
                        pool = {number: chosen[number] for number in numbers}
                        self._measure_pool(study, episode, pool, statistics, progress)
                if study is not None:  # other workers' results
                    progress.update(len(study.records()) - progress.n)
            if isinstance(study, SharedStudy) and len(study.machines()) > 1:
                logger.warning(
                    "latencies of this study were measured on different machines; speed-ups are comparable where the "
                    f"machines are: {'; '.join(sorted(study.machines()))}"
                )

    def _pools(self, chosen: Mapping[int, Architecture]) -> list[list[int]]:
        """The candidates of an episode in groups that train together."""
        size = self.args.pool_size or len(chosen)
        numbers = list(chosen)
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def _measure_pool(
        self,
        study: SearchStudy | None,
        episode: int,
        pool: Mapping[int, Architecture],
        statistics: HiddenStateStatistics | None,
        progress: tqdm,
    ) -> None:
        """Latency and mini-KD of some candidates of an episode, which train together."""
        if self._from_main(study is not None and all(study.is_finished(number) for number in pool)):
            return
        folder = self._pool_folder(episode, pool)
        candidates = self._from_main(self._time_candidates(study, episode, pool) if study is not None else None)
        with self._clock("mini_kd"):
            callback = NASSearchCallback(
                study,
                {candidate.name: candidate for candidate in candidates},
                self.reward,
                self.args.halving,
                self.args.budget,
                on_record=lambda record: self._announce(record, progress),
            )
            students = {c.name: student_config(self.teacher, c.architecture) for c in candidates}
            args = self._mini_kd_arguments(folder)
            trainer = DistillationTrainer(
                model=StudentPool.create(students, self.teacher, args),
                teacher=self.teacher,
                args=args,
                train_dataset=self.proxy_texts,
                eval_dataset=self.heldout_texts,
                statistics=statistics,
                callbacks=[*self.callbacks, callback],
            )
            try:
                if not train_or_resume(trainer):
                    trainer.evaluate()
                    callback.record_all()
            except Exception as error:
                # of several candidates the trainer drops those that do not fit
                if len(students) > 1 or self.training_args.world_size > 1 or not is_out_of_memory(error):
                    raise
                logger.warning(f"{candidates[0].name} is dropped: {error}")
                callback.record_all()
            del trainer, students
            gc.collect()
        if self.is_main:
            shutil.rmtree(folder, ignore_errors=True)

    def _pool_folder(self, episode: int, pool: Collection[int]) -> Path:
        return self.folder / "episodes" / f"{episode:03d}-{_span(pool)}"

    def _announce(self, record: ArchitectureRecord, progress: tqdm) -> None:
        """One line for each measured architecture, and the best of them beside the progress bar."""
        progress.update()
        self.tracker.record(record)
        self._show_best(progress)
        figures = (
            "diverged"
            if record.state == "failed"
            else f"R² {record.r2:.3f}  loss {record.loss:.3f}  reward {record.reward:.3f}"
        )
        stopped = "  (stopped early)" if record.state == "stopped" else ""
        slow = "" if self.args.budget.met_by(record) else "  (too slow)"
        logger.info(
            f"#{record.number:<3d} {record.architecture!s:<36} {figures}  {record.latency_ms:.1f} ms = "
            f"{record.speedup:.1f}x{slow}{stopped}"
        )

    def _show_best(self, progress: tqdm) -> None:
        best = self.tracker.best
        if best is not None:
            progress.set_postfix_str(f"best: {best.architecture}, reward {best.reward:.3f}, {best.speedup:.1f}x")

    # ---- latency ----

    def _time_candidates(self, study: SearchStudy, episode: int, pool: Mapping[int, Architecture]) -> list[Candidate]:
        """Candidates with their latency; what was measured before an interruption is kept."""
        missing = {number: architecture for number, architecture in pool.items() if study.latency(number) is None}
        if missing:
            with self._clock("latency"):
                measured = self.latencies.measure(missing)
            for number, latency in measured.items():
                machine = str(DeviceFingerprint.of(self.benchmark.device))
                study.set_latency(number, (latency.median_ms, latency.iqr_ms, latency.teacher_ms), machine)
        candidates = []
        for number, architecture in pool.items():
            known = study.latency(number)
            assert known is not None
            candidates.append(Candidate(number, episode, architecture, self._parameters(architecture), *known))
        return candidates

    def _parameters(self, architecture: Architecture) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in KDNASModel(student_config(self.teacher, architecture)).parameters())

    # ---- distillation ----

    def _statistics(self) -> HiddenStateStatistics | None:
        """The teacher's statistics for every layer that any candidate may learn from; estimated once for a run."""
        if self.training_args.hidden_state_normalization == "none":
            return None
        path = self.folder / STATISTICS_FILE
        if not self.required.hidden_states:
            return None
        if not self._from_main(path.is_file()) and self.is_main:
            with self._clock("teacher_statistics"):
                targets = Targets(self.teacher, self.required, self.training_args.teacher_torch_dtype)
                device = self.training_args.device
                write_atomically(path, estimate_statistics(targets, self.proxy_texts, self.training_args, device).save)
        self._from_main(None)
        return HiddenStateStatistics.load(path)

    def _store_targets(self) -> None:
        """Store the targets of the proxy set and of the held-out texts once for all pools, if that pays."""
        self.proxy_texts: Any = self.proxy_dataset
        self.heldout_texts: Any = self.heldout_dataset
        if self._from_main((self.folder / RESULTS_FILE).is_file()):
            return
        pools = math.ceil(self.args.candidates_per_episode / (self.args.pool_size or self.args.candidates_per_episode))
        with self._clock("teacher_states"):
            stored = store_if_it_pays(
                self.teacher,
                [self.proxy_dataset, self.heldout_dataset],
                self.required,
                self._storable,
                self._training_arguments(self.folder),
                passes=self.args.mini_kd_epochs * self.args.num_episodes * pools,
                wait=self._wait,
            )
        if stored is not None:
            self.proxy_texts, self.heldout_texts = stored

    def _wait(self) -> None:
        self._from_main(None)

    def _training_arguments(self, folder: Path) -> DistillationTrainingArguments:
        args = copy.copy(self.training_args)
        args.output_dir = str(folder)
        args.cache_dir = args.cache_dir or str(self.folder / CACHE_FOLDER)
        return args

    def _mini_kd_arguments(self, folder: Path) -> DistillationTrainingArguments:
        args = self._training_arguments(folder)
        args.num_train_epochs = self.args.mini_kd_epochs
        args.max_steps = -1
        args.save_total_limit = 1
        args.push_to_hub = False
        args.report_to = []  # what is measured is logged, not the steps of each pool
        args.load_best_model_at_end = False
        args.stages = None  # of the full distillation
        args.cache_teacher_states = "false"  # that was decided for all pools
        return args

    def _distil(
        self, best: Sequence[ArchitectureRecord], statistics: HiddenStateStatistics | None
    ) -> list[DistilledStudent]:
        """Distil the best architectures on the full corpus, together, and save them."""
        results = self.folder / RESULTS_FILE
        folder = self.folder / "distillation"
        if self.is_main:  # what a process left that died while it wrote
            remove_leftovers(self.folder)
        if results.is_file():
            if self.is_main:
                self._clean_up(folder)
            done = json.loads(results.read_text(encoding="utf-8"))
            return [DistilledStudent(**v | {"architecture": Architecture(**v["architecture"])}) for v in done]
        architectures = {f"student_{i + 1}": record.architecture for i, record in enumerate(best)}
        logger.info(f"distilling on the full corpus: {', '.join(str(a) for a in architectures.values())}")
        with self._clock("distillation"):
            args = self._training_arguments(folder)
            args.save_total_limit = 1
            args.report_to = []  # the search's tracker is a callback
            # stages may learn from other layers than the candidates did
            staged = args.stages is not None
            trainer = distill(
                {name: student_config(self.teacher, architecture) for name, architecture in architectures.items()},
                self.teacher,
                args,
                self.train_dataset,
                self.heldout_dataset if staged else self.heldout_texts,
                statistics=None if staged else statistics,
                callbacks=[*self.callbacks, self.tracker],
            )
            metrics = trainer.evaluate()
        students = self._save_students(trainer, dict(zip(architectures, best, strict=True)), metrics)
        if not students:
            raise SearchError(
                "no student is left of the full distillation; lower the learning rate if they diverged, and "
                f"per_device_train_batch_size if they did not fit: {'; '.join(trainer.pool.dropped.values())}."
            )
        if self.is_main:
            write_atomically(self.folder / LOG_FILE, json.dumps(trainer.state.log_history, indent=1))
            write_atomically(results, json.dumps([asdict(s) for s in students], indent=2))
            self._clean_up(folder)
        return students

    def _clean_up(self, distillation: Path) -> None:
        """Remove what a finished search no longer needs."""
        shutil.rmtree(distillation, ignore_errors=True)
        shutil.rmtree(self.folder / "episodes", ignore_errors=True)
        if self.training_args.cache_dir is None:
            shutil.rmtree(self.folder / CACHE_FOLDER, ignore_errors=True)

    def _save_students(
        self, trainer: DistillationTrainer, records: Mapping[str, ArchitectureRecord], metrics: Mapping[str, float]
    ) -> list[DistilledStudent]:
        """Save the students, the best as ``student``, the others as ``student_2`` and so on; each process its own."""
        found = []
        for name, record in records.items():
            prefix = "eval_" if len(records) == 1 else f"eval_{name}_"
            if f"{prefix}loss" not in metrics:
                continue  # dropped
            loss = metrics[prefix + self.reward.metric]
            layer = f"{prefix}r2_layer_"
            student = DistilledStudent(
                path=STUDENT_FOLDER,
                architecture=record.architecture,
                loss=loss,
                r2=metrics.get(f"{prefix}r2", 1 - metrics[f"{prefix}error"]),
                r2_per_layer={key.removeprefix(layer): v for key, v in metrics.items() if key.startswith(layer)},
                latency_ms=record.latency_ms,
                latency_iqr_ms=record.latency_iqr_ms,
                teacher_latency_ms=record.teacher_latency_ms,
                speedup=record.speedup,
                parameters=record.parameters,
                tokens=int(metrics["eval_trained_tokens"]),
                reward=self.reward(loss, record.latency_ms, record.teacher_latency_ms),
            )
            found.append((name, student))
        found.sort(key=lambda item: -item[1].reward)
        students = []
        for rank, (name, student) in enumerate(found, start=1):
            path = STUDENT_FOLDER if rank == 1 else f"{STUDENT_FOLDER}_{rank}"
            # a lone student is in every process
            if name in trainer.pool.models and (trainer.pool.divided or self.is_main):
                self._save_student(trainer, name, self.folder / path)
            students.append(DistilledStudent(**{**vars(student), "path": path}))
        self._wait()
        return students

    def _save_student(self, trainer: DistillationTrainer, name: str, folder: Path) -> None:
        """A directory of that name is always whole."""

        def save(made: Path) -> None:
            trainer.pool.models[name].save_pretrained(made)
            self.teacher.tokenizer.save_pretrained(made)

        replace_directory(folder, save)

    # ---- cost ----

    def _load_cost(self) -> dict[str, float]:
        path = self.folder / COST_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            if self.is_main:
                self._add_cost(stage, time.monotonic() - started)

    def _add_cost(self, stage: str, seconds: float) -> None:
        self.cost[stage] = round(self.cost.get(stage, 0.0) + seconds, 1)
        write_atomically(self.folder / COST_FILE, json.dumps(self.cost, indent=2))


def _candidates(study: SearchStudy | None, episode: int) -> dict[int, Architecture] | None:
    return study.candidates(episode) if study is not None else None


def _take(study: SearchStudy | None, chosen: Mapping[int, Architecture], pool_size: int) -> list[int] | None:
    """Candidates to train next; none when all have their result, None while other workers have what is left."""
    if study is None:
        return None
    taken = study.take(chosen, pool_size)
    return [] if taken is None else taken or None


def _span(numbers: Collection[int]) -> str:
    """A name for trials that are trained together."""
    first, last = min(numbers), max(numbers)
    gaps = (
        "" if len(numbers) == last - first + 1 else "-" + hashlib.sha256(repr(sorted(numbers)).encode()).hexdigest()[:8]
    )
    return f"{first:04d}-{last:04d}{gaps}"


def _identity(dataset: datasets.Dataset) -> str:
    """Number of texts, and a digest of all of them."""
    return f"{len(dataset)} texts, {digest_of_texts(dataset)[:12]}"


def _read_log(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
