"""How much memory a deployed model takes: measured in a process that holds nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from .backends import TORCH, Backend, get_backend


def peak_memory_mb(
    student: str | Path,
    backend: str | Backend,
    batch_size: int = 1,
    sequence_length: int = 256,
    threads: int = 1,
) -> float:
    """Resident memory that loading a model and running it adds to a process at most, in MB (10^6 bytes).

    Every token of the vocabulary is read once: weights that lie in a mapped file are resident only once they are used,
    and a service uses all of them in time.

    Args:
        student: The student's directory, with its artefacts.
        backend: What runs it.
        batch_size: Texts in a call.
        sequence_length: Tokens in a text.
        threads: CPU threads.

    Raises:
        RuntimeError: If the process fails; the message has its error.
    """
    given = [str(student), get_backend(backend).name, str(batch_size), str(sequence_length), str(threads)]
    done = subprocess.run([sys.executable, "-m", __name__, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"memory of {student} with {get_backend(backend).name}: {reason}")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where the figure of getrusage has in it what the parent process took
        (line,) = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _measure(student: str, backend_name: str, batch_size: int, sequence_length: int, threads: int) -> float:
    import torch
    from transformers import AutoConfig, AutoModel

    from .. import students  # noqa: F401  - students register themselves
    from ..latency import TorchRunner
    from .exported_model import ExportedModel

    backend = get_backend(backend_name)
    torch.set_num_threads(threads)
    # what the runtimes bring is there before anything of the model is
    if backend.runtime != TORCH:
        __import__(backend.runtime)
    config = AutoConfig.from_pretrained(student)
    before = _peak_bytes()
    if backend.runtime == TORCH:
        model = AutoModel.from_pretrained(student, dtype=backend.precision)
        runner: TorchRunner | ExportedModel = TorchRunner(model, compiled=backend.compiled)
    else:
        runner = ExportedModel.from_pretrained(student, backend, threads)
    special = config.pad_token_id or 0
    texts = np.arange(special + 1, config.vocab_size, dtype=np.int64)
    calls = -(-len(texts) // (batch_size * sequence_length))
    texts = np.resize(texts, (calls, batch_size, sequence_length))
    for ids in texts:
        runner.prepare(ids, np.ones_like(ids))()
    return (_peak_bytes() - before) / 1e6


if __name__ == "__main__":
    found = _measure(sys.argv[1], sys.argv[2], *(int(value) for value in sys.argv[3:6]))
    sys.stdout.write(json.dumps({"peak_mb": found}) + "\n")
