"""`DistillationTrainer`: a Trainer whose model learns the hidden states of a frozen teacher."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, has_length
from transformers.utils import logging

from ..students import KDNASConfig, KDNASModel
from .arguments import DistillationTrainingArguments
from .batch import IGNORED_LABEL, DistillationBatch
from .checkpoints import last_whole_checkpoint
from .heldout import HeldoutMeasures
from .labelled_texts import check_labelled_texts, classifies_tokens, padding_collator, text_columns
from .length_grouping import LengthGroupedSampler, text_lengths
from .losses import teacher_decoder_inputs
from .muon import MuonWithAdamW
from .numbered_texts import TEXT_NUMBER, NumberedTexts
from .pool import StudentPool
from .sharded_teacher import in_lockstep, place_teacher
from .state_cache import TeacherStateCache
from .state_caching import cache_folder, cache_teacher_states
from .streaming import StreamShare, is_stream
from .task_head import TaskStudent
from .teacher import (
    ATTENTION_INPUT,
    ATTENTION_MAPS,
    HIDDEN_STATES,
    TASK_LOGITS,
    HiddenStateStatistics,
    Teacher,
    sample_batches,
)
from .token_chunks import occurring_tokens
from .warm_start import copy_teacher_layers, fit_projections

logger = logging.get_logger(__name__)

TRAINABLE_WEIGHTS_NAME = "distillation.safetensors"
POOL_STATE_NAME = "distillation.json"
STATISTICS_NAME = "teacher_statistics.safetensors"


class StepProgressCallback(ProgressCallback):
    """Trainer's progress bar without its dump of every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the loss beside the bar."""
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")


class SamplerEpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins.

    Accelerate does so as well, but does not reach it in an epoch that is resumed with several processes.
    """

    sampler: LengthGroupedSampler | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch of the sampler."""
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))


class DistillationTrainer(Trainer):
    """Distils a teacher into a student, or into a whole pool of students at once, by the losses that ``args`` name.

    Used as any Trainer: gradient accumulation, bf16, DDP, resuming and evaluation work as they do there. Evaluation
    reports, on held-out text, ``eval_loss`` (the mean squared error of all mapped layers), ``eval_last_layer_loss``,
    ``eval_r2`` (the last mapped layer, see `ExplainedVariance`), ``eval_r2_layer_<student layer>``, and
    ``eval_<loss>_loss`` of every other loss; for a pool of several, the same for each as ``eval_<name>_…``. Where no
    loss compares states, ``eval_loss`` is the weighted sum of the losses.

    With the losses ``soft_labels`` and ``labels`` it distils a teacher that was fine-tuned on a task, on its data.
    Texts come with ``labels`` then, a class or a list with one for each token, where -100 is not counted; the student
    has a head for the teacher's classes, gets one if it has none, and is saved with it; ``eval_accuracy`` is its share
    of right labels. A second text in a row is told by its separator alone, not by ``token_type_ids``. A table of word
    embeddings trains in the rows that occur (see `OccurringWordEmbeddings`) and is saved whole; `fold_embeddings` makes
    it an ordinary one in memory. The teacher's states are not cached.

    Gradients are clipped for each student alone. A student whose gradient is not finite is dropped (see
    `StudentPool.dropped`), and the others go on.

    Args:
        model: A configuration (the student starts as ``args.student_init`` says), a student, or a pool.
        teacher: The frozen teacher; a bare model is accepted together with ``processing_class``.
        args: What to learn and how.
        train_dataset: Texts as ``input_ids``; an ``attention_mask`` is added by the collator.
        eval_dataset: Held-out texts.
        processing_class: The tokenizer, by default the teacher's; saved with the student.
        statistics: Mean and variance of the teacher's states, by default estimated from the training texts.
        train_states: The teacher's states of ``train_dataset``, if they are cached already.
        eval_states: The teacher's states of ``eval_dataset``, likewise.
        **kwargs: What else `Trainer` takes.

    Raises:
        ValueError: If the student does not fit the teacher.
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
        callbacks: list[TrainerCallback] | None = None,
        train_states: TeacherStateCache | None = None,
        eval_states: TeacherStateCache | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(teacher, Teacher):
            if processing_class is None:
                raise ValueError("a bare teacher model needs processing_class=<its tokenizer>.")
            teacher = Teacher(teacher, processing_class)
        if args.teacher_in_bf16:
            teacher.to_dtype(torch.bfloat16)
        self.teacher = teacher
        pool = model if isinstance(model, StudentPool) else StudentPool.create({"student": model}, teacher, args)
        # exact for Adam without weight decay alone: other rows would not move
        adam = args.optim in ("adamw_torch", "adamw_torch_fused") and args.weight_decay == 0
        own_ways = {"optimizers", "optimizer_cls_and_kwargs", "data_collator"} & set(kwargs)
        texts = train_dataset if train_dataset is not None and has_length(train_dataset) else None
        if args.occurring_embeddings and adam and not own_ways and texts is not None:
            pool.train_only(lambda: occurring_tokens(texts))
        self.student_max_grad_norm = args.max_grad_norm
        args = copy.copy(args)
        args.max_grad_norm = 0.0  # clipping is ours: for each student alone, in `training_step`
        # one process drives one device: DataParallel would scatter token positions that belong to the whole batch
        _ = args.device
        args._n_gpu = min(args.n_gpu, 1)
        processing_class = processing_class or teacher.tokenizer
        self._check_losses(pool, args)
        check_labelled_texts("train_dataset", train_dataset, pool)
        check_labelled_texts("eval_dataset", eval_dataset, pool)
        _check_states("train", train_states, train_dataset, pool)
        _check_states("eval", eval_states, eval_dataset, pool)
        kwargs.setdefault("data_collator", padding_collator(processing_class, classifies_tokens(pool)))
        self.masking = None
        if pool.masks_tokens:
            self.masking = DataCollatorForLanguageModeling(processing_class, mlm_probability=args.mlm_probability)
        super().__init__(
            model=pool,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            **kwargs,
        )
        self.add_callback(SamplerEpochCallback())
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(StepProgressCallback)
        # compute_loss normalises by the tokens of all micro-batches and processes
        self.model_accepts_loss_kwargs = True
        self.trained_tokens = 0
        self._started = time.monotonic()
        self._elapsed_before: float | None = None
        self.step_labels: torch.Tensor | None = None
        self.train_states = train_states
        self.eval_states = eval_states
        self._grad_norm: torch.Tensor | None = None
        self._losses: torch.Tensor | None = None
        if pool.attention_layers:
            self.teacher.attend_eagerly()
        place_teacher(self.teacher, self.args)
        if statistics is None and args.hidden_state_normalization == "standardize" and pool.teacher_layers:
            statistics = self.estimate_statistics()
        self.statistics = statistics.to(self.args.device) if statistics is not None else None
        self._warm_start()

    def _warm_start(self) -> None:
        """Start layers and projections where least squares on a sample of the training text takes them."""
        if self.train_dataset is None:
            return
        if self.pool.teacher_layers:
            self._fit_to_sample()
        for _, member in self.pool.items():
            member.started = True

    def _fit_to_sample(self) -> None:
        copies = self.args.student_init == "teacher"
        fits = self.args.projection_init == "fit"
        if not (copies or fits):
            return
        batches = list(
            sample_batches(
                self.teacher,
                # with their numbers, by which the teacher's states are found where these are given
                self.train_dataset if self.train_states is None else NumberedTexts(self.train_dataset),
                count=self.args.statistics_sentences,
                batch_size=self.args.eval_batch_size,
                seed=self.args.seed,
            )
        )
        if copies:
            copy_teacher_layers(self.pool, self.teacher, batches, standardize=self.statistics is not None)
        if fits:
            one = torch.ones((), device=self.args.device)
            with self.accelerator.autocast():
                fit_projections(
                    self.pool,
                    (self._batch(self._prepare_inputs(dict(batch)), self.train_states, one) for batch in batches),
                )

    @property
    def pool(self) -> StudentPool:
        """The students that train."""
        pool = self.accelerator.unwrap_model(self.model)
        assert isinstance(pool, StudentPool)
        return pool

    @property
    def student(self) -> KDNASModel:
        """The student, of a pool of one."""
        students = list(self.pool.students.values())
        if len(students) != 1:
            raise ValueError(f"the pool holds {len(students)} students; take one of pool.students.")
        return students[0]

    def _check_losses(self, pool: StudentPool, args: DistillationTrainingArguments) -> None:
        if "logits" in pool.loss_names and self.teacher.masked_lm is None:
            raise ValueError(
                "losses: 'logits' needs a teacher with its masked language modeling head; load it with "
                "load_teacher(…, masked_lm_head=True), or leave the loss out."
            )
        sharded = args.shard_teacher != "no" and args.world_size > 1
        if args.student_init == "teacher" and sharded:
            raise ValueError(
                "student_init='teacher' copies the teacher's layers, which shard_teacher takes apart; choose "
                "'embeddings'."
            )
        if sharded and pool.classifies:
            raise ValueError("losses: a task's losses need the teacher whole on each device, not shard_teacher.")
        if sharded and not (pool.features or pool.attention_layers):
            raise ValueError("losses: nothing is learnt from the teacher; launch without shard_teacher.")
        whole = [name for name in ("relations", "logits") if name in pool.loss_names]
        if whole and sharded:
            raise ValueError(f"losses: {whole[0]!r} needs the teacher whole on each device, not shard_teacher.")
        deepest = self.teacher.dimensions.num_layers
        if any(layer > deepest for layer in pool.relation_layers):
            raise ValueError(
                f"relation_teacher_layer={max(pool.relation_layers)}: the teacher has layers 1 to {deepest}."
            )
        if pool.relation_layers:
            _ = self.teacher.attention_projections  # raises where the teacher's are not found

    def estimate_statistics(self) -> HiddenStateStatistics:
        """Estimate the teacher's statistics from a sample of ``args.statistics_sentences`` training texts.

        Raises:
            ValueError: If there is no training text.
        """
        if self.train_dataset is None:
            raise ValueError(
                "hidden_state_normalization='standardize' estimates the teacher's statistics from train_dataset; "
                "pass it, or statistics=…, or choose hidden_state_normalization='none'."
            )
        return HiddenStateStatistics.from_texts(
            self.teacher,
            cast(Iterable[Mapping[str, Any]], self.train_dataset),
            self.pool.teacher_layers,
            count=self.args.statistics_sentences,
            batch_size=self.args.eval_batch_size,
            seed=self.args.seed,
            states=self.train_states,
        )

    # ---- the loss ----

    def _batch(
        self,
        inputs: Mapping[str, torch.Tensor],
        states: TeacherStateCache | None,
        num_tokens: torch.Tensor,
        num_labels: torch.Tensor | None = None,
        states_wanted: bool = True,
    ) -> DistillationBatch:
        """A batch of texts with what the teacher says about it.

        Args:
            inputs: ``input_ids`` and ``attention_mask``, both ``(batch, sequence)``, and ``labels`` where tokens are
                masked or a task has classes.
            states: The teacher's states of the data set, if they are cached: then ``inputs`` tells the texts' numbers.
            num_tokens: See `DistillationBatch`.
            num_labels: See `DistillationBatch`.
            states_wanted: Whether students are compared by more than their predictions of masked tokens.
        """
        mask = inputs["attention_mask"]
        batch = DistillationBatch(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            real_tokens=mask.flatten().nonzero().squeeze(1),
            num_tokens=num_tokens,
            labels=inputs.get("labels"),
            num_labels=num_labels,
        )
        features = self._features(batch, inputs, states, states_wanted)
        for layer in self.pool.teacher_layers if states_wanted else ():
            values = features[f"{HIDDEN_STATES}.{layer}"]
            batch.targets[layer] = (
                values.float() if self.statistics is None else self.statistics.standardize(layer, values)
            )
        for layer in self.pool.relation_layers if states_wanted else ():
            attention_input = mask.new_zeros(
                (mask.numel(), self.teacher.dimensions.hidden_size), dtype=features[f"{ATTENTION_INPUT}.{layer}"].dtype
            ).index_copy_(0, batch.real_tokens, features[f"{ATTENTION_INPUT}.{layer}"])
            with torch.no_grad():
                projections = self.teacher.attention_projections[layer - 1]
                batch.relations[layer] = projections(attention_input.view(*mask.shape, -1))
        for layer in self.pool.attention_layers if states_wanted else ():
            batch.attention_maps[layer] = features[f"{ATTENTION_MAPS}.{layer}"]
        batch.task_logits = features.get(TASK_LOGITS)
        if "logits" in self.pool.loss_names and batch.labels is not None:
            assert self.teacher.masked_lm is not None
            last = features[f"{HIDDEN_STATES}.{self.teacher.dimensions.num_layers}.padded"]
            masked = last.flatten(0, 1).index_select(0, batch.masked_tokens)
            with torch.no_grad():
                batch.teacher_decoder = teacher_decoder_inputs(self.teacher.masked_lm, masked)
        return batch

    def _features(
        self,
        batch: DistillationBatch,
        inputs: Mapping[str, torch.Tensor],
        states: TeacherStateCache | None,
        states_wanted: bool,
    ) -> dict[str, torch.Tensor]:
        """The teacher's vectors at the real tokens ``(tokens, hidden_size)``, from the disk or from a pass.

        Attention maps, and the last states where logits are wanted, are given for the padded batch.
        """
        names = self.pool.features if states_wanted else []
        if states is not None:
            found = states.states(inputs[TEXT_NUMBER])
            return {name: found[name].to(batch.input_ids.device, non_blocking=True) for name in names}
        maps = [f"{ATTENTION_MAPS}.{layer}" for layer in self.pool.attention_layers] if states_wanted else []
        predicts = "logits" in self.pool.loss_names and batch.labels is not None
        classes = [TASK_LOGITS] if "soft_labels" in self.pool.loss_names and batch.labels is not None else []
        last = [f"{HIDDEN_STATES}.{self.teacher.dimensions.num_layers}"] if predicts else []
        if not (names or maps or last or classes):
            return {}
        features = self.teacher.features(
            batch.input_ids, batch.attention_mask, list(dict.fromkeys([*names, *maps, *last, *classes]))
        )
        found = {name: features[name].flatten(0, 1).index_select(0, batch.real_tokens) for name in names}
        found |= {name: features[name] for name in (*maps, *classes)}
        return found | {f"{name}.padded": features[name] for name in last}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sum of the students' losses on one micro-batch.

        Args:
            model: The (wrapped) pool.
            inputs: ``input_ids`` and ``attention_mask``, both ``(batch, sequence)``; ``labels`` if tokens are masked
                or a task has classes.
            return_outputs: Whether to return the loss of each student as well.
            num_items_in_batch: Real tokens of the whole accumulated batch in all processes.
        """
        # DDP averages gradients over processes, while a loss is a sum over tokens divided by the tokens of them all
        processes = self.accelerator.num_processes if num_items_in_batch is not None else 1
        tokens = num_items_in_batch if num_items_in_batch is not None else inputs["attention_mask"].sum()
        num_tokens = torch.as_tensor(tokens, device=self.args.device, dtype=torch.float32) / processes
        num_labels = None
        if "labels" in inputs:
            labels = self.step_labels if num_items_in_batch is not None else None
            num_labels = (inputs["labels"] != IGNORED_LABEL).sum() if labels is None else labels
            # a batch may be so short that nothing in it is masked
            num_labels = num_labels.to(self.args.device, torch.float32).clamp_min(1) / processes
        losses = model(
            self._batch(inputs, self.train_states if TEXT_NUMBER in inputs else None, num_tokens, num_labels)
        )
        self._losses = losses.detach()
        loss = losses.sum()
        return (loss, {"losses": losses}) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Collect the micro-batches of one step, mask tokens if asked, and count real tokens in all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        if self.masking is not None:
            # by the step and not by the random state: batches are fetched ahead, so that a resumed run would differ
            place = (self.state.global_step, self.args.process_index)
            batches = [dict(batch) | self._mask(batch, "train", *place, number) for number, batch in enumerate(batches)]
        tokens = torch.stack([batch["attention_mask"].sum() for batch in batches]).sum().to(device)
        tokens = self.accelerator.reduce(tokens, reduction="sum")
        if "labels" in batches[0]:
            labels = torch.stack([(batch["labels"] != IGNORED_LABEL).sum() for batch in batches]).sum().to(device)
            self.step_labels = self.accelerator.reduce(labels, reduction="sum")
        self.trained_tokens += int(tokens)
        return batches, tokens

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One micro-batch; before an optimizer step, each student's gradient is clipped alone."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._clip_each_student()
        return loss

    def _clip_each_student(self) -> None:
        """Clip each student's gradient by its own norm; drop those whose norm is not finite.

        Gradients are already averaged over processes here, so that all processes drop the same students.
        """
        self.accelerator.unscale_gradients()
        fp16 = self.accelerator.mixed_precision == "fp16"
        diverged_by_loss = self._diverged_by_loss() if fp16 else set()
        norms = []
        for name, member in self.pool.active.items():
            parameters = [p for p in member.parameters() if p.grad is not None]
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            # under fp16 a gradient may overflow while the loss is fine: the scaler then skips the step
            diverged = name in diverged_by_loss if fp16 else not torch.isfinite(norm)
            if diverged:
                for parameter in parameters:
                    parameter.grad = None
                self.pool.drop(name, f"its gradient was not finite at step {self.state.global_step + 1}")
                continue
            norms.append(norm)
            if self.student_max_grad_norm and norm > self.student_max_grad_norm:
                nn.utils.clip_grads_with_norm_(parameters, self.student_max_grad_norm, norm)
        self._grad_norm = torch.stack(norms).square().sum().sqrt() if norms else None
        if not self.pool.active:
            self.control.should_training_stop = True

    def _diverged_by_loss(self) -> set[str]:
        """The students whose loss is not finite in some process."""
        assert self._losses is not None
        not_finite = self._sum_over_processes((~self._losses.isfinite()).long())
        return {name for name, count in zip(self.pool.members, not_finite.tolist(), strict=True) if count}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the whole pool's gradient before clipping, which transformers 5 logs."""
        return self._grad_norm

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, as `Trainer.train` does; ``resume_from_checkpoint=True`` is the last checkpoint that is whole.

        The teacher's states are computed once, where that pays (see ``args.cache_teacher_states``). Students attend by
        the eager implementation where torch's fused attention is slow: its backward pass in bf16 on a CPU takes several
        times as long. Numbers are the same to rounding, and students get theirs back afterwards.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_whole_checkpoint()
        opened = self._open_states()
        self._started, self._elapsed_before = time.monotonic(), None
        slow_attention = self.args.bf16 and self.args.device.type == "cpu"
        before = {name: student.config._attn_implementation for name, student in self.pool.students.items()}
        try:
            for student in self.pool.students.values() if slow_attention else ():
                student.set_attn_implementation("eager")
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for name, student in self.pool.students.items() if slow_attention else ():
                student.set_attn_implementation(before[name])
            if opened:  # the data sets may be others the next time
                self.train_states = self.eval_states = None
        if opened and self.args.cache_dir is None:
            self.accelerator.wait_for_everyone()
            first = self.args.local_process_index if self.args.save_on_each_node else self.args.process_index
            if first == 0:
                shutil.rmtree(cache_folder(self.args), ignore_errors=True)
        return result

    def _open_states(self) -> bool:
        """Compute the teacher's states of both data sets, unless they were given; whether that was done."""
        if self.train_states is not None or self.train_dataset is None:
            return False
        passes = float(self.args.num_train_epochs)
        if self.args.max_steps > 0 and has_length(self.train_dataset):
            texts_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            passes = self.args.max_steps * texts_per_step / max(len(cast(Sized, self.train_dataset)), 1)
        evaluates = not (self.eval_dataset is None or isinstance(self.eval_dataset, Mapping))
        evaluates = evaluates and has_length(self.eval_dataset)
        texts = [self.train_dataset, self.eval_dataset] if evaluates else [self.train_dataset]
        states = cache_teacher_states(
            self.teacher, texts, self.pool.features, self.args, passes, wait=self.accelerator.wait_for_everyone
        )
        if states is None:
            return False
        self.train_states = states[0]
        self.eval_states = states[1] if evaluates else None
        return True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; the training loss of a pool is given as the mean over its students.

        Beside it are logged the real tokens so far (``trained_tokens``) and the wall-clock time of the training so far
        (``elapsed_seconds``), in which what an interruption lost does not count.
        """
        for key in ("loss", "train_loss"):
            if key in logs:
                logs[key] /= max(len(self.pool.active), 1)
                logs["trained_tokens"] = self.trained_tokens
                logs["elapsed_seconds"] = self._elapsed_seconds()
        super().log(logs, *args, **kwargs)

    def _elapsed_seconds(self) -> float:
        if self._elapsed_before is None:  # the state still ends with what was logged before an interruption
            logged = [entry["elapsed_seconds"] for entry in self.state.log_history if "elapsed_seconds" in entry]
            self._elapsed_before = logged[-1] if logged else 0.0
        return round(self._elapsed_before + time.monotonic() - self._started, 1)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments ask for."""
        if self.optimizer is not None or self.args.matrix_optimizer == "adamw":
            return super().create_optimizer() if model is None else super().create_optimizer(model)
        trained = {name: p for name, p in self.pool.named_parameters() if p.requires_grad}
        # matrices that map states to states; embeddings and the projections outside the student are AdamW's
        matrices = {name: p for name, p in trained.items() if ".encoder.layer." in name and p.ndim == 2}
        decays = set(self.get_decay_parameter_names(self.pool))
        others: list[dict[str, Any]] = [
            {
                "params": [p for n, p in trained.items() if n not in matrices and (n in decays) == decay],
                "weight_decay": self.args.weight_decay if decay else 0.0,
            }
            for decay in (True, False)
        ]
        self.optimizer = MuonWithAdamW(
            matrices.values(),
            [group for group in others if group["params"]],
            muon_learning_rate=self.args.muon_learning_rate,
            learning_rate=self.args.learning_rate,
            weight_decay=self.args.weight_decay,
            betas=(self.args.adam_beta1, self.args.adam_beta2),
            eps=self.args.adam_epsilon,
        )
        return self.optimizer

    # ---- data ----

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["attention_mask", TEXT_NUMBER, *text_columns(self.pool)]

    def get_train_dataloader(self) -> DataLoader:
        """Training texts, with their numbers where the teacher's states of them are cached.

        Of a stream each process reads a share of its own, over and over.
        """
        if is_stream(self.train_dataset):
            return self._stream(self.train_dataset, self._train_batch_size, endless=True)
        if self.train_states is None:
            return super().get_train_dataloader()
        dataset = self.train_dataset
        self.train_dataset = NumberedTexts(dataset)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.args.group_texts_by_length or dataset is None or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        # of `self.train_dataset`: unused columns, of which the length is one, are gone from `train_dataset`
        texts = self.train_dataset.dataset if isinstance(self.train_dataset, NumberedTexts) else self.train_dataset
        lengths = text_lengths(texts)
        texts_per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        sampler = LengthGroupedSampler(lengths, texts_per_step, seed)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SamplerEpochCallback):
                callback.sampler = sampler
        return sampler

    def _stream(self, stream: Any, batch_size: int, endless: bool) -> DataLoader:
        share = StreamShare(
            stream, self.accelerator.process_index, self.accelerator.num_processes, endless, text_columns(self.pool)
        )
        return DataLoader(
            share,
            batch_size=batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Held-out texts in order of length; each process gets its own share, no text twice."""
        if isinstance(eval_dataset, str):
            dataset: Any = cast(dict[str, Any], self.eval_dataset)[eval_dataset]
        else:
            dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if is_stream(dataset):
            return self._stream(dataset, self.args.eval_batch_size, endless=False)
        if dataset is None or not has_length(dataset):
            return super().get_eval_dataloader(eval_dataset)
        columns = text_columns(self.pool)
        rows = [{name: row[name] for name in columns} for row in cast(Iterable[Mapping[str, Any]], dataset)]
        if self.eval_states is not None and dataset is self.eval_dataset:
            rows = [row | {TEXT_NUMBER: number} for number, row in enumerate(rows)]
        rows.sort(key=lambda row: len(row["input_ids"]))
        share: Any = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        return DataLoader(share, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)

    # ---- evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Losses and R² of each student on held-out text, exact over all processes."""
        pool = self.pool
        metrics: dict[str, float] = {}
        if not pool.active:
            return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=0)
        was_training = pool.training
        pool.eval()
        heldout = HeldoutMeasures(pool, self.teacher.dimensions.hidden_size)
        samples = 0
        one = torch.ones((), device=self.args.device)  # what is measured is summed, and divided at the end
        for number, loaded in enumerate(in_lockstep(dataloader, self.teacher, self.accelerator)):
            inputs = self._prepare_inputs(dict(loaded))
            samples += inputs["input_ids"].shape[0]
            states = self.eval_states if TEXT_NUMBER in inputs else None
            batch = self._batch(inputs, states, one, one if pool.classifies else None)
            masked = None
            if self.masking is not None:  # states are compared on whole texts, predictions on masked ones
                place = (self.args.process_index, number)
                masked = self._batch(inputs | self._mask(inputs, "eval", *place), None, one, one, states_wanted=False)
            with self.accelerator.autocast():
                heldout.add(batch, masked)
        samples = int(self._sum_over_processes(torch.tensor([samples])))
        heldout.reduce(self._sum_over_processes)
        pool.train(was_training)

        losses = []
        for name in pool.active:
            prefix = metric_key_prefix if len(pool.members) == 1 else f"{metric_key_prefix}_{name}"
            values = heldout.metrics(name)
            metrics |= {f"{prefix}_{key}": value for key, value in values.items()}
            losses.append(values["loss"])
        metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        metrics[f"{metric_key_prefix}_trained_tokens"] = self.trained_tokens
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=samples)

    def _mask(self, inputs: Mapping[str, torch.Tensor], *place: str | int) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``labels`` of a batch with tokens masked; which ones depends on the place and the seed."""
        assert self.masking is not None
        digest = hashlib.sha256(repr((self.args.seed, *place)).encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            input_ids, labels = self.masking.torch_mask_tokens(inputs["input_ids"].cpu().clone())
        device = inputs["input_ids"].device
        return {"input_ids": input_ids.to(device), "labels": labels.to(device)}

    def _sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.reduce(values.to(self.args.device), reduction="sum").cpu()

    # ---- saving and resuming ----

    def _trainable(self) -> dict[str, torch.Tensor]:
        """Everything that training changes: not the teacher's table that the students share."""
        return {name: p.detach() for name, p in self.pool.named_parameters() if p.requires_grad}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write what resuming needs, and a lone student as a checkpoint of its own with its tokenizer.

        The students of a larger pool are written by `save_students`: a checkpoint in mid-search must be cheap.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        trainable = {name: value.contiguous().cpu() for name, value in self._trainable().items()}
        save_file(trainable, str(folder / TRAINABLE_WEIGHTS_NAME), metadata={"format": "pt"})
        (folder / POOL_STATE_NAME).write_text(
            json.dumps({"dropped": self.pool.dropped, "trained_tokens": self.trained_tokens}), encoding="utf-8"
        )
        if self.statistics is not None:
            self.statistics.save(folder / STATISTICS_NAME)
        torch.save(self.args, folder / "training_args.bin")
        if len(self.pool.members) == 1:
            self.save_students(folder)

    def save_students(self, output_dir: str | Path) -> None:
        """Write each student and the tokenizer: into ``output_dir`` if it is alone, else into a folder by its name.

        Embeddings that are inherited from the teacher are folded into an ordinary table in the file.
        """
        for name, model in self.pool.models.items():
            folder = Path(output_dir) if len(self.pool.members) == 1 else Path(output_dir) / name
            model.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def create_model_card(self, *args: Any, student: str | Path | None = None, **kwargs: Any) -> None:
        """Let a callback that knows how to (`kdnas_hf.ModelCardCallback`) write the card; without one there is none.

        Args:
            *args: Ignored: a card holds what was measured.
            student: The student's directory; by default ``args.output_dir``.
            **kwargs: Ignored.
        """
        if not self.is_world_process_zero():
            return
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "write_card"):
                callback.write_card(student or self.args.output_dir)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the student, its tokenizer and its card to ``args.hub_model_id``.

        Unlike `Trainer.push_to_hub` it sends nothing of the training's own files, which name folders of this machine.

        Args:
            commit_message: Message of the commit.
            blocking: Ignored: it returns when everything is sent.
            token: A token that may write; by default ``args.hub_token``, else the one that is stored.
            revision: Branch to commit to; by default ``args.hub_revision``, else main.
            private: Whether a repository that is made is private; by default ``args.hub_private_repo``.
            **kwargs: Of `create_model_card`.

        Returns:
            The commit; None in processes other than the main one.

        Raises:
            ValueError: If a pool of several students is trained: push each by itself.
        """
        if len(self.pool.members) != 1:
            raise ValueError("push_to_hub sends one student; save those of a pool (save_students) and push each.")
        if hasattr(self.callback_handler, "on_push_begin"):  # transformers 5
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if not self.is_world_process_zero():
            return None
        api = HfApi(token=token)
        name = self.args.hub_model_id or Path(self.args.output_dir or ".").absolute().name
        private = self.args.hub_private_repo if private is None else private
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_students(folder)
            self.create_model_card(student=folder, **kwargs)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "End of training",
                revision=revision or getattr(self.args, "hub_revision", None),
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """In the course of the training; at its end `push_to_hub` is called anyway."""
        if self.args.hub_strategy != HubStrategy.END:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")

    def restore(self, checkpoint: str | Path) -> bool:
        """Load students, projections, statistics and what was dropped from a checkpoint, but no optimizer.

        Returns:
            Whether any student still trains.
        """
        self._load_from_checkpoint(str(checkpoint))
        return bool(self.pool.active)

    def _last_whole_checkpoint(self) -> str:
        found = None
        if self.args.process_index == 0:
            found = last_whole_checkpoint(self.args.output_dir or ".", self.args.world_size)
        if self.args.world_size > 1:
            found = broadcast_object_list([found])[0]
        if found is None:
            raise ValueError(f"output_dir={self.args.output_dir!r} holds no whole checkpoint to resume from.")
        return str(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = folder / TRAINABLE_WEIGHTS_NAME
        if not weights.is_file():
            raise ValueError(
                f"{folder} holds no {TRAINABLE_WEIGHTS_NAME}: it is no checkpoint of a distillation to resume."
            )
        own = self._trainable()
        with safe_open(str(weights), framework="pt") as file:
            stored = set(file.keys())
            if stored != set(own):
                odd = sorted(stored.symmetric_difference(own))[:3]
                raise ValueError(f"{folder} was written by another pool of students; they differ in {', '.join(odd)}.")
            for name, parameter in own.items():
                parameter.copy_(file.get_tensor(name))
        for _, member in self.pool.items():
            member.started = True
        state = json.loads((folder / POOL_STATE_NAME).read_text(encoding="utf-8"))
        self.pool.dropped.update(state["dropped"])
        self.trained_tokens = state["trained_tokens"]
        if (folder / STATISTICS_NAME).is_file():
            self.statistics = HiddenStateStatistics.load(folder / STATISTICS_NAME).to(self.args.device)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def _check_states(name: str, states: TeacherStateCache | None, texts: Any, pool: StudentPool) -> None:
    """Refuse states that were given and are not those of the texts."""
    if states is None:
        return
    if pool.masks_tokens or pool.classifies or pool.attention_layers:
        raise ValueError(
            f"{name}_states hold no attention maps, and nothing of masked tokens or a task's classes; leave them out."
        )
    if texts is None or not has_length(texts) or states.lengths.tolist() != list(text_lengths(texts)):
        raise ValueError(f"{name}_states are those of other texts than {name}_dataset.")
    missing = [feature for feature in pool.features if feature not in states.features]
    if missing:
        raise ValueError(
            f"{name}_states lack {missing[0]}, which a student learns from; compute them with all features."
        )
