"""Small distillations: their arguments, a student's shape, batches, and the tiny teacher with a head."""

import torch
from transformers import (
    XLMRobertaForMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
)

from kdnas_hf import DistillationTrainingArguments, KDNASConfig, Teacher
from kdnas_hf.distillation.batch import DistillationBatch
from tiny_teacher import make_teacher_model


def run_arguments(folder, **kwargs):
    defaults = {
        "per_device_train_batch_size": 16,
        "max_steps": 8,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "statistics_sentences": 64,
        "learning_rate": 5e-3,
    }
    return DistillationTrainingArguments(output_dir=str(folder), **defaults | kwargs)


def student_shape(teacher, **fields):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    return KDNASConfig(
        vocab_size=teacher.dimensions.vocab_size, max_position_embeddings=66, hidden_dropout_prob=0.0, **shape | fields
    )


def batch_of(tokenizer, rows, **fields):
    """Texts, given as rows of a data set, as a padded batch without targets."""
    inputs = tokenizer.pad([{"input_ids": list(row["input_ids"])} for row in rows], return_tensors="pt")
    return DistillationBatch(inputs["input_ids"], inputs["attention_mask"], torch.ones(()), **fields)


def teacher_with_head(kind, tokenizer, classes=3):
    """The tiny teacher under a head ``masked_lm``, for the classes of ``texts`` or for those of ``tokens``."""
    heads = {
        "masked_lm": XLMRobertaForMaskedLM,
        "texts": XLMRobertaForSequenceClassification,
        "tokens": XLMRobertaForTokenClassification,
    }
    encoder = make_teacher_model()
    encoder.config.num_labels = classes
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = heads[kind](encoder.config)
    model.roberta = encoder
    model.tie_weights()
    if kind == "masked_lm":
        return Teacher(encoder, tokenizer, masked_lm=model)
    return Teacher(model, tokenizer)


def trained_parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.pool.named_parameters() if p.requires_grad}
