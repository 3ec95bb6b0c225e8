"""Builds XLM-R's fast tokenizer from the pieces and scores in an E5S1 file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from .e5s1_format import E5S1Tokenizer

_SPACE = "\u2581"  # sentencepiece's visible space
_NORMALIZATION_RULE = "nmt_nfkc"
_PRECOMPILED_CHARSMAP_FIELD = 2  # of sentencepiece's message NormalizerSpec


def build_tokenizer(tokenizer: E5S1Tokenizer) -> Tokenizer:
    """Builds the tokenizer: sentencepiece's `nmt_nfkc` normalisation, Unigram pieces, `<s> … </s>` around a sentence.

    Normaliser and pre-tokenizer have the form in which transformers rebuilds an XLM-R tokenizer when it loads one: of
    the normaliser it keeps the precompiled map and nothing else.

    Args:
        tokenizer: The tokenizer section of an E5S1 file.

    Returns:
        A tokenizer whose ids are positions in `tokenizer.pieces`.

    Raises:
        ImportError: sentencepiece is not installed, or too old.
    """
    built = Tokenizer(Unigram(tokenizer.pieces, unk_id=tokenizer.unk_token_id, byte_fallback=False))
    built.normalizer = normalizers.Precompiled(_precompiled_charsmap(tokenizer.normalization))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")]
    )
    built.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")

    ids = {piece: position for position, (piece, _) in enumerate(tokenizer.pieces)}
    bos, eos, pad, unk = (
        tokenizer.pieces[token_id][0]
        for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    )
    built.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (bos, pad, eos, unk)])
    if "<mask>" in ids:
        # It takes the space before it along, as in XLM-R.
        built.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    built.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)],
    )
    return built


def save_tokenizer(tokenizer: E5S1Tokenizer, directory: Path, model_max_length: int) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, as `AutoTokenizer` reads them.

    They are written without transformers, so that the files are the same whichever release of it is installed.

    Args:
        tokenizer: The tokenizer section of an E5S1 file.
        directory: Where to write; must exist.
        model_max_length: The longest sequence, in tokens with `<s>` and `</s>`.
    """
    built = build_tokenizer(tokenizer)
    built.save(str(directory / "tokenizer.json"), pretty=False)
    bos, eos, pad, unk = (
        tokenizer.pieces[token_id][0]
        for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id)
    )
    special_tokens = {
        "bos_token": bos,
        "cls_token": bos,
        "eos_token": eos,
        "mask_token": "<mask>",
        "pad_token": pad,
        "sep_token": eos,
        "unk_token": unk,
    }
    config = {
        **special_tokens,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "tokenizer_class": "XLMRobertaTokenizerFast",
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special_tokens)):
        (directory / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _precompiled_charsmap(normalization: dict[int, str]) -> bytes:
    """Compiles the normaliser's map into the form that the `tokenizers` library runs.

    An E5S1 file says what becomes of single code points, exactly as when the model was trained. What becomes of
    sequences (a letter and a combining accent, say) is taken from sentencepiece. Its rules for single code points are
    not, because they change from release to release: 0.2.3 knows newer characters, and no longer turns U+200D, the
    zero-width joiner of Indic scripts, into a space.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            "The embedded teacher's tokenizer needs sentencepiece: pip install 'kdnas_hf[demo]'"
        ) from error
    try:
        sentencepiece.set_min_log_level(1)  # it reports every compilation on stderr
        sequences = sentencepiece.SentencePieceNormalizer(rule_name=_NORMALIZATION_RULE).decompile()
        rules = {source: target for source, target in sequences if len(source) > 1}
        rules.update((chr(code_point), target) for code_point, target in normalization.items())
        compiled = sentencepiece.SentencePieceNormalizer(norm_map=sorted(rules.items()))
    except (AttributeError, TypeError) as error:
        raise ImportError(
            f"sentencepiece {sentencepiece.__version__} cannot compile a normaliser's rules: "
            "pip install 'sentencepiece>=0.2.3'"
        ) from error
    for field, value in _protobuf_fields(compiled.serialized_normalizer_spec()):
        if field == _PRECOMPILED_CHARSMAP_FIELD and isinstance(value, bytes):
            return value
    raise RuntimeError("sentencepiece compiled no map from the normaliser's rules.")


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields the (field number, value) pairs of a protobuf message that has only integers, strings and bytes.

    Two wire types are all that the message has, so this spares a dependency on protobuf.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(message):
        key = varint()
        field, wire_type = key >> 3, key & 7
        if wire_type == 0:
            yield field, varint()
        elif wire_type == 2:
            size = varint()
            yield field, message[position : position + size]
            position += size
        else:
            raise RuntimeError(f"sentencepiece's normaliser has a field of unexpected wire type {wire_type}.")
