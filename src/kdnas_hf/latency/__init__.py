"""How fast a student is on this machine."""

from .benchmark import LatencyBenchmark, LatencyMeasurement, LatencyReport, NoisyMeasurementError
from .fingerprint import DeviceFingerprint
from .latency import Latency
from .runner import Runner, TorchRunner
from .stand_in import stand_in

__all__ = [
    "DeviceFingerprint",
    "Latency",
    "LatencyBenchmark",
    "LatencyMeasurement",
    "LatencyReport",
    "NoisyMeasurementError",
    "Runner",
    "TorchRunner",
    "stand_in",
]
