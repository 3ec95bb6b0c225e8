"""Command lines: a file, flags that override it, and errors that name the nearest key."""

import json
from dataclasses import dataclass, field

import pytest

from kdnas_hf.utils.arguments import parse_arguments


@dataclass
class First:
    output_dir: str
    num_episodes: int = 15
    learning_rate: float = 1e-3
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Second:
    streaming: bool = False
    limit: int | None = None


def write(path, text):
    path.write_text(text)
    return str(path)


def test_file_and_flags_with_flags_winning(tmp_path):
    path = write(tmp_path / "a.yaml", "output_dir: runs/a\nnum_episodes: 3\nlearning_rate: 1e-4\nnames: [x, y]\n")
    first, second = parse_arguments((First, Second), [path, "--num_episodes", "2", "--limit", "7"])
    assert first == First("runs/a", 2, 1e-4, ["x", "y"])
    assert second == Second(limit=7)


def test_json_file(tmp_path):
    path = write(tmp_path / "a.json", json.dumps({"output_dir": "o", "streaming": True}))
    assert parse_arguments((First, Second), [path]) == (First("o"), Second(streaming=True))


def test_flags_alone():
    first, _ = parse_arguments((First, Second), ["--output_dir", "o", "--names", "p", "q"])
    assert first.names == ["p", "q"]


def test_unknown_key_names_the_nearest(tmp_path):
    path = write(tmp_path / "a.yaml", "output_dir: o\nnum_episode: 3\n")
    with pytest.raises(ValueError, match="'num_episode', which is no argument; did you mean num_episodes"):
        parse_arguments((First, Second), [path])


def test_unknown_flag_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean --learning_rate"):
        parse_arguments((First, Second), ["--output_dir", "o", "--learning-rat", "1"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "- 1\n", "must map arguments to values"),
        ("a.yaml", "a: [\n", "is not valid"),
        ("a.json", "{", "is not valid"),
        ("a.txt", "", "neither a flag nor"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments((First, Second), [write(tmp_path / name, text)])


def test_missing_file_is_refused():
    with pytest.raises(ValueError, match="cannot be read"):
        parse_arguments((First, Second), ["/nowhere/a.yaml"])
