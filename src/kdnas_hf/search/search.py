"""`ArchitectureSearch`: the episodes of KD-NAS on top of Trainer, and the distillation of the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, TypeVar

import datasets
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from ..data.batching import digest_of_texts, text_lengths
from ..distillation import DistillationTrainingArguments, Teacher, teacher_shape
from ..distillation.losses import agreement_of
from ..export.budgets import Budget
from ..latency import LatencyBenchmark
from ..students import Architecture
from ..utils.run_directory import check_writable, disk_full_reason, refuse_other_run, settle_configuration, settled
from .arguments import SearchArguments
from .callback import NASSearchCallback
from .checks import check_length, check_search, example_of
from .configuration import resolve_configuration
from .confirm import choose, confirm, finalists
from .controllers import make_controller
from .controllers.base import ArchitectureSampler
from .controllers.rules_of_thumb import load_hand_list
from .full_distillation import SearchError, clean_up, distill_chosen, distilled_before, read_log
from .mini_kd import MiniKD
from .report import write_report
from .result import Confirmation, SearchResult
from .reward import HeldoutQuality, Quality, RewardFunction
from .setting import SearchSetting
from .space import SearchSpace
from .study import SearchStudy
from .timing import ShapeTiming
from .tracking import SearchTracker
from .trial import STOPPED, Trial
from .warm_start import read_warm_start

logger = logging.get_logger(__name__)

LOCK_FILE = ".lock"
ENDING = "confirmation and full distillation"  # of all workers one has it

T = TypeVar("T")


class ArchitectureSearch:
    """KD-NAS: candidates chosen by a controller, distilled on a proxy set and measured; the best is distilled in full.

    Every measured architecture is on the disk the moment it is measured; a search that is started again in the same
    directory goes on where it was. Under ``accelerate launch`` with several processes all of them train, and the main
    process measures latency and keeps the study.

    Args:
        teacher: The teacher.
        space: The search space.
        train_dataset: The full corpus as ``input_ids``.
        proxy_dataset: The part of it that candidates are distilled on.
        heldout_dataset: Text that no student is trained on.
        args: Arguments of the search.
        training_args: Arguments of every distillation; ``output_dir`` is the run directory, ``num_train_epochs`` (or
            ``max_steps``) is for the full distillation.
        controller: An Optuna sampler of ours that chooses candidates, in place of the one that ``args`` names.
        reward: A function of quality and `Latency`, in place of that of ``args``.
        quality: A measure of students, in place of the held-out one.
        constraints: Further budgets, and functions that say of an architecture whether it may be proposed.
        latency_benchmark: Measures latency; by default as ``args`` say, on this machine.
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
        *,
        controller: ArchitectureSampler | None = None,
        reward: RewardFunction | None = None,
        quality: Quality | None = None,
        constraints: Sequence[Budget | Callable[[Architecture], bool]] = (),
        latency_benchmark: LatencyBenchmark | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        budget = reduce(Budget.stricter, [one for one in constraints if isinstance(one, Budget)], args.budget)
        predicates = [one for one in constraints if not isinstance(one, Budget)]
        required = check_search(teacher, space, args, training_args)
        self.setting = SearchSetting(
            teacher,
            space,
            train_dataset,
            proxy_dataset,
            heldout_dataset,
            args,
            training_args,
            reward or args.reward_function,
            quality or HeldoutQuality(args.reward_function.layers, agreement_of(training_args.loss_weights)),
            budget,
            list(callbacks),
        )
        self.controller = controller
        self.is_main, self.folder = self.setting.is_main, self.setting.folder
        self._study: SearchStudy | None = None
        report_to = training_args.report_to if self.is_main and isinstance(training_args.report_to, list) else []
        self.tracker = SearchTracker(report_to, self.folder, budget)
        self.timing = ShapeTiming(self.setting, latency_benchmark or args.latency_benchmark, predicates)
        self.mini_kd = MiniKD(self.setting, required)
        self._check_texts()
        self.mini_kd.check()
        self.configuration = resolve_configuration(
            teacher,
            space,
            args,
            training_args,
            texts={name: _identity(getattr(self.setting, f"{name}_dataset")) for name in ("train", "proxy", "heldout")},
            extra=configuration or {},
        )

    def _check_texts(self) -> None:
        example = self.setting.student_config(example_of(self.setting.space))
        for name in ("train_dataset", "proxy_dataset", "heldout_dataset"):
            lengths = text_lengths(getattr(self.setting, name))
            if len(lengths) == 0:
                raise ValueError(f"{name} is empty; give more text.")
            complaint = f"{name} has a text of {max(lengths)} tokens; truncate to max_length"
            check_length(complaint, max(lengths), example)

    # ---- the run ----

    def run(self) -> SearchResult:
        """Search, confirm and distil the best, and write the report.

        Raises:
            ValueError: If the output directory cannot be written, or holds a run of another configuration.
            SearchError: If no architecture meets the constraints, or the disk is full.
        """
        try:
            with self._open_study():
                return self._run()
        except Exception as error:
            reason = disk_full_reason(error)
            if reason is None:
                raise
            raise SearchError(
                f"the disk is full, of output_dir={str(self.folder)!r} or of the cache ({reason}). "
                "Free some space and start the same search again: it goes on where it was."
            ) from error

    @property
    def study(self) -> SearchStudy:
        """The study while the search runs; the main process alone has it."""
        assert self._study is not None
        return self._study

    def _run(self) -> SearchResult:
        setting = self.setting
        setting.cost.start()
        everywhere = setting.on_main(self._study)
        setting.wait()  # nobody goes on before the directory is settled
        if self.is_main:
            self.timing.look_at_budgets(self.study)
            self.tracker.begin(self.configuration, self.study.trials())
        self.mini_kd.prepare(store=setting.from_main(self._anything_to_train))
        self._search()
        confirmations: list[Confirmation] = []
        students = []
        if self._when_ready(lambda: self.study.acquire(ENDING)):
            confirmations = self._confirm()
            chosen = setting.from_main(lambda: choose(setting, confirmations, self.study.trials()))
            texts, statistics = self.mini_kd.heldout_texts, self.mini_kd.statistics
            students = distill_chosen(setting, chosen, texts, statistics, self.tracker)
            everywhere.finish(ENDING)
        else:
            holder = everywhere.holder(ENDING)
            logger.info(f"worker {holder} distils the students, in its own output_dir; this one has ended.")
            clean_up(setting)
        result = SearchResult(
            folder=self.folder,
            trials=everywhere.trials(),
            confirmations=confirmations if setting.args.confirm else [],
            students=students,
            latency_method=setting.from_main(self.timing.latencies.describe),
            quality_label=setting.quality.label,
            cost=setting.cost.seconds,
            log_history=read_log(self.folder),
        )
        if self.is_main:
            setting.cost.total()
            if setting.args.storage is not None:
                setting.cost.add("storage", self.study.storage_seconds)
            self._write_report(result)
        return result

    @contextmanager
    def _open_study(self) -> Iterator[None]:
        """Have the study of the run directory, or that of all workers, while no other process searches there."""
        if not self.is_main:
            yield
            return
        args = self.setting.args
        check_writable(self.folder)
        try:
            # a killed launcher may leave the process that it launched alive
            lock = FileLock(self.folder / LOCK_FILE, timeout=0).acquire()
        except Timeout as error:
            raise ValueError(
                f"output_dir={str(self.folder)!r} is in use by another process that searches; wait for it or end it."
            ) from error
        with lock:
            refuse_other_run(self.folder, self.configuration, resume=args.resume)
            earlier = None
            if args.warm_start is not None:
                earlier = read_warm_start(args.warm_start, self.setting.space, self.configuration)
            study = self._study = SearchStudy(
                self.folder,
                self._controller(),
                settled(self.configuration),
                budget=self.setting.budget,
                objective=args.objective,
                storage=args.storage,
                name=args.study_name,
                worker_timeout=args.worker_timeout,
                asynchronous=args.asynchronous,
            )
            try:
                # only now: it is the configuration of the study
                settle_configuration(self.folder, self.configuration, resume=args.resume)
                if earlier:
                    study.add(earlier)
                yield
            finally:
                self._study = None
                self.tracker.end()
                study.close()

    def _controller(self) -> ArchitectureSampler:
        if self.controller is not None:
            return self.controller
        setting = self.setting
        return make_controller(
            setting.args.controller,
            setting.space,
            setting.args.candidates_per_episode,
            seed=setting.training_args.seed,
            epsilon=setting.args.epsilon,
            teacher=teacher_shape(setting.teacher),
            hand=load_hand_list(setting.args.hand, setting.space) if setting.args.hand else (),
        )

    # ---- ask, filter by budget, measure, tell ----

    def _search(self) -> None:
        setting = self.setting
        with self._progress() as progress:
            while pool := self._when_ready(self._ask):
                trials = setting.on_main(self.timing).time(self._study, pool)
                if trials:
                    callback = NASSearchCallback(
                        self._study,
                        {trial.name: trial for trial in trials},
                        setting.reward,
                        setting.quality,
                        setting.args.halving,
                        on_result=lambda trial: self._announce(trial, progress),
                    )
                    span = f"{trials[0].number:04d}-{trials[-1].number:04d}"
                    folder = self.folder / "episodes" / f"{trials[0].episode:03d}-{span}"
                    with setting.cost.clock("mini_kd"):
                        self.mini_kd.search({one.name: one.architecture for one in trials}, folder, callback)
                if self.is_main:
                    progress.update(len(self.study.trials()) - progress.n)  # other workers' results, too
        if self.is_main and len(machines := self.study.machines()) > 1:
            logger.warning(
                "latencies of this study were measured on different machines; speed-ups are comparable where the "
                f"machines are: {'; '.join(sorted(machines))}"
            )

    def _ask(self) -> list[Trial] | None:
        """The pool to train next; empty at the end, None while other workers have what is left."""
        args = self.setting.args
        episodes = 0 if self._has_enough() else args.num_episodes
        return self.study.ask(args.pool_size or args.candidates_per_episode, episodes)

    def _has_enough(self) -> bool:
        """Whether a limit of the search is reached, other than its episodes."""
        args = self.setting.args
        if args.max_hours is not None and self.setting.cost.total() > 3600 * args.max_hours:
            logger.info(f"max_hours={args.max_hours:g} are spent; the search ends with what it has.")
            return True
        study, sampler = self.study.study, self.study.sampler
        promise = sampler.promise(study, len(study.trials)) if args.min_improvement else None
        if promise is not None and promise < args.min_improvement:
            logger.info(f"the next candidate is expected to improve the best reward by {promise:.2%}: enough.")
            return True
        return False

    @property
    def _planned(self) -> int:
        """Architectures that are measured if nothing ends the search before."""
        args = self.setting.args
        return min(args.num_episodes * args.candidates_per_episode, self.setting.space.size)

    def _anything_to_train(self) -> bool:
        return len(self.study.trials()) < self._planned or not distilled_before(self.folder)

    def _when_ready(self, ask: Callable[[], T | None]) -> T:
        """What the main process gets from the study, once other workers are ready; in every process."""
        started, args = time.monotonic(), self.setting.args
        while (answer := self.setting.from_main(ask)) is None:
            # short, and not in the main process alone: nobody stays in a collective call for as long as this may take
            time.sleep(min(args.worker_timeout / 20, 5.0))
        if args.storage is not None:
            self.setting.cost.add("waiting", time.monotonic() - started)
        return answer

    # ---- the end ----

    def _confirm(self) -> list[Confirmation]:
        """The best once more, beside rules of thumb and random shapes."""
        setting = self.setting
        best = setting.from_main(lambda: finalists(setting, self.study.trials()))
        if not best:
            widest = (setting.args.budgets or [setting.budget])[0]
            raise SearchError(
                f"none of the measured architectures meets the budget: {str(widest) or 'any latency'} (or all of them "
                "diverged); allow smaller shapes in the search space, or a smaller speedup or a larger latency_budget."
            )
        predict = self.timing.latency_model(self.study) if self.is_main else None
        return confirm(setting, setting.on_main(self._study), self.mini_kd, best, self.timing.time_closely, predict)

    # ---- what is seen of it ----

    def _write_report(self, result: SearchResult) -> None:
        write_report(
            result,
            self.setting.args,
            teacher=self.setting.teacher.name,
            reward=str(self.setting.reward),
            space_size=self.setting.space.size,
        )

    def _progress(self) -> tqdm:
        return tqdm(
            total=self._planned,
            desc="search",
            unit="architecture",
            initial=len(self.study.trials()) if self.is_main else 0,
            disable=self.setting.training_args.disable_tqdm or not self.is_main,
        )

    def _announce(self, trial: Trial, progress: tqdm) -> None:
        """One line for each measured architecture, and the best of them beside the progress bar."""
        self.tracker.record(trial)
        progress.set_description(f"episode {trial.episode + 1}/{self.setting.args.num_episodes}")
        best = self.tracker.best
        if best is not None:
            progress.set_postfix_str(f"best: {best.architecture}, reward {best.reward:.3f}, {best.speedup:.1f}x")
        label = self.setting.quality.label
        figures = trial.failure or f"{label} {trial.quality:.3f}  loss {trial.loss:.3f}  reward {trial.reward:.3f}"
        stopped = "  (stopped early)" if trial.state == STOPPED else ""
        assert trial.latency is not None
        logger.info(
            f"#{trial.number:<3d} {trial.architecture!s:<36} {figures}  {trial.latency.student_ms:.1f} ms = "
            f"{trial.speedup:.1f}x{stopped}"
        )


def _identity(dataset: datasets.Dataset) -> str:
    """Number of texts, and a digest of all of them."""
    return f"{len(dataset)} texts, {digest_of_texts(dataset)[:12]}"
