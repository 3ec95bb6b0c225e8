"""The Hub on loopback answers the real client as the Hub does, and fails when it is told to."""

import subprocess
import sys

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from loopback_server import served
from loopback_store import blob_id
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

MODEL = "jane/model"
CARD = "---\nlicense: mit\nlanguage: [de, sw]\ntags: [kdnas]\nlibrary_name: transformers\n---\n# Card\n"
LOAD = """
import sys
import transformers
model = transformers.AutoModel.from_pretrained(sys.argv[1], revision=sys.argv[2])
print(type(model).__name__, sum(parameter.double().sum().item() for parameter in model.parameters()))
"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def jane(hub):
    return hub.api("jane")


@pytest.fixture
def john(hub):
    return hub.api("john")


@pytest.fixture
def folder(tmp_path):
    """A card, three files of weights, and small text in a folder."""
    path = tmp_path / "folder"
    (path / "sub").mkdir(parents=True)
    (path / "README.md").write_text(CARD)
    (path / "sub" / "config.json").write_text('{"a": "ä"}\n')
    for number in range(3):
        save_file({"weight": torch.full((64, 100), float(number))}, path / f"part-{number}.safetensors")
    return path


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def commits(hub):
    return [commit.title for commit in hub.repositories[MODEL].history()]


def test_what_is_uploaded_is_downloaded_byte_by_byte(hub, jane, folder):
    assert jane.create_repo(MODEL).repo_id == MODEL
    commit = jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    assert hub.repositories[MODEL].branches["main"].oid == commit.oid
    assert commit.commit_url == f"{hub.endpoint}/{MODEL}/commit/{commit.oid}"
    assert len(hub.lfs_uploads) == 3
    for client in (jane, hub.api()):
        found = snapshot_download(MODEL, endpoint=hub.endpoint, token=client.token)
        assert {**contents(folder), ".gitattributes": hub.repositories[MODEL].files()[".gitattributes"]} == {
            name: data for name, data in contents(type(folder)(found)).items()
        }
    one = hf_hub_download(MODEL, "sub/config.json", revision=commit.oid, endpoint=hub.endpoint)
    with open(one, encoding="utf-8") as file:
        assert file.read() == '{"a": "ä"}\n'


def test_a_repository_tells_what_it_holds(hub, jane, folder):
    jane.create_repo(MODEL)
    oid = jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first").oid
    names = [".gitattributes", *sorted(contents(folder))]
    assert sorted(jane.list_repo_files(MODEL)) == sorted(names)
    info = jane.model_info(MODEL, files_metadata=True)
    assert (info.sha, info.private, info.author, info.library_name) == (oid, False, "jane", "transformers")
    assert {"kdnas", "de", "sw", "license:mit", "safetensors"} <= set(info.tags)
    assert info.card_data.license == "mit"
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    weights = (folder / "part-0.safetensors").read_bytes()
    assert files["part-0.safetensors"].size == files["part-0.safetensors"].lfs.size == len(weights)
    assert files["README.md"].lfs is None
    assert files["README.md"].blob_id == blob_id(CARD.encode())
    assert {entry.path for entry in jane.list_repo_tree(MODEL)} == {
        ".gitattributes", "README.md", "sub", *(f"part-{number}.safetensors" for number in range(3))
    }  # fmt: skip
    assert [entry.path for entry in jane.list_repo_tree(MODEL, "sub")] == ["sub/config.json"]
    assert [entry.path for entry in jane.get_paths_info(MODEL, ["README.md", "none"])] == ["README.md"]
    assert [commit.title for commit in jane.list_repo_commits(MODEL)] == ["first", "initial commit"]


def test_an_upload_of_the_same_makes_no_commit_and_deletions_make_one(hub, jane, folder):
    jane.create_repo(MODEL)
    first = jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    again = jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="again", delete_patterns=["*"])
    assert again.oid == first.oid
    assert commits(hub) == ["first", "initial commit"]
    (folder / "part-0.safetensors").unlink()
    jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="less", delete_patterns=["*"])
    assert "part-0.safetensors" not in jane.list_repo_files(MODEL)
    assert ".gitattributes" in jane.list_repo_files(MODEL)
    jane.delete_file("README.md", MODEL, commit_message="no card")
    jane.create_commit(MODEL, [CommitOperationDelete("sub/")], commit_message="no folder")
    assert commits(hub) == ["no folder", "no card", "less", "first", "initial commit"]
    with pytest.raises(EntryNotFoundError):
        jane.delete_file("README.md", MODEL)
    assert "README.md" in jane.list_repo_files(MODEL, revision=first.oid)


def test_without_a_valid_token_nothing_is_written(hub, jane, folder):
    for client in (HfApi(endpoint=hub.endpoint, token="hf_" + "nobody" * 5), hub.api()):
        with pytest.raises(HfHubHTTPError, match="401"):
            client.create_repo(MODEL)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.endpoint, token="hf_" + "nobody" * 5).whoami()
    hub.tokens["hf_read"] = "jane"
    hub.store.read_only_tokens.add("hf_read")
    reader = HfApi(endpoint=hub.endpoint, token="hf_read")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.create_repo(MODEL)
    jane.create_repo(MODEL)
    with pytest.raises(HfHubHTTPError, match="403"):
        reader.upload_folder(repo_id=MODEL, folder_path=folder)
    assert commits(hub) == ["initial commit"]


def test_repositories_belong_to_their_owners(hub, jane, john, folder):
    assert jane.whoami()["name"] == "jane"
    assert [organisation["name"] for organisation in jane.whoami()["orgs"]] == ["acme"]
    assert jane.create_repo("acme/model").repo_id == "acme/model"
    with pytest.raises(HfHubHTTPError, match="403"):
        john.create_repo("acme/other")
    jane.create_repo(MODEL)
    with pytest.raises(HfHubHTTPError, match="409"):
        jane.create_repo(MODEL)
    assert jane.create_repo(MODEL, exist_ok=True).repo_id == MODEL
    with pytest.raises(HfHubHTTPError, match="403"):
        john.upload_folder(repo_id=MODEL, folder_path=folder)
    with pytest.raises(HfHubHTTPError, match="403"):
        john.delete_repo(MODEL)
    jane.delete_repo(MODEL)
    assert not jane.repo_exists(MODEL)
    jane.delete_repo(MODEL, missing_ok=True)


def test_a_private_repository_is_invisible_to_others(hub, jane, john, folder, tmp_path):
    jane.create_repo(MODEL, private=True)
    jane.upload_folder(repo_id=MODEL, folder_path=folder)
    assert jane.model_info(MODEL).private
    for other in (john, hub.api()):
        assert not other.repo_exists(MODEL)
        for read in (other.model_info, other.list_repo_files, other.list_repo_refs):
            with pytest.raises(RepositoryNotFoundError):
                read(MODEL)
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download(MODEL, "README.md", endpoint=hub.endpoint, token=other.token, cache_dir=tmp_path / "none")
    jane.update_repo_settings(MODEL, private=False)
    assert john.repo_exists(MODEL)
    assert "README.md" in hub.api().list_repo_files(MODEL)


def test_what_is_missing_has_the_errors_of_the_client(jane):
    jane.create_repo(MODEL)
    for name in ("jane/none", "none"):
        with pytest.raises(RepositoryNotFoundError):
            jane.model_info(name)
    with pytest.raises(RevisionNotFoundError):
        jane.model_info(MODEL, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        list(jane.list_repo_tree(MODEL, revision="v9"))
    with pytest.raises(EntryNotFoundError):
        jane.hf_hub_download(MODEL, "none")
    with pytest.raises(EntryNotFoundError):
        list(jane.list_repo_tree(MODEL, "none"))
    assert not jane.file_exists(MODEL, "none")
    assert jane.file_exists(MODEL, ".gitattributes")


def test_branches_are_apart(hub, jane, folder):
    first = jane.create_commit(
        jane.create_repo(MODEL).repo_id, [CommitOperationAdd("a.txt", b"a")], commit_message="a"
    ).oid
    jane.create_branch(MODEL, branch="pilot/v2")
    with pytest.raises(HfHubHTTPError, match="409"):
        jane.create_branch(MODEL, branch="pilot/v2")
    jane.create_branch(MODEL, branch="pilot/v2", exist_ok=True)
    head = jane.upload_folder(repo_id=MODEL, folder_path=folder, revision="pilot/v2").oid
    assert {ref.name: ref.target_commit for ref in jane.list_repo_refs(MODEL).branches} == {
        "main": first, "pilot/v2": head
    }  # fmt: skip
    assert "README.md" not in jane.list_repo_files(MODEL)
    assert jane.model_info(MODEL, revision="pilot/v2").sha == head
    assert jane.hf_hub_download(MODEL, "README.md", revision="pilot/v2").endswith(f"{head}/README.md")
    jane.create_branch(MODEL, branch="old", revision=first)
    assert jane.list_repo_files(MODEL, revision="old") == [".gitattributes", "a.txt"]
    jane.delete_branch(MODEL, branch="old")
    assert not jane.revision_exists(MODEL, "old")
    with pytest.raises(RevisionNotFoundError):
        jane.upload_folder(repo_id=MODEL, folder_path=folder, revision="none")


def test_a_commit_on_a_parent_that_is_no_longer_the_last_is_refused(hub, jane):
    jane.create_repo(MODEL)
    parent = jane.model_info(MODEL).sha
    for number in range(2):
        operations = [CommitOperationAdd("a.txt", f"{number}".encode())]
        if number == 0:
            jane.create_commit(MODEL, operations, commit_message="a", parent_commit=parent)
        else:
            with pytest.raises(HfHubHTTPError, match="412"):
                jane.create_commit(MODEL, operations, commit_message="b", parent_commit=parent)
    assert commits(hub) == ["a", "initial commit"]
    assert hub.repositories[MODEL].files()["a.txt"] == b"0"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: free-beer", '"license" must be one of'),
        ("license: [mit", "YAML"),
        ("language: [German]", r'"language\[0\]"'),
        ("base_model: a b", r'"base_model\[0\]"'),
        ("model-index:\n- name: x\n  results:\n  - task: {type: t}\n    metrics: []", r'results\[0\]\.dataset"'),
    ],
)
def test_a_card_that_is_not_valid_is_refused_before_anything_is_sent(hub, jane, folder, metadata, message):
    jane.create_repo(MODEL)
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(ValueError, match=message):
        jane.upload_folder(repo_id=MODEL, folder_path=folder)
    with pytest.raises(ValueError, match=message.replace('"', r"\\?\"")):
        ModelCard((folder / "README.md").read_text(), ignore_metadata_errors=True).validate()
    assert not hub.lfs_uploads
    assert commits(hub) == ["initial commit"]


def test_a_card_is_pushed_and_loaded(hub, jane):
    jane.create_repo(MODEL)
    index = [
        {
            "name": "x",
            "results": [
                {
                    "task": {"type": "text-classification"},
                    "dataset": {"type": "d", "name": "D"},
                    "metrics": [{"type": "f1", "value": 0.5}],
                }
            ],
        }
    ]
    ModelCard(f"---\nlicense: apache-2.0\nmodel-index: {index}\n---\n# Card\n").push_to_hub(MODEL, token=jane.token)
    assert ModelCard.load(MODEL).data.eval_results[0].metric_value == 0.5
    assert jane.model_info(MODEL).model_index == index


def test_a_part_of_a_file_can_be_asked_for(hub, jane, folder):
    jane.create_repo(MODEL)
    jane.upload_folder(repo_id=MODEL, folder_path=folder)
    weights = (folder / "part-1.safetensors").read_bytes()
    url = f"{hub.endpoint}/{MODEL}/resolve/main/part-1.safetensors"
    for asked, part in [("bytes=10-19", weights[10:20]), ("bytes=100-", weights[100:]), ("bytes=-7", weights[-7:])]:
        response = get_session().get(url, headers={"Range": asked})
        assert (response.status_code, response.content) == (206, part)
    assert get_session().get(url, headers={"Range": f"bytes={len(weights)}-"}).status_code == 416
    head = get_session().head(url)
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == str(len(weights))
    assert head.headers["ETag"] == head.headers["X-Linked-Etag"]


@pytest.mark.parametrize("cut", [{"n_uploads": 1}, {"n_bytes": 30_000}])
def test_an_upload_that_is_cut_publishes_nothing_and_is_not_sent_again(hub, jane, folder, cut):
    jane.create_repo(MODEL)
    hub.drop_connection_after(**cut)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    hub.reconnect()
    assert commits(hub) == ["initial commit"]
    assert jane.list_repo_files(MODEL) == [".gitattributes"]
    assert hub.count("POST", "/commit/") == 0
    assert len(hub.lfs_uploads) <= 1
    jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    assert commits(hub) == ["first", "initial commit"]
    assert len(hub.lfs_uploads) == len(set(hub.lfs_uploads)) == 3
    assert contents(folder).items() <= hub.repositories[MODEL].files().items()


def test_a_failure_that_passes_is_overcome(hub, jane, folder):
    jane.create_repo(MODEL)
    hub.fail_next("POST", "/preupload/", status=503, times=2)
    hub.fail_next("PUT", "/_lfs/", times=2)
    jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    assert hub.count("POST", "/preupload/") == 3
    assert hub.count("PUT", "/_lfs/") == 5
    assert commits(hub) == ["first", "initial commit"]


def test_a_commit_that_fails_publishes_nothing(hub, jane, folder):
    jane.create_repo(MODEL)
    hub.fail_next("POST", "/commit/", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    assert commits(hub) == ["initial commit"]
    hub.fail_next("POST", "/commit/", afterwards=True)
    with pytest.raises(Exception, match="disconnected|reset"):
        jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="first")
    assert commits(hub) == ["first", "initial commit"]  # done, but the client does not know
    jane.upload_folder(repo_id=MODEL, folder_path=folder, commit_message="again")
    assert commits(hub) == ["first", "initial commit"]
    assert len(hub.lfs_uploads) == 3


def test_collections_hold_models_with_notes(hub, jane, john):
    for name in (MODEL, "jane/hidden"):
        jane.create_repo(name, private=name != MODEL)
    made = jane.create_collection("My students!", description="Small")
    assert made.slug.startswith("jane/my-students-")
    assert made.url == f"{hub.endpoint}/collections/{made.slug}"
    with pytest.raises(HfHubHTTPError, match="409"):
        jane.create_collection("My students!")
    assert jane.create_collection("My students!", exists_ok=True).slug == made.slug
    jane.add_collection_item(made.slug, MODEL, "model", note="fast")
    jane.add_collection_item(made.slug, "jane/hidden", "model")
    with pytest.raises(HfHubHTTPError, match="409"):
        jane.add_collection_item(made.slug, MODEL, "model")
    jane.add_collection_item(made.slug, MODEL, "model", exists_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        jane.add_collection_item(made.slug, "jane/none", "model")
    shown = [(item.item_id, item.item_type, item.note) for item in jane.get_collection(made.slug).items]
    assert shown == [(MODEL, "model", "fast"), ("jane/hidden", "model", None)]
    assert [item.item_id for item in john.get_collection(made.slug).items] == [MODEL]
    (listed,) = john.list_collections(owner="jane", item=f"models/{MODEL}")
    assert listed.slug == made.slug
    with pytest.raises(HfHubHTTPError, match="403"):
        john.add_collection_item(made.slug, MODEL, "model")
    with pytest.raises(BadRequestError):
        jane.create_collection("x" * 61)
    with pytest.raises(BadRequestError):
        jane.create_collection("x", description="x" * 151)
    jane.delete_collection_item(made.slug, jane.get_collection(made.slug).items[0].item_object_id)
    jane.update_collection_metadata(made.slug, private=True)
    assert list(john.list_collections(owner="jane")) == []
    jane.delete_collection(made.slug)
    with pytest.raises(HfHubHTTPError, match="404"):
        jane.get_collection(made.slug)


def test_datasets_are_apart_from_models(jane):
    assert jane.create_repo("jane/texts", repo_type="dataset").repo_type == "dataset"
    operation = CommitOperationAdd("rows.jsonl", b"{}\n")
    jane.create_commit("jane/texts", [operation], commit_message="rows", repo_type="dataset")
    assert "rows.jsonl" in jane.list_repo_files("jane/texts", repo_type="dataset")
    assert jane.hf_hub_download("jane/texts", "rows.jsonl", repo_type="dataset")
    assert not jane.repo_exists("jane/texts")


def test_another_process_loads_a_private_model_by_its_name(hub, jane, tmp_path):
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    model = BertModel(config)
    model.save_pretrained(tmp_path / "bert")
    jane.create_repo(MODEL, private=True)
    jane.create_branch(MODEL, branch="v1")
    jane.upload_folder(repo_id=MODEL, folder_path=tmp_path / "bert", revision="v1")
    result = subprocess.run(
        [sys.executable, "-c", LOAD, MODEL, "v1"], env=hub.environment(tmp_path / "fresh", "jane"),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    name, total = result.stdout.split()
    assert name == "BertModel"
    assert float(total) == pytest.approx(sum(p.double().sum().item() for p in model.parameters()), rel=1e-9)
    assert hub.count("GET", "/resolve/v1/model.safetensors") + hub.count("GET", "/resolve/") > 0
