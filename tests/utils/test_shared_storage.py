"""Addresses of storages, what goes wrong with them, and that no password is shown."""

import logging
import sys

import optuna
import pytest

from kdnas_hf.hub.public_text import find_private, public_command
from kdnas_hf.search import SearchArguments
from kdnas_hf.utils.shared_storage import StorageError, check_storage, open_file, open_storage, public_storage

UNREACHABLE = "postgresql+psycopg://user:secret-word@127.0.0.1:1/database"


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_no_message_shows_a_password(monkeypatch):
    monkeypatch.setattr("kdnas_hf.utils.shared_storage.time.sleep", lambda seconds: None)
    for address in (UNREACHABLE, "nonsense://user:secret-word@host/database", "nonsense+x:secret-word@"):
        with pytest.raises(ValueError, match="^storage=") as caught:
            open_storage(address)
        if "//" in address:
            assert "secret-word" not in str(caught.value)
            assert caught.value.__suppress_context__
    assert public_storage(UNREACHABLE) == "postgresql+psycopg://127.0.0.1:1/database"
    assert "hidden" not in public_storage("postgresql://host/db?password=hidden&sslmode=require")


def test_no_command_that_is_published_names_a_storage():
    told = [
        "--storage",
        UNREACHABLE,
        f"--warm_start={UNREACHABLE}",
        "--storage=journal:/shared/me/study.log",
        UNREACHABLE,
    ]
    shown = public_command(told)
    assert shown[:4] == ["--storage", "<storage>", "--warm_start=<storage>", "--storage=<storage>"]
    assert "secret-word" not in " ".join(shown)
    assert any("password" in found for found in find_private(UNREACHABLE))


def test_a_missing_driver_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"pip install 'kdnas_hf\[postgresql\]'"):
        open_storage("postgresql://user@host/database")


def test_impossible_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        check_storage(f"journal:{tmp_path}/missing/study.log")
    with pytest.raises(ValueError, match="storage='study.log' is no address"):
        SearchArguments(storage="study.log")
    with pytest.raises(ValueError, match="worker_timeout"):
        SearchArguments(worker_timeout=0)


@pytest.mark.parametrize("name", ["faster?1", "50%41", "a#b", "mode=memory?&uri=false", "with space", "größer", "a%%b"])
def test_a_study_lies_in_its_directory_whatever_that_is_called(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    for trials in (1, 2):
        study = optuna.create_study(storage=open_file(folder / "study.db"), study_name="s", load_if_exists=True)
        study.add_trial(optuna.trial.create_trial(value=1.0))
        assert len(study.trials) == trials
    assert [path.name for path in tmp_path.rglob("*")] == [name, "study.db"]


def test_a_journal_that_was_torn_goes_on(tmp_path):
    path = tmp_path / "study.log"
    storage = open_storage(f"journal:{path}")
    study = optuna.create_study(storage=storage, study_name="kdnas")
    study.set_user_attr("before", 1)
    path.write_bytes(path.read_bytes() + b'{"op_code":2,"study_')
    study.set_user_attr("after", 2)
    again = optuna.load_study(study_name="kdnas", storage=open_storage(f"journal:{path}"))
    assert again.user_attrs == {"before": 1, "after": 2}


def test_calls_wait_for_a_server_that_is_restarted_and_end_where_it_stays_away(postgresql, caplog, monkeypatch):
    from kdnas_hf.utils import shared_storage as module

    storage = open_storage(postgresql.url, patience=0.5)
    study = optuna.create_study(storage=storage, study_name="outage")
    postgresql.stop()
    starts = [postgresql.start]
    monkeypatch.setattr(module.time, "sleep", lambda seconds: starts.pop()() if starts else None)
    with caplog.at_level(logging.WARNING, logger="kdnas_hf"):
        study.set_user_attr("after", 1)
    assert study.user_attrs == {"after": 1}
    assert "does not answer" in caplog.text
    postgresql.stop()
    try:
        with pytest.raises(StorageError, match="storage='postgresql.* has been away") as caught:
            study.set_user_attr("after", 2)
    finally:
        postgresql.start()
    assert "secret-word" not in str(caught.value) + caplog.text
