"""Latency of a student's shape beside an XLM-R-base shape, in every backend, on this machine.

    python benchmarks/latency.py --preset short      (under 8 minutes on 2 cores)
    python benchmarks/latency.py --preset full --output runs/latency.json

Weights are random: latency depends on shapes alone. The vocabulary is cut to 30,000, which changes no latency: a text
looks up its own rows. All runners of a table are called in turn in one process (`LatencyBenchmark`). The figures of the
last line are medians over ``--rounds`` repetitions of the measurement; ``spread`` is the greatest relative deviation of
a repetition's deployed speed-up from their median.

- ``equal_backend_speedup``: the student 3 x 576 (FFN 768) against the XLM-R-base shape, both in the deployed backend;
- ``deployed_speedup``: the student in the deployed backend against the XLM-R-base shape in PyTorch eager, float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

from kdnas_hf import KDNASConfig, KDNASModel, LatencyBenchmark, LatencyReport, set_up_logging
from kdnas_hf.export import BACKENDS, Backend, export_onnx, make_runner, require_runtime
from kdnas_hf.latency import Runner
from kdnas_hf.utils.markdown_table import markdown_table

VOCABULARY = 30_000
BASE, SMALL, STUDENT = "XLM-R base", "6 x 384 (FFN 1536)", "3 x 576 (FFN 768)"
REFERENCE = (BASE, "torch")


@dataclass(frozen=True)
class Preset:
    """What is measured.

    Attributes:
        shapes: Of models.
        backends: Each in which all shapes run.
        settings: ``(batch, sequence length, threads)`` of the tables; the first is that of the last line.
        rounds: Repetitions of the measurement behind the last line.
        repeats: Timed calls of each runner.
    """

    shapes: tuple[str, ...]
    backends: tuple[str, ...]
    settings: tuple[tuple[int, int, int], ...]
    rounds: int
    repeats: int


PRESETS = {
    "short": Preset(
        (BASE, STUDENT),
        ("torch", "onnx", "onnx-int8", "openvino", "openvino-bf16", "openvino-int8"),
        ((1, 128, 1),),
        rounds=5,
        repeats=15,
    ),
    "full": Preset(
        (BASE, SMALL, STUDENT),
        (
            "torch",
            "torch-bf16-compile",
            "onnx",
            "onnx-int8",
            "onnx-int8-static",
            "openvino",
            "openvino-bf16",
            "openvino-int8",
        ),
        ((1, 128, 1), (16, 128, 2)),
        rounds=5,
        repeats=25,
    ),
    "gpu": Preset(
        (BASE, SMALL, STUDENT),
        ("torch", "torch-fp16", "torch-bf16", "torch-fp16-compile", "torch-bf16-compile"),
        ((1, 128, 1), (32, 128, 1), (256, 128, 1)),
        rounds=5,
        repeats=25,
    ),
}


def make_model(shape: str) -> PreTrainedModel:
    """A model of a shape with random weights, in float32."""
    torch.manual_seed(0)
    if shape == BASE:
        return XLMRobertaModel(
            XLMRobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=514, type_vocab_size=1),
            add_pooling_layer=False,
        ).eval()
    layers, hidden, heads, intermediate = {SMALL: (6, 384, 6, 1536), STUDENT: (3, 576, 6, 768)}[shape]
    return KDNASModel(
        KDNASConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            hidden_act="relu" if shape == STUDENT else "gelu",
        )
    ).eval()


def installed(names: tuple[str, ...]) -> list[Backend]:
    """The backends whose runtime is there; the others are named."""
    found = []
    for name in names:
        try:
            require_runtime(BACKENDS[name].runtime)
            found.append(BACKENDS[name])
        except ImportError as error:
            print(f"left out: {BACKENDS[name].description}: {error}")
    return found


def make_runners(
    shapes: tuple[str, ...], backends: list[Backend], folder: Path, threads: int, device: str
) -> dict[tuple[str, str], Runner]:
    """Every shape in every backend; a graph is exported once for each shape."""
    runners: dict[tuple[str, str], Runner] = {}
    for number, shape in enumerate(shapes):
        model = make_model(shape)
        graph = folder / f"{number}.onnx"
        for backend in backends:
            if backend.file is not None and not graph.exists():
                export_onnx(model, graph)
            place = folder / f"{number}-{threads}-{backend.name}"
            print(f"preparing {shape}: {backend.description}", flush=True)
            runners[shape, backend.name] = make_runner(
                model, backend, place, threads, device, graph if graph.exists() else None
            )
    return runners


def table(report: LatencyReport, shapes: tuple[str, ...], backends: list[Backend]) -> str:
    """Median latencies in milliseconds, and ratios to the XLM-R-base shape in eager float32."""
    rows = []
    for backend in backends:
        cells = []
        for shape in shapes:
            measured = report.measurements[key(shape, backend.name)]
            ratio = report.speedup(key(shape, backend.name), key(*REFERENCE))
            noisy = " (noisy)" if key(shape, backend.name) in report.noisy else ""
            memory = "" if measured.peak_memory_mb is None else f", {measured.peak_memory_mb:,.0f} MB"
            cells.append(f"{measured.median_ms:.2f} ± {measured.iqr_ms / 2:.2f} ({ratio:.1f}x{memory}){noisy}")
        rows.append([backend.description, *cells])
    return markdown_table(["p50 ± IQR/2 (ms)", *shapes], rows)


def key(shape: str, backend: str) -> str:
    """What a runner is called in a report."""
    return f"{shape} | {backend}"


def main() -> None:
    """Measure, and print tables and the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="short")
    parser.add_argument("--rounds", type=int, help="repetitions of the measurement behind the last line")
    parser.add_argument("--repeats", type=int, help="timed calls of each runner")
    parser.add_argument("--deployed", default=None, help="the deployed backend; by default OpenVINO int8 (CPU)")
    parser.add_argument("--device", default=None, help="a torch device; by default cuda for --preset gpu, else cpu")
    parser.add_argument("--output", type=Path, help="JSON with every report")
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    device = args.device or ("cuda" if args.preset == "gpu" else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("error: torch sees no CUDA device; leave out --preset gpu.")
    deployed = args.deployed or ("torch-fp16-compile" if device.startswith("cuda") else "openvino-int8")
    set_up_logging()
    backends = installed(preset.backends)
    if deployed not in [backend.name for backend in backends]:
        sys.exit(f"error: deployed={deployed!r} is not among {', '.join(b.name for b in backends)}.")
    reports: list[LatencyReport] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = [REFERENCE, (BASE, deployed), (STUDENT, deployed)]
        rounds: list[LatencyReport] = []
        for batch_size, sequence_length, threads in preset.settings:
            runners = make_runners(preset.shapes, backends, Path(folder), threads, device)
            benchmark = LatencyBenchmark(
                batch_size=batch_size,
                sequence_length=sequence_length,
                threads=threads,
                repeats=args.repeats or preset.repeats,
            )
            report = benchmark.measure({key(*pair): runner for pair, runner in runners.items()})
            reports.append(report)
            print(f"\n{table(report, preset.shapes, backends)}\n\n{report.describe_method()}\n", flush=True)
            if not rounds:
                rounds = [
                    benchmark.measure({key(*pair): runners[pair] for pair in pairs})
                    for _ in range(args.rounds or preset.rounds)
                ]
    reports += rounds
    equal = [one.speedup(key(STUDENT, deployed), key(BASE, deployed)) for one in rounds]
    ratios = [one.speedup(key(STUDENT, deployed), key(*REFERENCE)) for one in rounds]
    median = statistics.median(ratios)
    print(f"deployed: {BACKENDS[deployed].description}; speed-ups of the rounds: {[round(r, 2) for r in ratios]}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps([json.loads(report.to_json()) for report in reports], indent=2) + "\n")
    result = {
        "equal_backend_speedup": round(statistics.median(equal), 2),
        "deployed_speedup": round(median, 2),
        "spread": round(max(abs(ratio / median - 1) for ratio in ratios), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
