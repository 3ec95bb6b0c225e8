"""The Hub on loopback answers the real client as the Hub does."""

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: mit\ntags: [kdnas]\n---\n# Card\n")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    (path / "sub" / "config.json").write_text('{"a": 1}\n')
    return path


def test_what_is_uploaded_is_downloaded_byte_by_byte(hub, api, folder, tmp_path):
    assert api.create_repo("jane/model", private=True).repo_id == "jane/model"
    commit = api.upload_folder(repo_id="jane/model", folder_path=folder, commit_message="first")
    assert hub.repositories["jane/model"].branches["main"].oid == commit.oid
    assert len(hub.received) == 1  # the weights, by git-lfs
    files = ["README.md", "model.safetensors", "sub/config.json"]
    assert sorted(api.list_repo_files("jane/model")) == [".gitattributes", *files]
    info = api.model_info("jane/model", files_metadata=True)
    assert info.private
    assert info.tags == ["kdnas"]
    cache = tmp_path / "cache"
    found = snapshot_download("jane/model", endpoint=hub.endpoint, token=api.token, cache_dir=cache)
    for name in files:
        with open(f"{found}/{name}", "rb") as file:
            assert file.read() == (folder / name).read_bytes()


def test_an_upload_of_the_same_makes_no_commit(hub, api, folder):
    api.create_repo("jane/model")
    api.upload_folder(repo_id="jane/model", folder_path=folder)
    before = len(hub.repositories["jane/model"].commits)
    api.upload_folder(repo_id="jane/model", folder_path=folder)
    assert len(hub.repositories["jane/model"].commits) == before
    (folder / "model.safetensors").unlink()
    api.upload_folder(repo_id="jane/model", folder_path=folder, delete_patterns=["*"])
    assert "model.safetensors" not in api.list_repo_files("jane/model")


def test_who_may_not_does_not(hub, api, stranger, folder, tmp_path):
    with pytest.raises(Exception, match="Invalid user token"):  # of another kind in each line of the client
        HfApi(endpoint=hub.endpoint, token="hf_" + "nobody" * 5).whoami()
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("john/model")
    assert api.create_repo("acme/model").repo_id == "acme/model"  # an organisation of jane's
    api.create_repo("jane/model", private=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("jane/model")
    assert api.create_repo("jane/model", exist_ok=True).repo_id == "jane/model"
    assert not stranger.repo_exists("jane/model")
    with pytest.raises(RepositoryNotFoundError):
        stranger.model_info("jane/model")
    api.update_repo_settings("jane/model", private=False)
    assert stranger.repo_exists("jane/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.upload_folder(repo_id="jane/model", folder_path=folder)
    with pytest.raises(RevisionNotFoundError):
        stranger.model_info("jane/model", revision="v9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("jane/model", "none", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)


def test_branches_are_apart(hub, api, folder):
    api.create_repo("jane/model")
    api.create_branch("jane/model", branch="v2")
    api.create_branch("jane/model", branch="v2", exist_ok=True)
    api.upload_folder(repo_id="jane/model", folder_path=folder, revision="v2")
    assert "README.md" in api.list_repo_files("jane/model", revision="v2")
    assert "README.md" not in api.list_repo_files("jane/model")
    assert {ref.name for ref in api.list_repo_refs("jane/model").branches} == {"main", "v2"}


def test_a_card_that_is_not_valid_is_refused_before_anything_is_sent(hub, api, folder):
    (folder / "README.md").write_text("---\nlicense: free-beer\n---\n")
    api.create_repo("jane/model")
    with pytest.raises(ValueError, match="license"):
        api.upload_folder(repo_id="jane/model", folder_path=folder)
    assert not hub.received


def test_an_upload_that_is_cut_leaves_no_commit_and_is_not_sent_twice(hub, api, folder):
    api.create_repo("jane/model")
    hub.fail_next("POST", "/commit/", status=400)
    with pytest.raises(HfHubHTTPError):
        api.upload_folder(repo_id="jane/model", folder_path=folder)
    assert len(hub.repositories["jane/model"].commits) == 1  # that of the creation
    assert len(hub.received) == 1
    api.upload_folder(repo_id="jane/model", folder_path=folder)
    assert len(hub.repositories["jane/model"].commits) == 2
    assert len(hub.received) == 1


def test_collections_hold_models_with_notes(hub, api):
    api.create_repo("jane/model")
    made = api.create_collection("My students", namespace="jane", description="Small", private=True)
    again = api.create_collection("My students", namespace="jane", exists_ok=True)
    assert again.slug == made.slug
    api.add_collection_item(made.slug, "jane/model", "model", note="fast")
    api.add_collection_item(made.slug, "jane/model", "model", note="fast", exists_ok=True)
    (item,) = api.get_collection(made.slug).items
    assert (item.item_id, item.note) == ("jane/model", "fast")
