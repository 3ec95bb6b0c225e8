"""`DistillationTrainer`: a Trainer whose model learns the outputs of a frozen teacher."""

from __future__ import annotations

import contextlib
import copy
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..data.batching import SamplerEpochCallback
from ..data.labels import IGNORED_LABEL, LABELS
from ..students import KDNASConfig, KDNASModel
from ..utils.attention import eager_attention
from ..utils.memory import is_out_of_memory
from ..utils.progress import StepProgressCallback
from ..utils.random_state import drawing, seed_of
from .arguments import DistillationTrainingArguments
from .batch import DistillationBatch
from .checkpoints import PoolCheckpoints
from .contract import check_trainer_arguments
from .heldout import HeldoutEvaluation
from .labelled_texts import check_labelled_texts, classifies_tokens, padding_collator
from .loading import TextLoading
from .pool import StudentPool
from .publishing import ONE_STUDENT, StudentPublishing
from .samples import estimate_statistics, fit_losses
from .statistics import HiddenStateStatistics
from .stored_targets import StoredTargets, StoredTargetsCollator, cache_folder, store_if_it_pays
from .student_outputs import TaskStudent
from .targets import Targets
from .teacher import Teacher

logger = logging.get_logger(__name__)


class DistillationTrainer(TextLoading, HeldoutEvaluation, PoolCheckpoints, StudentPublishing, Trainer):
    """Distils a teacher into a student, or into a whole pool of students at once, by the losses that ``args`` name.

    Used as any Trainer; what it does not honor of a Trainer's arguments it refuses (see `contract`). Evaluation reports
    ``eval_loss``, the weighted sum of the losses, ``eval_<loss>_loss`` of each, and what losses measure beside it, such
    as ``eval_r2``; for a pool of several, the same for each as ``eval_<name>_…``.

    Each student steps alone, on targets that were made once for all: forward, backward, clipping. One whose loss or
    gradient is not finite, or that does not fit into memory, is dropped (see `StudentPool.dropped`), and the others go
    on. With several processes the students of a pool are divided among them; a single one is trained data-parallel.

    A task's losses read texts with ``labels``, a class or a list with one for each token, where -100 is not counted;
    the student has a head for the teacher's classes, gets one if it has none, and is saved with it. A second text in a
    row is told by its separator alone. A table of word embeddings trains in the rows that occur (see
    `OccurringWordEmbeddings`) and is saved whole.

    Args:
        model: A configuration (the student starts as ``args.student_init`` says), a student, or a pool.
        teacher: The frozen teacher; a bare model is accepted together with ``processing_class``.
        args: What to learn and how; of one stage.
        train_dataset: Texts as ``input_ids``, or `StoredTargets` of them.
        eval_dataset: Held-out texts, likewise.
        processing_class: The tokenizer, by default the teacher's; saved with the student.
        statistics: Mean and variance of the teacher's states, by default estimated from the training texts.
        **kwargs: What else `Trainer` takes.

    Raises:
        ValueError: If the student does not fit the teacher, or an argument is not honored.
    """

    args: DistillationTrainingArguments

    def __init__(
        self,
        model: KDNASConfig | KDNASModel | TaskStudent | StudentPool,
        teacher: Teacher | PreTrainedModel,
        args: DistillationTrainingArguments,
        train_dataset: Dataset | datasets.Dataset | None = None,
        eval_dataset: Dataset | datasets.Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        statistics: HiddenStateStatistics | None = None,
        **kwargs: Any,
    ) -> None:
        check_trainer_arguments(kwargs)
        if args.stages is not None:
            raise ValueError("stages: a trainer trains one of them; call kdnas_hf.distillation.distill for all.")
        if not isinstance(teacher, Teacher):
            if processing_class is None:
                raise ValueError("a bare teacher model needs processing_class=<its tokenizer>.")
            teacher = Teacher(teacher, processing_class)
        self.teacher = teacher
        pool = model if isinstance(model, StudentPool) else StudentPool.create({"student": model}, teacher, args)
        if args.push_to_hub and len(pool.names) > 1:
            raise ValueError(ONE_STUDENT)
        # exact for Adam without weight decay, which moves no row that does not occur
        adam = args.optim in ("adamw_torch", "adamw_torch_fused") and args.weight_decay == 0
        own_ways = {"optimizers", "optimizer_cls_and_kwargs", "data_collator"} & set(kwargs)
        if args.occurring_embeddings and adam and not own_ways:
            pool.train_only_occurring(train_dataset)
        self.student_max_grad_norm = args.max_grad_norm
        args = copy.copy(args)
        args.max_grad_norm = 0.0  # clipping is ours: for each student alone
        _ = args.device  # sets the number of GPUs, of which one process drives one
        args._n_gpu = min(args.n_gpu, 1)
        processing_class = processing_class or teacher.tokenizer
        for name, texts in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_labelled_texts(name, texts, pool)
            if isinstance(texts, StoredTargets):
                texts.check(name, pool.required, pool.masks_tokens)
        collator = kwargs.pop("data_collator", None) or padding_collator(processing_class, classifies_tokens(pool))
        super().__init__(
            model=pool,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=StoredTargetsCollator(collator),
            **kwargs,
        )
        # students are never wrapped: their forward passes are called one by one, and their gradients added up here
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = lambda model, **kw: prepare(model, **kw | {"evaluation_mode": True})
        if self.accelerator.scaler is not None:  # fp16: an overflow of one student is nobody else's
            self.accelerator.scaler = None
            for _, member in pool.items():
                member.scaler = torch.amp.GradScaler(self.args.device.type)
        self.masking = None
        if pool.masks_tokens:
            self.masking = DataCollatorForLanguageModeling(processing_class, mlm_probability=args.mlm_probability)
        self.add_callback(SamplerEpochCallback())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(StepProgressCallback)
        # the loss is normalized by the tokens of all micro-batches and processes
        self.model_accepts_loss_kwargs = True
        self._trained_tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self._started = time.monotonic()
        self._elapsed_before: float | None = None
        self._step_counts: dict[str, torch.Tensor] = {}
        self._micro_batch = 0
        self._grad_norm: float | None = None
        self.teacher.to(self.args.device)
        self.targets = Targets(
            teacher, pool.required, args.teacher_torch_dtype, self.accelerator if pool.divided else None
        )
        standardizes = args.hidden_state_normalization == "standardize" and bool(pool.required.hidden_states)
        if statistics is None and standardizes:
            statistics = self._estimate_statistics()
        self.targets.statistics = statistics.to(self.args.device) if statistics is not None else None
        if self.train_dataset is not None:
            fit_losses(pool, self.targets, self.train_dataset, self.args, self.accelerator)

    @property
    def pool(self) -> StudentPool:  # type: ignore[override]
        """The students that train."""
        pool = self.model  # which nothing wraps
        assert isinstance(pool, StudentPool)
        return pool

    @property
    def student(self) -> KDNASModel:
        """The student, of a pool of one."""
        if len(self.pool.names) != 1:
            raise ValueError(f"the pool holds {len(self.pool.names)} students; take one of pool.students.")
        return next(iter(self.pool.students.values()))

    @property
    def statistics(self) -> HiddenStateStatistics | None:
        """Mean and variance by which the teacher's states are standardized."""
        return self.targets.statistics

    @property
    def trained_tokens(self) -> int:
        """Real tokens that were trained on, of all processes."""
        return int(self._trained_tokens)

    def _estimate_statistics(self) -> HiddenStateStatistics:
        if self.train_dataset is None:
            raise ValueError(
                "hidden_state_normalization='standardize' estimates the teacher's statistics from train_dataset; "
                "pass it, or statistics=…, or choose hidden_state_normalization='none'."
            )
        return estimate_statistics(self.targets, self.train_dataset, self.args, self.args.device)

    # ---- the loss ----

    def _batch(
        self, inputs: Mapping[str, Any], counts: Mapping[str, torch.Tensor], masked_text: bool = False
    ) -> DistillationBatch:
        """A batch of texts with what the teacher says about it; see `DistillationBatch` and `Targets`."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        batch = DistillationBatch(ids, mask, labels=inputs.get(LABELS), **cast(Any, counts))
        self.targets(inputs, batch, masked_text)
        return batch

    def _count(self, batches: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """What losses are divided by: the tokens, texts and labels of the micro-batches of one step."""
        counts = {
            "num_tokens": torch.stack([batch["attention_mask"].sum() for batch in batches]).sum(),
            "num_texts": torch.tensor(sum(len(batch["attention_mask"]) for batch in batches)),
        }
        if LABELS in batches[0]:
            labels = torch.stack([(batch[LABELS] != IGNORED_LABEL).sum() for batch in batches]).sum()
            counts["num_labels"] = labels
        return counts

    def _training_batch(self, inputs: Mapping[str, Any], num_items_in_batch: torch.Tensor | int | None) -> Any:
        of_step = num_items_in_batch is not None and self._step_counts
        counts = dict(self._step_counts) if of_step else self._count([inputs])
        if num_items_in_batch is not None:
            counts["num_tokens"] = torch.as_tensor(num_items_in_batch)
        if "num_labels" in counts:  # a batch may be so short that nothing in it is masked
            counts["num_labels"] = counts["num_labels"].clamp_min(1)
        return self._batch(inputs, {name: n.to(self.args.device, torch.float32) for name, n in counts.items()})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the students' losses on one micro-batch; the training itself lets each of them step alone."""
        batch = self._training_batch(inputs, num_items_in_batch)
        with self.accelerator.autocast():
            losses = torch.stack([member.loss(batch) for member in self.pool.active.values()])
        return (losses.sum(), {"losses": losses}) if return_outputs else losses.sum()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Collect the micro-batches of one step, mask tokens if asked, and count real tokens in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batch = 0
        if not batches:
            return batches, None
        if self.masking is not None:
            # by the step and not by the random state: batches are fetched ahead, so that a resumed run would differ
            place = (self.state.global_step, self._own_texts)
            batches = [dict(batch) | self._mask(batch, "train", *place, number) for number, batch in enumerate(batches)]
        self._step_counts = {name: self._sum_over_texts(count) for name, count in self._count(batches).items()}
        tokens = self._step_counts["num_tokens"]
        self._trained_tokens = self._trained_tokens + tokens
        return batches, tokens

    @property
    def _own_texts(self) -> int:
        """Which share of the texts this process reads: those of its rank, or 0 where all processes read all texts."""
        return 0 if self.pool.divided else self.args.process_index

    def _sum_over_texts(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the processes that read different texts."""
        if self.args.world_size == 1 or self.pool.divided:
            return values
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum").to(values.device)

    def _mask(self, inputs: Mapping[str, torch.Tensor], *place: str | int) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels`` of a batch with tokens masked; which ones depends on the place and the seed."""
        assert self.masking is not None
        with drawing(seed_of(self.args.seed, *place)):
            input_ids, labels = self.masking.torch_mask_tokens(inputs["input_ids"].cpu().clone())
        device = inputs["input_ids"].device
        return {"input_ids": input_ids.to(device), "labels": labels.to(device)}

    # ---- a step ----

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One micro-batch: targets for all, then each student's steps alone; gives the mean of their losses."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            self.optimizer.train()  # type: ignore[union-attr]
        batch = self._training_batch(self._prepare_inputs(inputs), num_items_in_batch)
        place = (self.state.global_step, self._micro_batch, self._own_texts)
        self._micro_batch += 1
        total = torch.zeros((), device=self.args.device)
        for name, member in self.pool.active.items():
            try:
                total += member.backward(batch, self.accelerator.autocast(), *place)
            except Exception as error:
                # a student alone has nobody to go on without it, and other processes would wait for its gradient
                if not (self.pool.divided and is_out_of_memory(error)):
                    raise
                self.pool.drop(
                    name, f"out of memory at step {self.state.global_step + 1}: {str(error).splitlines()[0]}"
                )
        if self.args.torch_empty_cache_steps and self.state.global_step % self.args.torch_empty_cache_steps == 0:
            clear_device_cache()
        if self.accelerator.sync_gradients:
            self._finish_step()
        # Trainer takes the mean over processes, and here each has a part of the sum
        training = max(len(self.pool.names) - len(self.pool.dropped), 1)
        return total * self.args.world_size / training

    def _finish_step(self) -> None:
        """Clip each student's gradient by its own norm; drop those whose loss or gradient is not finite."""
        active = self.pool.active
        if not active:
            self._grad_norm = None
            self.control.should_training_stop |= not self.pool.divided or self.args.world_size == 1
            return
        if not self.pool.divided and self.args.world_size > 1:
            for member in active.values():
                member.add_up_gradients(self.accelerator)
        readings = torch.stack([member.finish() for member in active.values()])
        if not self.pool.divided and self.args.world_size > 1:  # all processes drop the same
            readings[:, 1] = (
                self.accelerator.reduce(readings[:, 1].contiguous(), reduction="sum") / self.args.world_size
            )
        squares = 0.0
        for (name, member), (norm, finite) in zip(active.items(), readings.tolist(), strict=True):
            if finite < 1:
                self.pool.drop(name, f"its loss was not finite at step {self.state.global_step + 1}")
            elif np.isfinite(norm):
                squares += norm**2
                member.clip(norm, self.student_max_grad_norm)
            elif member.scaler is not None:  # fp16: the gradient overflowed, and the next one is scaled less
                member.forget_gradient()
            else:
                self.pool.drop(name, f"its gradient was not finite at step {self.state.global_step + 1}")
        self._grad_norm = squares**0.5

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradient of all students of this process before clipping, which transformers 5 logs."""
        return self._grad_norm

    # ---- the training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `Trainer.train` does; ``resume_from_checkpoint=True`` is the last checkpoint that is whole.

        The teacher's outputs are computed once, where that pays (see ``args.cache_teacher_states``).
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_whole_checkpoint()
        given = (self.train_dataset, self.eval_dataset)
        stored = self._store_targets()
        self._started, self._elapsed_before = time.monotonic(), None
        slow_attention = bool(self.args.bf16) and self.args.device.type == "cpu"
        try:
            with contextlib.ExitStack() as stack:
                for student in self.pool.students.values():
                    stack.enter_context(eager_attention(student, slow_attention))
                result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.train_dataset, self.eval_dataset = given
        if stored and self.args.cache_dir is None:
            self.accelerator.wait_for_everyone()
            first = self.args.local_process_index if self.args.save_on_each_node else self.args.process_index
            if first == 0:
                shutil.rmtree(cache_folder(self.args), ignore_errors=True)
        return result

    def _store_targets(self) -> bool:
        """Read stored targets from now on, if that pays and they are not stored already; whether that is so."""
        if self.train_dataset is None or isinstance(self.train_dataset, StoredTargets):
            return False
        passes = float(self.args.num_train_epochs)
        if self.args.max_steps > 0 and has_length(self.train_dataset):
            texts_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            passes = self.args.max_steps * texts_per_step / max(len(cast(Sized, self.train_dataset)), 1)
        evaluates = self.eval_dataset is not None and not isinstance(self.eval_dataset, Mapping | StoredTargets)
        evaluates = evaluates and has_length(self.eval_dataset)
        stored = store_if_it_pays(
            self.teacher,
            [self.train_dataset, self.eval_dataset] if evaluates else [self.train_dataset],
            self.pool.required,
            self.pool.storable,
            self.args,
            passes,
            wait=self.accelerator.wait_for_everyone,
        )
        if stored is not None:
            self.train_dataset = stored[0]
            self.eval_dataset = stored[1] if evaluates else self.eval_dataset
        return stored is not None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, beside the mean loss of the students, the real tokens and the seconds of the training so far."""
        if "loss" in logs or "train_loss" in logs:
            logs["trained_tokens"] = self.trained_tokens
            logs["elapsed_seconds"] = self._elapsed_seconds()
        super().log(logs, *args, **kwargs)

    def _elapsed_seconds(self) -> float:
        if self._elapsed_before is None:  # the state still ends with what was logged before an interruption
            logged = [entry["elapsed_seconds"] for entry in self.state.log_history if "elapsed_seconds" in entry]
            self._elapsed_before = logged[-1] if logged else 0.0
        return round(self._elapsed_before + time.monotonic() - self._started, 1)
