"""The run directory: made, recognised, or refused with the difference."""

import pytest
import yaml

from kdnas_hf.utils.run_directory import configuration_differences, settle_configuration

CONFIGURATION = {"teacher": "t", "search": {"num_episodes": 3, "space": {"hidden_size": [8, 16]}}}


def test_configuration_is_written_and_recognised(tmp_path):
    folder = tmp_path / "runs" / "a"
    assert settle_configuration(folder, CONFIGURATION) is False
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIGURATION
    assert settle_configuration(folder, CONFIGURATION) is True


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    settle_configuration(tmp_path, CONFIGURATION)
    changed = {"teacher": "t", "search": {"num_episodes": 4, "space": {"hidden_size": [8, 24]}}}
    with pytest.raises(ValueError, match="num_episodes: 3 there, 4 now") as error:
        settle_configuration(tmp_path, changed)
    assert "search.space.hidden_size: [8, 16] there, [8, 24] now" in str(error.value)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIGURATION


def test_resuming_can_be_forbidden(tmp_path):
    settle_configuration(tmp_path, CONFIGURATION)
    with pytest.raises(ValueError, match="resume is off"):
        settle_configuration(tmp_path, CONFIGURATION, resume=False)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        settle_configuration(tmp_path / "file" / "run", CONFIGURATION)


def test_differences_name_keys_that_only_one_has():
    assert configuration_differences({"a": 1}, {"b": 2}) == ["a: 1 there, None now", "b: None there, 2 now"]
