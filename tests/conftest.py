"""What all tests share: a tiny teacher, its tokenizer and some text, offline."""

import gc
import logging
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if worker and hasattr(os, "sched_setaffinity"):
    # a core for each worker and for what it starts: two that compute with the threads of both cores wait for each other
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import pytest
import torch

from postgresql import postgresql  # noqa: F401
from tiny_teacher import make_teacher_model, make_texts, make_tokenizer, tokenized
from watched_clock import clock  # noqa: F401

torch.set_num_threads(1)  # models are tiny: threads would only wait for each other


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    """Recipes set up kdnas_hf's log lines; the next test must be able to capture them again."""
    logger = logging.getLogger("kdnas_hf")
    before = (logger.handlers[:], logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate, logger.level = before[0], before[1], before[2]


@pytest.fixture(autouse=True)
def _process_as_it_was():
    """What training leaves behind changes what later tests compute.

    Recipes take all cores, and more threads sum in another order. The arguments of transformers 4 put bf16 into the
    environment, from where every later training, and every process that is started, takes it.
    """
    before = os.environ.get("ACCELERATE_MIXED_PRECISION")
    yield
    torch.set_num_threads(1)
    if before is None:
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    else:
        os.environ["ACCELERATE_MIXED_PRECISION"] = before


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def teacher(tokenizer):
    from kdnas_hf import Teacher

    return Teacher(make_teacher_model(), tokenizer, name="tiny teacher")


@pytest.fixture(scope="session")
def teacher_path(tokenizer, tmp_path_factory):
    """A checkpoint of the tiny teacher, as the Hub would give it."""
    path = tmp_path_factory.mktemp("teacher")
    make_teacher_model().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def train_texts(tokenizer):
    return tokenized(tokenizer, make_texts(256, seed=1))


@pytest.fixture(scope="session")
def heldout_texts(tokenizer):
    return tokenized(tokenizer, make_texts(64, seed=2))


def pytest_collection_finish(session):
    """Collecting garbage, as accelerate does at each training, need not look at all that was imported."""
    gc.collect()
    gc.freeze()
