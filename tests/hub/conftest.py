"""A Hub on loopback for each test, and clients of it."""

import pytest
from huggingface_hub import HfApi, constants, file_download, hf_api
from huggingface_hub import utils as hub_utils
from loopback_hub import LoopbackHub
from transformers.utils import hub as transformers_hub


def forget_sessions() -> None:
    """Before 1.0, `huggingface_hub` keeps one session a thread, which is offline for good if it was made offline."""
    if hasattr(hub_utils, "reset_sessions"):
        hub_utils.reset_sessions()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget_sessions()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)  # a client that knows the Hub before
    hub = LoopbackHub()
    # for what takes no endpoint: `Trainer` and models
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    addresses = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", addresses, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    yield hub
    hub.stop()
    forget_sessions()


@pytest.fixture
def api(hub):
    """A client of the user jane."""
    return HfApi(endpoint=hub.endpoint, token=hub.token_of("jane"))


@pytest.fixture
def stranger(hub):
    """A client of the user john."""
    return HfApi(endpoint=hub.endpoint, token=hub.token_of("john"))
