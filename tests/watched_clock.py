"""The clock by which workers of a study watch each other, for tests that move it on."""

from types import SimpleNamespace

import pytest

from kdnas_hf.utils import leases


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until a test moves it on."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock
