"""Fast tokenizers with fewer tokens, which split the same text alike: the edit of their JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers


class TrimmableTokenizer:
    """What of a fast tokenizer has to stay so that some tokens come out as before, and the tokenizer without the rest.

    - Unigram takes the path of the highest score. Without pieces that are on no best path the best paths stay the best.
      A character without a piece costs ten more than the lowest score, so a piece of that score stays.
    - BPE applies the merge of the lowest rank again and again. The merges that lead to a token make substrings of it;
      all of these stay, and the ranks among them.
    - WordPiece takes the longest piece that fits. Shorter ones do not change that; what does is a word that is unknown
      after some of its pieces have been found, so those stay as well.

    The characters of what stays do so as well, wherever they have tokens of their own, so that other words of the same
    letters are split and not unknown.

    Args:
        backend: The tokenizer.

    Raises:
        ValueError: If its model is of another kind, or splits at random.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend
        self.fields: dict[str, Any] = json.loads(backend.to_str())
        self.model: dict[str, Any] = self.fields["model"]
        self.kind: str = self.model["type"]
        if self.kind not in _CLOSURES:
            raise ValueError(
                f"the tokenizer's model is {self.kind}, of which no tokens can be left out; that is possible with "
                f"{', '.join(_CLOSURES)}."
            )
        if self.model.get("dropout"):
            raise ValueError(f"the tokenizer has dropout={self.model['dropout']} and splits at random; set it to None.")
        tokens = self.model["vocab"]
        if self.kind == "Unigram":
            tokens = {piece: place for place, (piece, _) in enumerate(tokens)}
        self.ids: Mapping[str, int] = tokens
        self.tokens: dict[int, str] = {place: token for token, place in tokens.items()}
        self.added = {token["id"] for token in self.fields["added_tokens"]}

    @property
    def unknown_id(self) -> int | None:
        """The token for what cannot be split; None if there is none."""
        if self.kind == "Unigram":
            return self.model["unk_id"]
        return None if self.model["unk_token"] is None else self.ids.get(self.model["unk_token"])

    def close(self, used: Iterable[int], unknown: Iterable[str] = ()) -> list[int]:
        """What has to stay so that tokens come out as before.

        Args:
            used: Tokens that come out, and others that shall be able to.
            unknown: Stretches of text that came out as unknown.

        Returns:
            The tokens that stay, in ascending order.
        """
        always = {*self.added, *_named_ids(self.fields)}
        if self.unknown_id is not None:
            always.add(self.unknown_id)
        used = set(used)
        kept = used | always
        kept |= _CLOSURES[self.kind](self, {self.tokens[place] for place in used - always})
        if self.kind == "WordPiece":
            for stretch in unknown:
                for word in self._words(stretch):
                    kept |= self._first_pieces(word)
        return sorted(kept)

    def trim(self, kept: list[int]) -> str:
        """The JSON of a tokenizer that has only the tokens `kept`, numbered in their order."""
        new_ids = {old: new for new, old in enumerate(kept)}
        fields = copy.copy(self.fields)
        model = fields["model"] = copy.copy(self.model)
        if self.kind == "Unigram":
            model["vocab"] = [self.model["vocab"][old] for old in kept if old < len(self.model["vocab"])]
            if model["unk_id"] is not None:
                model["unk_id"] = new_ids[model["unk_id"]]
        else:
            model["vocab"] = {self.tokens[old]: new for old, new in new_ids.items() if old in self.tokens}
        if self.kind == "BPE":
            left = model["vocab"]
            model["merges"] = [
                merge
                for merge, (first, second, product) in zip(self.model["merges"], self._merges(), strict=True)
                if first in left and second in left and product in left
            ]
        fields["added_tokens"] = [{**token, "id": new_ids[token["id"]]} for token in self.fields["added_tokens"]]
        fields["post_processor"] = _renumber_post_processor(self.fields["post_processor"], new_ids)
        if fields["padding"] is not None:
            fields["padding"] = {**fields["padding"], "pad_id": new_ids[fields["padding"]["pad_id"]]}
        return json.dumps(fields, ensure_ascii=False)

    def text_that_is_unknown(self, texts: list[str]) -> set[str]:
        """The stretches of texts that come out as unknown."""
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        return {
            text[start:end]
            for text, encoding in zip(texts, encodings, strict=True)
            for place, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if place == self.unknown_id
        }

    def _merges(self) -> Iterable[tuple[str, str, str]]:
        """Both parts of each merge, and what they make."""
        prefix = self.model["continuing_subword_prefix"] or ""
        for merge in self.model["merges"]:
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            yield first, second, first + second.removeprefix(prefix)

    def _words(self, stretch: str) -> list[str]:
        backend = self.backend
        text = backend.normalizer.normalize_str(stretch) if backend.normalizer else stretch
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]

    def _first_pieces(self, word: str) -> set[int]:
        """The pieces that WordPiece finds in a word, to its end or until nothing fits."""
        prefix, found, start = self.model["continuing_subword_prefix"], set(), 0
        while start < len(word):
            begin = prefix if start else ""
            for end in range(len(word), start, -1):
                if begin + word[start:end] in self.ids:
                    found.add(self.ids[begin + word[start:end]])
                    start = end
                    break
            else:
                break
        return found


def _close_unigram(tokenizer: TrimmableTokenizer, kept: set[str]) -> set[int]:
    pieces = tokenizer.model["vocab"]
    lowest = min(range(len(pieces)), key=lambda place: pieces[place][1])
    characters = {character for token in kept for character in token}
    return {lowest} | _places(tokenizer, characters) | _byte_fallback(tokenizer)


def _close_bpe(tokenizer: TrimmableTokenizer, kept: set[str]) -> set[int]:
    prefix, suffix = (tokenizer.model[f"{name}"] or "" for name in ("continuing_subword_prefix", "end_of_word_suffix"))
    bodies = {token.removeprefix(prefix) for token in kept}
    parts = {
        body[start:end] for body in bodies for start in range(len(body)) for end in range(start + 1, len(body) + 1)
    }
    if _mentions_byte_level(tokenizer.fields["pre_tokenizer"]) or _mentions_byte_level(tokenizer.fields["normalizer"]):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        parts |= {*alphabet, *(character + suffix for character in alphabet)}
    return {place for token, place in tokenizer.ids.items() if token.removeprefix(prefix) in parts} | _byte_fallback(
        tokenizer
    )


def _close_wordpiece(tokenizer: TrimmableTokenizer, kept: set[str]) -> set[int]:
    prefix = tokenizer.model["continuing_subword_prefix"]
    characters = {character for token in kept for character in token.removeprefix(prefix)}
    return _places(tokenizer, {*characters, *(prefix + character for character in characters)})


# the model's kind, and what has to stay beside the tokens that are used
_CLOSURES: dict[str, Callable[[TrimmableTokenizer, set[str]], set[int]]] = {
    "Unigram": _close_unigram,
    "BPE": _close_bpe,
    "WordPiece": _close_wordpiece,
}


def _places(tokenizer: TrimmableTokenizer, tokens: Iterable[str]) -> set[int]:
    return {tokenizer.ids[token] for token in tokens if token in tokenizer.ids}


def _byte_fallback(tokenizer: TrimmableTokenizer) -> set[int]:
    """The tokens of single bytes, which stand for characters without a token."""
    if not tokenizer.model.get("byte_fallback"):
        return set()
    return _places(tokenizer, (f"<0x{byte:02X}>" for byte in range(256)))


def _mentions_byte_level(step: Any) -> bool:
    if isinstance(step, list):
        return any(_mentions_byte_level(one) for one in step)
    if isinstance(step, dict):
        return step.get("type") == "ByteLevel" or any(_mentions_byte_level(one) for one in step.values())
    return False


def _named_ids(fields: dict[str, Any]) -> set[int]:
    """The tokens that padding and post-processing name."""
    named = set() if fields["padding"] is None else {fields["padding"]["pad_id"]}

    class _Noting(dict):  # a numbering that notes what it is asked
        def __missing__(self, old: int) -> int:
            named.add(old)
            return old

    _renumber_post_processor(fields["post_processor"], _Noting())
    return named


def _renumber_post_processor(processor: dict[str, Any] | None, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    if processor is None:
        return None
    if processor["type"] == "Sequence":
        return {**processor, "processors": [_renumber_post_processor(one, new_ids) for one in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        special = {
            name: {**token, "ids": [new_ids[old] for old in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": special}
    if processor["type"] in ("RobertaProcessing", "BertProcessing"):
        renumbered = {name: [processor[name][0], new_ids[processor[name][1]]] for name in ("sep", "cls")}
        return {**processor, **renumbered}
    return processor


__all__ = ["TrimmableTokenizer"]
