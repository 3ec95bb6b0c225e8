"""How fast a student is on this machine."""

from .arguments import LatencyArguments, TimedCallArguments
from .benchmark import LatencyBenchmark, LatencyMeasurement, LatencyReport, NoisyMeasurementError
from .fingerprint import DeviceFingerprint
from .latency import Latency
from .runner import Runner, TorchRunner
from .sequence_lengths import SequenceLengths, describe_lengths, parse_lengths, shares_of
from .stand_in import stand_in

__all__ = [
    "DeviceFingerprint",
    "Latency",
    "LatencyArguments",
    "LatencyBenchmark",
    "LatencyMeasurement",
    "LatencyReport",
    "NoisyMeasurementError",
    "Runner",
    "SequenceLengths",
    "TimedCallArguments",
    "TorchRunner",
    "describe_lengths",
    "parse_lengths",
    "shares_of",
    "stand_in",
]
