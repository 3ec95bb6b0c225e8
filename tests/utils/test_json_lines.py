"""Files of JSON lines: on the disk at once, and a damaged tail costs no good line."""

import logging
from dataclasses import dataclass

import pytest

from kdnas_hf.utils.json_lines import JsonLines, JsonRecord


@dataclass(frozen=True)
class Record(JsonRecord):
    number: int
    value: float = 0.1


RECORDS = [Record(0), Record(1, 0.123456789)]


@pytest.fixture
def lines(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl", Record.from_json)
    for record in RECORDS:
        lines.append(record)
    return lines


@pytest.mark.parametrize("tail", [b'{"number": 2, "val', b'{"other": 2}\n', b"\x00\x00\xff", b"[]\n"])
def test_the_last_good_line_counts_and_a_warning_says_so(lines, caplog, tail):
    with lines.path.open("ab") as file:
        file.write(tail)
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        assert lines.read() == RECORDS
    assert "line 3" in caplog.text
    assert "2 records before it count" in caplog.text


def test_what_follows_a_damaged_line_does_not_count(lines):
    first, second, _ = lines.path.read_bytes().split(b"\n")
    lines.path.write_bytes(b"\n".join([first, second[:-3], second, b""]))
    assert lines.read() == RECORDS[:1]


def test_a_missing_file_is_empty(tmp_path):
    assert JsonLines(tmp_path / "lines.jsonl", Record.from_json).read() == []


def test_a_file_is_replaced_only_if_it_differs(lines):
    before = lines.path.stat()
    lines.set_to(RECORDS)
    assert lines.path.stat().st_ino == before.st_ino
    lines.set_to([*RECORDS, Record(2)])
    assert lines.read() == [*RECORDS, Record(2)]
    lines.set_to([])
    assert lines.read() == []
