"""Fewer tokens: the corpus is split as before, outputs are the same bits, special tokens keep their meaning."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizerFast,
)

from kdnas_hf.data.token_counts import count_tokens
from kdnas_hf.students import (
    InheritedWordEmbeddings,
    KDNASConfig,
    KDNASForMaskedLM,
    KDNASForSequenceClassification,
    KDNASModel,
    TeacherEmbeddings,
    create_student,
    trim_vocabulary,
    vocabulary_trimming,
)
from kdnas_hf.students.tokenizer_trimming import TrimmableTokenizer
from tiny_teacher import WORDS, make_teacher_model, make_texts

VOCABULARY = len(WORDS) + 5
SHAPE = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 66,
}  # fmt: skip


def make_student(kind=KDNASModel, vocabulary=VOCABULARY, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(KDNASConfig(vocab_size=vocabulary, **SHAPE | changes)).eval()
        for parameter in model.parameters():  # biases as well, which start at zero
            parameter.data.normal_(std=0.3)
    return model


def outputs(model, tokenizer, texts):
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    with torch.no_grad():
        return model(**batch, output_hidden_states=True), batch["attention_mask"].bool()


def assert_same_bits(before, tokenizer_before, after, tokenizer_after, texts):
    (one, mask), (other, other_mask) = outputs(before, tokenizer_before, texts), outputs(after, tokenizer_after, texts)
    assert torch.equal(mask, other_mask)
    for states, other_states in zip(one.hidden_states, other.hidden_states, strict=True):
        assert torch.equal(states[mask], other_states[mask])


# ---- tokenizers ----


def assert_splits_alike(backend, texts):
    trimmable = TrimmableTokenizer(backend)
    encodings = backend.encode_batch(texts)
    used = {token for encoding in encodings for token in encoding.ids}
    kept = trimmable.close(used, trimmable.text_that_is_unknown(texts))
    trimmed = Tokenizer.from_str(trimmable.trim(kept))
    assert trimmed.get_vocab_size() == len(kept)
    for text, encoding, found in zip(texts, encodings, trimmed.encode_batch(texts), strict=True):
        assert found.tokens == encoding.tokens, text
        assert [kept[token] for token in found.ids] == encoding.ids, text
    return kept, trimmed


# few letters, so that pieces overlap; "z" is in no vocabulary
texts_of_few_letters = st.lists(st.text("abcz ", min_size=1, max_size=14), min_size=1, max_size=6)
pieces = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=25, unique=True)


@settings(max_examples=200, deadline=None)
@given(
    pieces, st.lists(st.sampled_from([-1.0, -2.0, -2.5, -3.0, -7.0]), min_size=30, max_size=30), texts_of_few_letters
)
def test_unigram_takes_the_same_path(pieces, scores, texts):
    vocabulary = [("<unk>", 0.0), *zip(pieces, scores, strict=False), ("▁", -4.0), ("<end>", 0.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(["<unk>", "<end>"])
    assert_splits_alike(backend, texts)


AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


@settings(max_examples=200, deadline=None)
@given(st.data(), texts_of_few_letters, st.sampled_from([(None, None), ("##", None), (None, "</w>")]))
def test_bpe_merges_the_same(data, texts, affixes):
    prefix, suffix = (affix or "" for affix in affixes)
    letters = [begin + letter + end for letter in "abc" for begin in {"", prefix} for end in {"", suffix}]
    vocabulary, merges = ["<unk>", *sorted(letters)], []
    for _ in range(data.draw(st.integers(0, 20))):
        first = data.draw(st.sampled_from([one for one in vocabulary[1:] if not suffix or not one.endswith(suffix)]))
        seconds = [one for one in vocabulary[1:] if one.startswith(prefix)]
        second = data.draw(st.sampled_from(seconds))
        product = first + second.removeprefix(prefix)
        if (first, second) not in merges:
            merges.append((first, second))
            vocabulary += [] if product in vocabulary else [product]
    model = models.BPE(
        {token: place for place, token in enumerate(vocabulary)},
        merges,
        unk_token="<unk>",
        **{name: affix for name, affix in zip(AFFIXES, affixes, strict=True) if affix},
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert_splits_alike(backend, texts)


@settings(max_examples=200, deadline=None)
@given(pieces, pieces, texts_of_few_letters)
def test_wordpiece_finds_the_same_pieces_and_the_same_unknown_words(begins, goes_on, texts):
    tokens = ["[UNK]", *begins, *(f"##{piece}" for piece in goes_on)]
    backend = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert_splits_alike(backend, texts)


def test_a_word_that_wordpiece_does_not_know_stays_unknown():
    # without "ab", which no known word has, "abz" would be split into "a" and "##bz"
    tokens = ["[UNK]", "ab", "a", "c", "##bz"]
    backend = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    kept, _ = assert_splits_alike(backend, ["abz", "cbz", "a"])
    assert 1 in kept


def test_unknown_text_costs_as_much_as_before():
    # unknown characters cost ten more than the lowest score: of pieces that the corpus lacks, too
    vocabulary = [("<unk>", 0.0), ("▁", -1.0), ("a", -3.0), ("rare", -50.0), ("gone", -9.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    kept, _ = assert_splits_alike(backend, ["a aa"])
    assert kept == [0, 1, 2, 3]


def test_byte_level_letters_stay():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate([*alphabet, "Ġa", "Ġab", "bc"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a"), ("Ġa", "b"), ("b", "c")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    kept, trimmed = assert_splits_alike(backend, ["ab ab"])
    assert len(kept) == 258
    assert trimmed.encode("bcé").tokens == ["Ġ", "b", "c", "Ã", "©"]


def test_bytes_that_stand_for_letters_stay():
    bytes_ = [(f"<0x{byte:02X}>", -8.0) for byte in range(256)]
    model = models.Unigram(
        [("<unk>", 0.0), *bytes_, ("▁", -1.0), ("a", -2.0), ("b", -2.0)], unk_id=0, byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    kept, trimmed = assert_splits_alike(backend, ["a"])
    assert len(kept) == 259
    assert trimmed.encode("é").tokens == ["▁", "<0xC3>", "<0xA9>"]


@pytest.mark.parametrize(
    "processor",
    [
        processors.RobertaProcessing(("</s>", 8), ("<s>", 7)),
        processors.BertProcessing(("</s>", 8), ("<s>", 7)),
        processors.Sequence([processors.TemplateProcessing("<s> $A </s>", "$A $B", [("<s>", 7), ("</s>", 8)])]),
    ],
)
def test_what_surrounds_a_text_is_renumbered(processor):
    vocabulary = [("<unk>", 0.0), *((letter, -2.0) for letter in "▁abcde"), ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processor
    backend.enable_padding(pad_id=9, pad_token="<pad>")
    kept, trimmed = assert_splits_alike(backend, ["ab", "b"])
    assert kept == [0, 1, 2, 3, 7, 8, 9]
    assert trimmed.padding["pad_id"] == 6


def test_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match="model is WordLevel, .* Unigram, BPE, WordPiece"):
        TrimmableTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match="dropout=0.5"):
        TrimmableTokenizer(Tokenizer(models.BPE({"a": 0}, [], dropout=0.5)))


# ---- students ----

TEXTS = [" ".join(WORDS[i : i + 5]) for i in range(0, 60, 3)]


@pytest.mark.parametrize("kind", [KDNASModel, KDNASForSequenceClassification, KDNASForMaskedLM])
def test_outputs_are_the_same_bits(kind, tokenizer):
    student = make_student(kind)
    trimmed = trim_vocabulary(student, tokenizer, iter(TEXTS))  # an iterator, which is read once
    assert type(trimmed.student) is kind
    assert trimmed.vocab_size == trimmed.student.config.vocab_size == len(trimmed.tokenizer) < 80
    assert trimmed.bytes < trimmed.bytes_before
    assert_same_bits(student, tokenizer, trimmed.student, trimmed.tokenizer, TEXTS)
    assert not trimmed.student.training
    assert student.config.vocab_size == len(tokenizer) == VOCABULARY


def test_a_masked_language_modeling_head_predicts_what_is_left(tokenizer):
    student = make_student(KDNASForMaskedLM)
    trimmed = trim_vocabulary(student, tokenizer, TEXTS)
    (before, mask), (after, _) = outputs(student, tokenizer, TEXTS), outputs(trimmed.student, trimmed.tokenizer, TEXTS)
    torch.testing.assert_close(after.logits[mask], before.logits[mask][:, trimmed.kept])
    head = trimmed.student.lm_head
    assert head.decoder.weight is trimmed.student.get_input_embeddings().weight
    assert head.decoder.bias is head.bias


def test_an_untied_head_is_trimmed_as_well(tokenizer):
    student = make_student(KDNASForMaskedLM, tie_word_embeddings=False)
    trimmed = trim_vocabulary(student, tokenizer, TEXTS)
    decoder = trimmed.student.lm_head.decoder
    assert torch.equal(decoder.weight, student.lm_head.decoder.weight[trimmed.kept])
    assert torch.equal(decoder.bias, student.lm_head.decoder.bias[trimmed.kept])


def test_stock_students_are_trimmed(tokenizer):
    stock = make_teacher_model().eval()
    trimmed = trim_vocabulary(stock, tokenizer, TEXTS)
    assert type(trimmed.student) is type(stock)
    assert_same_bits(stock, tokenizer, trimmed.student, trimmed.tokenizer, TEXTS)
    headed = XLMRobertaForMaskedLM(stock.config).eval()
    torch.nn.init.normal_(headed.lm_head.bias)
    after = trim_vocabulary(headed, tokenizer, TEXTS).student
    assert torch.equal(after.lm_head.decoder.bias, headed.lm_head.bias[trimmed.kept])
    assert after.lm_head.decoder.weight is after.get_input_embeddings().weight


def test_inherited_embeddings_become_a_table(tokenizer):
    config = KDNASConfig(vocab_size=VOCABULARY, **SHAPE)
    student = create_student(config, TeacherEmbeddings.from_teacher(make_teacher_model())).eval()
    trimmed = trim_vocabulary(student, tokenizer, TEXTS)
    assert isinstance(student.get_input_embeddings(), InheritedWordEmbeddings)
    table = student.get_input_embeddings().weight
    assert torch.equal(trimmed.student.get_input_embeddings().weight, table[trimmed.kept])
    assert trimmed.bytes_before == sum(one.numel() for one in make_student().parameters()) * 4


def test_student_and_tokenizer_come_back_from_a_checkpoint(tokenizer, tmp_path):
    student = make_student()
    trimmed = trim_vocabulary(student, tokenizer, TEXTS)
    trimmed.student.save_pretrained(tmp_path)
    trimmed.tokenizer.save_pretrained(tmp_path)
    model, loaded = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.pad_token_id == model.config.pad_token_id == 1
    assert loaded.mask_token_id == len(loaded) - 1
    assert_same_bits(student, tokenizer, model, loaded, TEXTS)


def late_special_tokens():
    """A tokenizer that XLM-RoBERTa's class builds wrongly: its unknown token is not the fourth."""
    pieces = [("▁", -3.0), *((f"▁{word}", -5.0) for word in WORDS), ("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    backend = Tokenizer(models.Unigram([*pieces, ("<pad>", 0.0)], unk_id=len(WORDS) + 1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    end, begin = len(pieces) - 1, len(pieces) - 2
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A $B", [("<s>", begin), ("</s>", end)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **special)


def test_padding_may_move_and_positions_stay(tmp_path):
    tokenizer = late_special_tokens()
    pad = len(WORDS) + 4
    ids = {"pad_token_id": pad, "bos_token_id": pad - 2, "eos_token_id": pad - 1}
    for student in (
        make_student(vocabulary=pad + 1, **ids, position_padding_idx=1),
        make_student(vocabulary=pad + 1, **ids, max_position_embeddings=pad + 30),  # counted from the padding token
    ):
        trimmed = trim_vocabulary(student, tokenizer, [*TEXTS, "?"])
        config = trimmed.student.config
        assert config.pad_token_id == trimmed.tokenizer.pad_token_id == trimmed.vocab_size - 1
        assert (config.bos_token_id, config.eos_token_id) == (config.pad_token_id - 2, config.pad_token_id - 1)
        assert trimmed.student.get_input_embeddings().padding_idx == config.pad_token_id
        assert config.first_position == student.config.first_position
        assert_same_bits(student, tokenizer, trimmed.student, trimmed.tokenizer, TEXTS)


def test_a_class_that_builds_it_wrongly_is_not_used(tokenizer, tmp_path):
    # said to be XLM-RoBERTa's, whose class takes the fourth token for the unknown one in transformers 5
    backend = late_special_tokens().backend_tokenizer
    backend.add_special_tokens(["<mask>"])
    given = XLMRobertaTokenizerFast(tokenizer_object=backend)
    given._tokenizer = backend
    ids = {"pad_token_id": given.pad_token_id, "bos_token_id": given.bos_token_id, "eos_token_id": given.eos_token_id}
    student = make_student(vocabulary=len(given), **ids, position_padding_idx=1)
    texts = [*TEXTS, "§ ?"]
    trimmed = trim_vocabulary(student, given, texts)
    if not transformers.__version__.startswith("4."):
        assert not isinstance(trimmed.tokenizer, XLMRobertaTokenizerFast)
    assert_same_bits(student, given, trimmed.student, trimmed.tokenizer, texts)
    trimmed.tokenizer.save_pretrained(tmp_path)
    trimmed.student.save_pretrained(tmp_path)
    assert_same_bits(student, given, trimmed.student, AutoTokenizer.from_pretrained(tmp_path), texts)


def test_bert_with_wordpiece_and_lower_case():
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "play",
        "work",
        "##ing",
        "##ed",
        "the",
        "p",
        "##l",
        "##a",
        "w",
    ]
    backend = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
    )
    bert = BertModel(config).eval()
    trimmed = trim_vocabulary(bert, tokenizer, ["Playing", "plaed"])
    assert trimmed.tokenizer.convert_ids_to_tokens(range(trimmed.vocab_size)) == [
        *tokens[:6], *tokens[7:9], "p", "##l", "##a",
    ]  # fmt: skip
    assert trimmed.student.pooler is not None
    assert_same_bits(bert, tokenizer, trimmed.student, trimmed.tokenizer, ["Playing", "plaed"])


def byte_level_roberta():
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "b"), ("a", "p"), ("Ġb", "ap"), ("Ġb", "a"), ("r", "s"), ("Ġba", "rs"), ("t", "t")]
    tokens = [*special[:4], *alphabet, *("".join(merge) for merge in merges), special[4]]
    backend = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return RobertaTokenizerFast(tokenizer_object=backend)


def test_byte_level_tokenizers_come_back(tmp_path):
    tokenizer = byte_level_roberta()
    student = make_student(vocabulary=len(tokenizer))
    texts = ["a bap\nbap é", "bap <mask>"]
    trimmed = trim_vocabulary(student, tokenizer, texts)
    assert len(tokenizer) - trimmed.vocab_size == 3  # "rs", "Ġbars" and "tt"
    trimmed.tokenizer.save_pretrained(tmp_path)
    trimmed.student.save_pretrained(tmp_path)
    for loaded in (trimmed.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert_same_bits(student, tokenizer, trimmed.student, loaded, texts)
        assert loaded.decode(loaded("bap é tt")["input_ids"], skip_special_tokens=True) == "bap é tt"


def test_named_and_added_tokens_stay(tokenizer):
    added = XLMRobertaTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    added.add_tokens(["<entity>"])
    student = make_student(vocabulary=len(added) + 3)  # rows that no token has are left out as well
    word = f"▁{WORDS[-1]}"
    trimmed = trim_vocabulary(student, added, TEXTS, keep=[word])
    assert {word, "<entity>", "<mask>"} < trimmed.tokenizer.get_vocab().keys()
    assert_same_bits(student, added, trimmed.student, trimmed.tokenizer, [WORDS[-1], "<entity>"])
    assert trimmed.vocab_size == len(trimmed.tokenizer)


def test_other_text_is_split_or_unknown_and_that_is_said(tokenizer):
    heldout = ["bap", WORDS[-1]]
    unseen = trim_vocabulary(make_student(), tokenizer, TEXTS, heldout=heldout).unseen
    assert (unseen.texts, unseen.same, unseen.unknown_before, unseen.unknown) == (2, 1, 0, 1)
    assert (unseen.tokens_before, unseen.tokens) == (2, 2)
    assert "50.0% of 2 texts" in str(unseen)


def test_tokens_are_counted(tokenizer):
    counts = count_tokens(tokenizer, iter(["bap bap", "bar"]), VOCABULARY)
    assert counts[0] == counts[2] == 2  # <s> and </s>
    assert counts[tokenizer.convert_tokens_to_ids("▁bap")] == 2
    assert counts.sum() == 7
    assert counts.dtype == np.int64


def test_a_tokenizer_that_splits_otherwise_is_never_returned(tokenizer, monkeypatch):
    close = TrimmableTokenizer.close
    monkeypatch.setattr(TrimmableTokenizer, "close", lambda *args: close(*args)[:-3] + close(*args)[-1:])
    with pytest.raises(ValueError, match="would not do the same as before: .* gives"):
        trim_vocabulary(make_student(), tokenizer, TEXTS)


def test_of_a_large_corpus_a_sample_is_checked(tokenizer, monkeypatch):
    monkeypatch.setattr(vocabulary_trimming, "CHECKED_TEXTS", 10)
    texts = make_texts(2500)
    trimmed = trim_vocabulary(make_student(), tokenizer, texts)
    assert trimmed.vocab_size == len(tokenizer)  # they have all words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": []}, "texts is empty"),
        ({"texts": "bap"}, "texts is one string"),
        ({"texts": ["bap", 3]}, r"texts\[1\] is a int"),
        ({"keep": ["bapbap"]}, "keep names 'bapbap', which is no token"),
        ({"keep": "bap"}, "keep='bap' is one string"),
        ({"vocabulary": 50}, "vocab_size=50: they do not belong together"),
        ({"pad_token_id": 2}, "pad_token_id=1 is not the student's 2"),
    ],
)
def test_bad_input_is_named(changes, message, tokenizer):
    call = {name: changes.pop(name) for name in ("texts", "keep") if name in changes}
    with pytest.raises(ValueError, match=message):
        trim_vocabulary(make_student(**changes), tokenizer, **{"texts": TEXTS} | call)


def test_slow_tokenizers_and_other_models_are_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow is no fast tokenizer"):
        trim_vocabulary(make_student(), Slow(), TEXTS)
    student = make_student()
    student.config.model_type = "t5"
    with pytest.raises(ValueError, match="'t5'; choose one of kdnas"):
        trim_vocabulary(student, tokenizer, TEXTS)
