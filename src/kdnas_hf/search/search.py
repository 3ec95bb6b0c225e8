"""`ArchitectureSearch`: the episodes of KD-NAS on top of Trainer, and the distillation of the best."""

from __future__ import annotations

import copy
import functools
import gc
import hashlib
import json
import math
import os
import shutil
import tempfile
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
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..distillation import (
    DistillationTrainer,
    DistillationTrainingArguments,
    HiddenStateStatistics,
    StudentPool,
    Teacher,
    TeacherStateCache,
    cache_teacher_states,
    cacheable_features,
    check_cacheable,
    last_whole_checkpoint,
    place_teacher,
    text_lengths,
)
from ..distillation.pool_memory import halves, is_out_of_memory, split_by_memory, training_bytes
from ..distillation.state_caching import CACHE_FOLDER
from ..latency import DeviceFingerprint, LatencyBenchmark
from ..run_directory import check_writable, disk_full_reason, refuse_other_run, settle_configuration
from ..students import KDNASConfig, KDNASModel
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
        self.teacher_layers = check_search(self.teacher, self.space, self.args, self.training_args)
        self.longest_text = 0
        for name in ("train", "proxy", "heldout"):
            lengths = text_lengths(getattr(self, f"{name}_dataset"))
            if len(lengths) == 0:
                raise ValueError(f"{name}_dataset is empty; give more text.")
            longest = max(lengths)
            self.longest_text = max(self.longest_text, longest)
            check_length(
                f"{name}_dataset has a text of {longest} tokens; truncate to max_length",
                longest,
                student_config(self.teacher, example_of(self.space)),
            )
        features = cacheable_features(self.training_args, self.teacher, self.teacher_layers)
        for texts in (self.proxy_dataset, self.train_dataset):
            check_cacheable(
                self.teacher, [texts, self.heldout_dataset], features, self._training_arguments(self.folder)
            )

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
        if self.training_args.teacher_in_bf16:
            self.teacher.to_dtype(torch.bfloat16)
        self._cache_states()
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
                        self._measure_within_memory(study, episode, pool, statistics, progress)
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
        limit = self.args.max_pool_memory_gb
        numbers = list(chosen)
        pools = []
        for start in range(0, len(numbers), size):
            sizes = {
                number: training_bytes(
                    student_config(self.teacher, chosen[number]), self.teacher, self.training_args, self.longest_text
                )
                for number in numbers[start : start + size]
            }
            pools += split_by_memory(sizes, None if limit is None else limit * 1e9)
        return pools

    def _measure_within_memory(
        self,
        study: SearchStudy | None,
        episode: int,
        pool: Mapping[int, Architecture],
        statistics: HiddenStateStatistics | None,
        progress: tqdm,
    ) -> None:
        """Measure a pool; if memory runs out, each half of it, and a candidate that does not fit alone has failed."""
        try:
            self._measure_pool(study, episode, pool, statistics, progress)
            return
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.training_args.world_size > 1:  # other processes may be waiting inside a collective call
                raise SearchError(
                    f"out of memory with {len(pool)} candidates in a pool: {error} Set max_pool_memory_gb or a smaller "
                    "pool_size."
                ) from error
            logger.warning(f"out of memory with {len(pool)} candidates in a pool: {error}")
        # only now, as the error held what was allocated
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        numbers = list(pool)
        if len(numbers) == 1:
            assert study is not None
            candidates = {candidate.name: candidate for candidate in self._time_candidates(study, episode, pool)}
            NASSearchCallback(
                study, candidates, self.reward, on_record=lambda record: self._announce(record, progress)
            ).record_all()
            return
        for half in halves(numbers):
            part = {number: pool[number] for number in half}
            self._measure_within_memory(study, episode, part, statistics, progress)

    def _measure_pool(
        self,
        study: SearchStudy | None,
        episode: int,
        pool: Mapping[int, Architecture],
        statistics: HiddenStateStatistics | None,
        progress: tqdm,
    ) -> None:
        """Latency and mini-KD of some candidates of an episode, which train together."""
        finished = self._from_main([n for n in pool if study.is_finished(n)] if study is not None else None)
        if len(finished) == len(pool):
            return
        if finished and self._last_checkpoint(self._pool_folder(episode, pool)) is None:
            # measured in a smaller pool, as memory ran out, before an interruption
            pool = {number: architecture for number, architecture in pool.items() if number not in finished}
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
            trainer = self._trainer(
                students,
                self._mini_kd_arguments(folder),
                self.proxy_dataset,
                statistics,
                [callback],
                self.proxy_states,
            )
            if not self._train(trainer, folder):
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
        place_teacher(self.teacher, self.training_args)
        # a sharded teacher computes only if all processes call it
        if not self._from_main(path.is_file()) and (self.is_main or self.teacher.is_sharded):
            with self._clock("teacher_statistics"):
                statistics = HiddenStateStatistics.from_texts(
                    self.teacher,
                    self.proxy_dataset,
                    self.teacher_layers,
                    count=self.training_args.statistics_sentences,
                    batch_size=self.training_args.per_device_eval_batch_size,
                    seed=self.training_args.seed,
                    states=self.proxy_states,
                )
                if self.is_main:
                    temporary = path.with_suffix(".tmp")
                    statistics.save(temporary)
                    os.replace(temporary, path)
        self._from_main(None)
        return HiddenStateStatistics.load(path)

    def _cache_states(self) -> None:
        """Compute the teacher's states of the proxy set and of the held-out texts once for all pools, if that pays."""
        self.proxy_states: TeacherStateCache | None = None
        self.heldout_states: TeacherStateCache | None = None
        if self._from_main((self.folder / RESULTS_FILE).is_file()):
            return
        args = self._training_arguments(self.folder)
        pools = math.ceil(self.args.candidates_per_episode / (self.args.pool_size or self.args.candidates_per_episode))
        with self._clock("teacher_states"):
            place_teacher(self.teacher, args)
            states = cache_teacher_states(
                self.teacher,
                [self.proxy_dataset, self.heldout_dataset],
                cacheable_features(args, self.teacher, self.teacher_layers),
                args,
                passes=self.args.mini_kd_epochs * self.args.num_episodes * pools,
                wait=self._wait,
            )
        if states is not None:
            self.proxy_states, self.heldout_states = states

    def _wait(self) -> None:
        self._from_main(None)

    def _trainer(
        self,
        students: Mapping[str, KDNASConfig],
        training_args: DistillationTrainingArguments,
        dataset: datasets.Dataset,
        statistics: HiddenStateStatistics | None,
        callbacks: Sequence[TrainerCallback] = (),
        states: TeacherStateCache | None = None,
    ) -> DistillationTrainer:
        return DistillationTrainer(
            model=StudentPool.create(students, self.teacher, training_args),
            teacher=self.teacher,
            args=training_args,
            train_dataset=dataset,
            eval_dataset=self.heldout_dataset,
            statistics=statistics,
            callbacks=[*self.callbacks, *callbacks],
            train_states=states,
            eval_states=self.heldout_states,
        )

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
        return args

    def _distil(
        self, best: Sequence[ArchitectureRecord], statistics: HiddenStateStatistics | None
    ) -> list[DistilledStudent]:
        """Distil the best architectures on the full corpus, together, and save them."""
        results = self.folder / RESULTS_FILE
        folder = self.folder / "distillation"
        if self.is_main:  # what a process left that died while it saved a student
            for leftover in self.folder.glob(f".{STUDENT_FOLDER}*-*"):
                shutil.rmtree(leftover, ignore_errors=True)
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
            trainer = self._trainer(
                {name: student_config(self.teacher, architecture) for name, architecture in architectures.items()},
                args,
                self.train_dataset,
                statistics,
                [self.tracker],
            )
            self._train(trainer, folder)
            metrics = trainer.evaluate()
        students: list[DistilledStudent] = []
        if self.is_main:
            students = self._save_students(trainer, best, metrics)
        students = self._from_main(students)
        if not students:
            raise SearchError("every student diverged during the full distillation; lower the learning rate.")
        if self.is_main:
            _write_atomically(self.folder / LOG_FILE, json.dumps(trainer.state.log_history, indent=1))
            _write_atomically(results, json.dumps([asdict(s) for s in students], indent=2))
            self._clean_up(folder)
        return students

    def _clean_up(self, distillation: Path) -> None:
        """Remove what a finished search no longer needs."""
        shutil.rmtree(distillation, ignore_errors=True)
        shutil.rmtree(self.folder / "episodes", ignore_errors=True)
        if self.training_args.cache_dir is None:
            shutil.rmtree(self.folder / CACHE_FOLDER, ignore_errors=True)

    def _save_students(
        self, trainer: DistillationTrainer, records: Sequence[ArchitectureRecord], metrics: Mapping[str, float]
    ) -> list[DistilledStudent]:
        """Save the students, the best as ``student``, the others as ``student_2`` and so on."""
        found = []
        for record, name in zip(records, trainer.pool.members, strict=True):
            prefix = "eval_" if len(records) == 1 else f"eval_{name}_"
            if f"{prefix}loss" not in metrics:
                continue  # diverged
            loss = metrics[prefix + self.reward.metric]
            layer = f"{prefix}r2_layer_"
            student = DistilledStudent(
                path=STUDENT_FOLDER,
                architecture=record.architecture,
                loss=loss,
                r2=metrics[f"{prefix}r2"],
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
            self._save_student(trainer, name, self.folder / path)
            students.append(DistilledStudent(**{**vars(student), "path": path}))
        return students

    def _save_student(self, trainer: DistillationTrainer, name: str, folder: Path) -> None:
        """Write beside the target, then rename: a directory of that name is always whole."""
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=self.folder))
        trainer.pool.models[name].save_pretrained(temporary)
        self.teacher.tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)

    def _train(self, trainer: DistillationTrainer, folder: Path) -> bool:
        """Train, from the last checkpoint if there is one.

        Returns:
            False if the checkpoint is that of the end: it is loaded and evaluated, and no step is made.
        """
        checkpoint = self._last_checkpoint(folder)
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            if trainer.restore(checkpoint) and state.global_step < state.max_steps:
                trainer.train(resume_from_checkpoint=checkpoint)
                return True
            trainer.state = state
            trainer.evaluate()
            return False
        trainer.train()
        return True

    def _last_checkpoint(self, folder: Path) -> str | None:
        """The last whole checkpoint; one that was being written when the process died is removed."""
        checkpoint = last_whole_checkpoint(folder, self.training_args.world_size) if self.is_main else None
        if checkpoint is not None:
            logger.info(f"resuming from {checkpoint}")
        return self._from_main(None if checkpoint is None else str(checkpoint))

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
        _write_atomically(self.folder / COST_FILE, json.dumps(self.cost, indent=2))


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
    """Number of texts, and a digest of some of them at even spacing."""
    count = len(dataset)
    digest = hashlib.sha256()
    for index in range(0, count, max(count // 256, 1)):
        digest.update(repr(list(dataset[index]["input_ids"])).encode())
    return f"{count} texts, {digest.hexdigest()[:12]}"


def _read_log(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
