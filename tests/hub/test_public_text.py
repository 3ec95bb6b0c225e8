"""What is said in public names no folder, no user and no token."""

import getpass
from pathlib import Path

import pytest

from kdnas_hf.hub.public_text import find_private, public, public_command, public_values

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/data/de.txt", "de.txt"),
        ("~/models/teacher", "teacher"),
        ("../private/teacher", "teacher"),
        ("C:\\Users\\jane\\teacher", "teacher"),
        ("name=/home/jane/student", "name=student"),
        ("--output_dir=/mnt/x/run", "--output_dir=run"),
        ("runs/quickstart/student", "runs/quickstart/student"),
        ("FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-base"),
        ("hidden_states:1.0", "hidden_states:1.0"),
        (TOKEN, "<token>"),
        (f"token={TOKEN}", "token=<token>"),
        ("1 x 128 tokens, 1 thread(s)", "1 x 128 tokens, 1 thread(s)"),
    ],
)
def test_paths_are_cut_and_tokens_replaced(text, shown):
    assert public(text) == shown


def test_a_flag_that_takes_a_token_hides_it_whatever_it_looks_like():
    command = ["recipes/search.py", "--hub_token", "secret", "--seed", "1"]
    assert public_command(command) == ["recipes/search.py", "--hub_token", "<token>", "--seed", "1"]


def test_nested_values_are_made_public():
    values = {"a": ["/home/jane/x", 1], "b": {"c": ("~/y",)}, "d": None}
    assert public_values(values) == {"a": ["x", 1], "b": {"c": ["y"]}, "d": None}


@pytest.mark.parametrize(
    "text",
    [
        f"login with {TOKEN}",
        '"_name_or_path": "/home/jane/student"',
        "see /Users/jane/run.",
        "from /tmp/tmpabc123/student",
        "`~/run/student`",
        r"C:\Users\jane\run",
        f"{Path.home()}/x" if len(str(Path.home())) > 1 else "/root/x",
    ],
)
def test_what_is_private_is_found(text):
    assert find_private(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/home/user and https://arxiv.org/abs/2303.09639",
        "runs/quickstart/student and recipes/configs/intents.yaml",
        "accuracy and/or F1, 7/8 right; a/b",
        "import torch  # (batch, sequence)",
        "see docs/data/x.md and ./work/y",
    ],
)
def test_what_is_not_private_is_not_found(text):
    assert find_private(text) == []


def test_the_name_of_the_user_is_found_in_a_path(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    assert find_private("cache at /scratch/jdoe/run") == ["the user's name (jdoe)"]
    assert find_private("jdoe is a word") == []
