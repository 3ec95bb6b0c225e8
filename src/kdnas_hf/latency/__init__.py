"""How fast a student is on this machine."""

from .benchmark import LatencyBenchmark, LatencyMeasurement, LatencyReport, NoisyMeasurementError
from .fingerprint import DeviceFingerprint
from .latency import Latency
from .runner import Runner, TorchRunner
from .sequence_lengths import SequenceLengths, describe_lengths, parse_lengths, shares_of
from .stand_in import stand_in

__all__ = [
    "DeviceFingerprint",
    "Latency",
    "LatencyBenchmark",
    "LatencyMeasurement",
    "LatencyReport",
    "NoisyMeasurementError",
    "Runner",
    "SequenceLengths",
    "TorchRunner",
    "describe_lengths",
    "parse_lengths",
    "shares_of",
    "stand_in",
]
