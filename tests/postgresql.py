"""A PostgreSQL server of the tests' own, on a free port of the loopback interface, from Debian's packages."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

PACKAGE = "postgresql"
INSTALLED = Path("/usr/lib/postgresql")


def programs():
    """The folder of initdb and postgres; Debian's package is installed where that can be done."""
    found = _newest()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # no cluster and no service of the system's: the tests start a server of their own
        folder = Path("/etc/postgresql-common")
        folder.mkdir(exist_ok=True)
        if not (folder / "createcluster.conf").exists():
            (folder / "createcluster.conf").write_text("create_main_cluster = false\n")
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", PACKAGE]):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["apt-get", *command], env=environment, capture_output=True, timeout=180)
        found = _newest()
    return found


def _newest():
    folders = [path.parent for path in INSTALLED.glob("*/bin/initdb")]
    return max(folders, key=lambda path: int(path.parent.name), default=None)


class Server:
    """A server in a temporary folder; ``url`` is the address of an empty database."""

    def __init__(self, programs):
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="kdnas-postgresql-"))
        self.user = None  # initdb refuses root
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self.user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(self.folder, self.user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://kdnas:secret-word@127.0.0.1:{self.port}/postgres"
        password = self.folder / "password"
        password.write_text("secret-word")
        self._run("initdb", "-D", self.data, "-U", "kdnas", "-A", "scram-sha-256", f"--pwfile={password}", "-N")

    @property
    def data(self):
        return str(self.folder / "data")

    def start(self):
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self):
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def remove(self):
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program, *arguments):
        command = [str(self.programs / program), *arguments]
        subprocess.run(
            command, user=self.user, cwd=self.folder, check=True, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


@pytest.fixture(scope="session")
def postgresql():
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
    folder = programs()
    if folder is None:
        pytest.skip(f"PostgreSQL is not installed, and apt-get could not install {PACKAGE!r}")
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()
