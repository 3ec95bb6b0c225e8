"""Labels go to first sub-words, and what is cut off is counted."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from kdnas_hf.evaluation import Example, encode_examples


@pytest.fixture
def pieces():
    """A tokenizer that cuts words into characters."""
    vocabulary = {
        token: number for number, token in enumerate(["<unk>", "<pad>", *"abcdef", *(f"##{c}" for c in "abcdef")])
    }
    model = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", model_max_length=32)


def test_the_first_sub_word_has_the_label(pieces):
    encoded = encode_examples([Example(["abc", "d", "ef"], [1, 0, 2])], pieces, 32)
    assert encoded.dataset[0]["labels"] == [1, -100, -100, 0, 2, -100]
    assert encoded.read_words == [[0, 1, 2]]
    assert (encoded.truncated, encoded.unread) == ([False], [0])


def test_words_that_are_cut_off_are_counted(pieces):
    encoded = encode_examples([Example(["abc", "d", "ef"], [1, 0, 2]), Example(["a"], [0])], pieces, 3)
    assert encoded.dataset[0]["labels"] == [1, -100, -100]
    assert encoded.read_words == [[0], [0]]
    assert (encoded.truncated, encoded.unread) == ([True, False], [2, 0])


def test_pairs_lose_the_end_of_the_longer_text(tokenizer):
    long = Example(" ".join(["bap"] * 20), 0, "dap dap")
    encoded = encode_examples([long], tokenizer, 16)
    ids = encoded.dataset[0]["input_ids"]
    assert len(ids) == 16
    assert ids.count(tokenizer.convert_tokens_to_ids("▁dap")) == 2
    assert encoded.truncated == [True]


def test_what_cannot_be_encoded_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_length=65 exceeds the model_max_length=64"):
        encode_examples([Example("bap", 0)], tokenizer, 65)
    with pytest.raises(ValueError, match="no examples"):
        encode_examples([], tokenizer, 16)
