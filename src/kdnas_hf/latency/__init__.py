"""How fast a student is on this machine."""

from .benchmark import LatencyBenchmark, LatencyMeasurement, LatencyReport
from .fingerprint import DeviceFingerprint
from .stand_in import stand_in

__all__ = ["DeviceFingerprint", "LatencyBenchmark", "LatencyMeasurement", "LatencyReport", "stand_in"]
