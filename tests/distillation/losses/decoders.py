"""Decoders with random states, and the losses on them that make all logits at once."""

import math

import torch
from torch import nn

from kdnas_hf.distillation.token_logits import DecoderInputs


def make_decoder(positions, size, vocabulary, seed=0, dtype=torch.float64, trained=True):
    """States, weight and bias, all of which need gradients unless they are a teacher's."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(trained)
        for shape in ((positions, size), (vocabulary, size), (vocabulary,))
    ]
    return DecoderInputs(*tensors)


def make_teacher_decoder(*shape, seed=100, **kwargs):
    return make_decoder(*shape, seed=seed, trained=False, **kwargs)


def logits_of(decoder):
    return decoder.states @ decoder.weight.T + (0 if decoder.bias is None else decoder.bias)


def naive_logit_loss(student, teacher, temperature, num_tokens):
    log_p = (logits_of(student) / temperature).log_softmax(-1)
    log_q = (logits_of(teacher) / temperature).log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum() * temperature**2 / num_tokens


def naive_masked_lm_loss(student, labels, num_tokens):
    return nn.functional.cross_entropy(logits_of(student), labels, reduction="sum") / num_tokens


def probabilities(logits, temperature=1.0):
    exponentials = [math.exp(logit / temperature) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]
