"""Which versions of which libraries a result was made with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from ..version import __version__


def package_versions(*packages: str) -> dict[str, str]:
    """Versions by name, that of kdnas_hf first; what is not installed is left out."""
    found = {"kdnas-hf": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
