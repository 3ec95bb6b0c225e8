"""Which checkpoint a killed training goes on from, and what is never deleted."""

import json

from kdnas_hf.utils.checkpoints import last_whole_checkpoint


def checkpoint(folder, step, state=True, random_states=1):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "distillation.safetensors").write_bytes(b"weights")
    if state:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for rank in range(random_states):
        (path / f"rng_state_{rank}.pth").write_bytes(b"random")
    return path


def test_the_newest_whole_one_by_number(tmp_path):
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    half = checkpoint(tmp_path, 110, state=False)
    assert last_whole_checkpoint(tmp_path, 1) == newest
    assert not half.exists()


def test_a_torn_state_counts_as_none(tmp_path):
    torn = checkpoint(tmp_path, 7)
    (torn / "trainer_state.json").write_text('{"global_st')
    assert last_whole_checkpoint(tmp_path, 1) is None
    assert not torn.exists()


def test_one_with_its_state_is_never_deleted(tmp_path):
    of_one_process = checkpoint(tmp_path, 100, random_states=1)
    assert last_whole_checkpoint(tmp_path, 2) == of_one_process
    assert of_one_process.exists()
    without_random_state = checkpoint(tmp_path, 120, random_states=0)
    assert last_whole_checkpoint(tmp_path, 1) == of_one_process
    assert without_random_state.exists()


def test_other_folders_are_left_alone(tmp_path):
    best = tmp_path / "checkpoint-best"
    best.mkdir()
    assert last_whole_checkpoint(tmp_path, 1) is None
    assert best.exists()


def test_a_torn_one_between_two_that_have_their_state_is_removed(tmp_path):
    whole = checkpoint(tmp_path, 9, random_states=2)
    torn = checkpoint(tmp_path, 10, state=False, random_states=2)
    passed_over = checkpoint(tmp_path, 11, random_states=1)
    assert last_whole_checkpoint(tmp_path, 2) == whole
    assert not torn.exists()
    assert passed_over.exists()
    assert last_whole_checkpoint(tmp_path / "nowhere", 1) is None
