"""The ledger: one line an architecture, on the disk at once, and a damaged tail costs no good line."""

import json
import logging

import pytest
from records import record

from kdnas_hf.search import Ledger

KEYS = {
    "number", "episode", "architecture", "state", "loss", "r2", "latency_ms", "latency_iqr_ms", "teacher_latency_ms",
    "speedup", "parameters", "tokens", "seconds", "reward",
}  # fmt: skip


def test_lines_hold_the_documented_keys_and_read_back(tmp_path):
    ledger = Ledger(tmp_path / "architectures.jsonl")
    records = [record(0), record(1, state="failed"), record(2, r2=0.123456789)]
    for each in records:
        ledger.append(each)
    assert ledger.read() == records
    for line in ledger.path.read_text().splitlines():
        assert set(json.loads(line)) == KEYS


@pytest.mark.parametrize("tail", [b'{"number": 2, "epis', b'{"number": 2}\n', b"\x00\x00\xff", b"[]\n"])
def test_the_last_good_line_counts_and_a_warning_says_so(tmp_path, caplog, tail):
    ledger = Ledger(tmp_path / "architectures.jsonl")
    records = [record(0), record(1)]
    for each in records:
        ledger.append(each)
    with ledger.path.open("ab") as file:
        file.write(tail)
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        assert ledger.read() == records
    assert "line 3" in caplog.text
    assert "2 records before it count" in caplog.text


def test_missing_ledger_is_empty(tmp_path):
    assert Ledger(tmp_path / "architectures.jsonl").read() == []
