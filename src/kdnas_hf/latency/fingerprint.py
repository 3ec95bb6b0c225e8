"""Which machine a latency was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import transformers

CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "sve")


@dataclass(frozen=True)
class DeviceFingerprint:
    """What a latency depends on beside the model: processor, its relevant instructions, and library versions."""

    device: str
    processor: str
    flags: tuple[str, ...]
    cores: int
    torch: str
    transformers: str
    platform: str
    libraries: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, device: str = "cpu", libraries: Mapping[str, str] | None = None) -> DeviceFingerprint:
        """Read this machine's fingerprint.

        Args:
            device: A torch device.
            libraries: Versions of other runtimes that ran a model.
        """
        processor, flags = _cpu()
        if device.startswith("cuda"):
            processor = torch.cuda.get_device_name(device)
        return cls(
            device=device,
            processor=processor,
            flags=flags,
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            torch=torch.__version__,
            transformers=transformers.__version__,
            platform=platform.platform(),
            libraries=tuple(sorted((libraries or {}).items())),
        )

    def as_dict(self) -> dict[str, object]:
        """The fields, for JSON."""
        return asdict(self) | {"flags": list(self.flags), "libraries": dict(self.libraries)}

    def __str__(self) -> str:
        flags = f" ({', '.join(self.flags)})" if self.flags and self.device == "cpu" else ""
        versions = ", ".join(f"{name} {version}" for name, version in (("torch", self.torch), *self.libraries))
        return f"{self.processor}{flags}, {self.cores} cores, {versions}"


@cache
def _cpu() -> tuple[str, tuple[str, ...]]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine(), ()
    name, flags = platform.machine(), set()
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return name, tuple(flag for flag in CPU_FLAGS if flag in flags)
