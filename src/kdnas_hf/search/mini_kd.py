"""`MiniKD`: the short distillation of several architectures on the proxy set, by which they are compared."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from ..distillation import DistillationTrainer, HiddenStateStatistics, StudentPool
from ..distillation.distill import train_or_resume
from ..distillation.losses import LOSSES
from ..distillation.pool import required_by
from ..distillation.samples import estimate_statistics
from ..distillation.stored_targets import reason_against_storing, store_if_it_pays
from ..distillation.targets import Targets
from ..distillation.teacher_outputs import Required
from ..students import Architecture
from ..utils.atomic_files import remove_directory, write_atomically
from ..utils.memory import is_out_of_memory
from .callback import NASSearchCallback, Reading, read_qualities
from .setting import SearchSetting
from .trial import OUT_OF_MEMORY

logger = logging.get_logger(__name__)

STATISTICS_FILE = "teacher_statistics.safetensors"


class MiniKD:
    """Distills pools of students alike: the same texts in the same order, from targets that are made once.

    ``required`` are the teacher outputs that some architecture of the space learns from.
    """

    def __init__(self, setting: SearchSetting, required: Required) -> None:
        self.setting, self.required = setting, required
        self.train_texts: Any = setting.proxy_dataset
        self.heldout_texts: Any = setting.heldout_dataset
        self.statistics: HiddenStateStatistics | None = None

    # ---- what all pools share ----

    def check(self) -> None:
        """Refuse a cache of targets that was asked for and has no room: ValueError."""
        setting = self.setting
        if setting.training_args.cache_teacher_states != "true":
            return
        for texts in (setting.proxy_dataset, setting.train_dataset):
            both, args = [texts, setting.heldout_dataset], setting.arguments(setting.folder)
            reason = reason_against_storing(setting.teacher, both, self.required, self._storable, args, passes=1)
            if reason is not None:
                raise ValueError(f"cache_teacher_states=true: {reason}")

    @property
    def _storable(self) -> bool:
        return all(LOSSES[name].storable for name in self.setting.training_args.loss_weights)

    def has_targets_for(self, architecture: Architecture) -> bool:
        """Whether a shape, which need not be a member of the space, learns from what is required for the space."""
        depths = [architecture.num_hidden_layers]
        try:
            needed = required_by(self.setting.training_args, self.setting.teacher, depths)
        except ValueError:  # the layer mapping is not for so many layers
            return False
        return needed | self.required == self.required

    def prepare(self, store: bool) -> None:
        """Store the targets of both texts if asked to and if that pays, and estimate the teacher's statistics."""
        setting, search = self.setting, self.setting.args
        setting.teacher.to(setting.training_args.device)
        pools = math.ceil(search.candidates_per_episode / (search.pool_size or search.candidates_per_episode))
        if store:
            with setting.cost.clock("teacher_states"):
                stored = store_if_it_pays(
                    setting.teacher,
                    [self.train_texts, self.heldout_texts],
                    self.required,
                    self._storable,
                    setting.arguments(setting.folder),
                    passes=search.mini_kd_epochs * (search.num_episodes * pools + search.confirm_seeds),
                    wait=setting.wait,
                )
            if stored is not None:
                self.train_texts, self.heldout_texts = stored
        if setting.training_args.hidden_state_normalization != "none" and self.required.hidden_states:
            self.statistics = self._statistics(setting.folder / STATISTICS_FILE)

    def _statistics(self, path: Path) -> HiddenStateStatistics:
        """The teacher's statistics for every layer that any candidate may learn from; estimated once for a run."""
        setting = self.setting
        if not setting.from_main(path.is_file) and setting.is_main:
            with setting.cost.clock("teacher_statistics"):
                args = setting.training_args
                targets = Targets(setting.teacher, self.required, args.teacher_torch_dtype)
                write_atomically(path, estimate_statistics(targets, self.train_texts, args, args.device).save)
        setting.wait()
        return HiddenStateStatistics.load(path)

    # ---- a pool ----

    def search(self, architectures: Mapping[str, Architecture], folder: Path, callback: NASSearchCallback) -> None:
        """Distill candidates, and tell the study what came of it."""
        trainer = self._trainer(architectures, folder, self.setting.training_args.seed, [callback])
        try:
            if not train_or_resume(trainer):  # only its result was lost
                trainer.evaluate()
            callback.tell_all(trainer.pool)
        except Exception as error:
            # of several students the trainer drops those that do not fit
            if len(architectures) > 1 or self.setting.training_args.world_size > 1 or not is_out_of_memory(error):
                raise
            (name,) = architectures
            logger.warning(f"{name} is dropped: {error}")
            callback.tell_failure(name, OUT_OF_MEMORY)
        del trainer
        self.clean_up(folder)

    def measure(self, architectures: Mapping[str, Architecture], folder: Path, seed: int) -> dict[str, Reading]:
        """Distill architectures with another seed; readings of those that neither diverged nor ran out of memory.

        Who has kept them calls `clean_up`.
        """
        trainer = self._trainer(architectures, folder, seed, [])
        train_or_resume(trainer)
        trainer.evaluate()
        return read_qualities(trainer.pool, self.setting.quality)

    def _trainer(
        self, architectures: Mapping[str, Architecture], folder: Path, seed: int, callbacks: Sequence[TrainerCallback]
    ) -> DistillationTrainer:
        setting = self.setting
        args = setting.arguments(
            folder,
            seed=seed,
            num_train_epochs=setting.args.mini_kd_epochs,
            max_steps=-1,
            push_to_hub=False,
            load_best_model_at_end=False,
            stages=None,  # they are of the full distillation
            cache_teacher_states="false",  # that was decided for all pools
        )
        students = {name: setting.student_config(one) for name, one in architectures.items()}
        return DistillationTrainer(
            model=StudentPool.create(students, setting.teacher, args),
            teacher=setting.teacher,
            args=args,
            train_dataset=self.train_texts,
            eval_dataset=self.heldout_texts,
            statistics=self.statistics,
            callbacks=[*setting.callbacks, *callbacks],
        )

    def clean_up(self, folder: Path) -> None:
        """Free the memory of a pool, and its checkpoints."""
        gc.collect()
        self.setting.wait()
        if self.setting.is_main:
            remove_directory(folder)
