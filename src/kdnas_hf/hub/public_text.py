"""What may be said in public: paths of this machine are cut to their last part, and what is secret is found."""

from __future__ import annotations

import getpass
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
# folders that say something of a machine or its user; what follows a colon and two slashes is an address
LOCAL_PATH = re.compile(
    r"(?<![\w/.:-])(?:/(?:home|Users|root|tmp|private|mnt|media|var|opt|srv|workspace|data|work)/[^\s\"'`,;)\]}|]+"
    r"|~/[^\s\"'`,;)\]}|]+)"
    r"|\b[A-Za-z]:\\\\?(?:Users|Documents)[^\s\"'`,;)\]}|]*"
)
REDACTED = "<token>"
STORAGE = "<storage>"
STORAGE_FLAG = re.compile(r"--(storage|warm_start)")
# user and password of an address
CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"`]+@")


def public(text: str) -> str:
    """A word of a command line, or a path, without what is nobody's business.

    An absolute path, or one that leaves the working directory, is cut to its last part; so is that behind ``name=``.
    Access tokens are replaced, and users and passwords of addresses left out.
    """
    name, equals, value = text.partition("=")
    if equals and re.fullmatch(r"[\w-]+", name):
        return f"{name}={public(value)}"
    text = CREDENTIALS.sub("", TOKEN.sub(REDACTED, text))
    if PureWindowsPath(text).drive and "\\" in text:
        return PureWindowsPath(text).name
    path = PurePosixPath(text)
    if path.is_absolute() or text.startswith("~") or ".." in path.parts:
        return path.name
    return text


def public_command(command: Sequence[str]) -> list[str]:
    """A command line in public form; the value of a flag that takes a token or a storage is left out."""
    shown: list[str] = []
    for word in command:
        after_token_flag = bool(shown) and re.fullmatch(r"--?\w*token", shown[-1]) is not None
        flag, equals, value = word.partition("=")
        if shown and STORAGE_FLAG.fullmatch(shown[-1]) and _is_storage(word):
            shown.append(STORAGE)
        elif equals and STORAGE_FLAG.fullmatch(flag) and _is_storage(value):
            shown.append(f"{flag}={STORAGE}")
        else:
            shown.append(REDACTED if after_token_flag else public(word))
    return shown


def _is_storage(text: str) -> bool:
    return "://" in text or text.startswith("journal:")


def public_values(values: Any) -> Any:
    """Nested mappings and lists with every string in public form."""
    if isinstance(values, str):
        return public(values)
    if isinstance(values, Mapping):
        return {key: public_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [public_values(value) for value in values]
    return values


def find_private(text: str) -> list[str]:
    """What of a text is not for publication, each once: access tokens, and paths of a machine with its user's name."""
    found = [f"an access token ({match[:6]}…)" for match in TOKEN.findall(text)]
    found += ["a password of an address" for match in CREDENTIALS.findall(text) if ":" in match]
    found += [f"a local path ({match})" for match in LOCAL_PATH.findall(text)]
    home = str(Path.home())
    if len(home) > 1 and home in text:
        found.append(f"the home directory ({home})")
    user = _user()
    if user is not None and re.search(rf"[/\\]{re.escape(user)}[/\\]", text):
        found.append(f"the user's name ({user})")
    return list(dict.fromkeys(found))


def _user() -> str | None:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a process without a name or without a password database
        return None
    return user if len(user) > 2 else None
