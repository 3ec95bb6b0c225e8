"""Does one student whose slices are the candidates rank them as well as a mini-KD of each, at the same cost?

    OMP_NUM_THREADS=1 python benchmarks/supernet.py --threads 1

The space is what can be sliced from a student of the teacher's width: layers, the leading dimensions of hidden states
and of each of 12 heads, and the leading neurons, the most important first. That student starts as copies of the
teacher's layers and learns by the sandwich rule (Yu et al. 2020, arXiv 2003.11142): the loss of a step is the mean of
those of the largest shape, the smallest, and random ones. The truth is R² of 12 shapes, each distilled on its own for
ten times the steps of a mini-KD, by another seed; printed are Spearman's rank correlations with it. Cost is the FLOPs
of the students' training in units of a mini-KD of each; CPU seconds count the fit of projections, and no evaluations.
What was measured is kept in --output_dir, where a run that was killed goes on. The last line is one JSON object: the
correlations of R².
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call

from distillation_setting import (
    Setting,
    add_arguments,
    describe_machine,
    load_setting,
    make_trainer,
    shape,
    training_arguments,
)
from kdnas_hf import LatencyBenchmark, StudentPool
from kdnas_hf.distillation.batch import DistillationBatch
from kdnas_hf.distillation.member import Member
from kdnas_hf.distillation.pool import required_by
from kdnas_hf.distillation.stored_targets import store_targets
from kdnas_hf.latency import Latency, stand_in
from kdnas_hf.search import REWARDS
from kdnas_hf.search.halving import SuccessiveHalving
from kdnas_hf.students import KDNASConfig, KDNASModel
from kdnas_hf.students.starts import default_layers

DEPTHS, WIDTHS, NEURONS, HEADS = (1, 2, 3, 4), (192, 240, 288, 384), (384, 576, 768, 1024), 12


class Shape(NamedTuple):
    """A student of the space: its layers, hidden size, and neurons of each layer."""

    depth: int
    width: int
    neurons: int

    def __str__(self) -> str:
        return f"{self.depth}x{self.width} ffn {self.neurons}"

    @property
    def flops(self) -> float:
        """Of a step of training for each token, with projections and without attention scores, few in short texts."""
        layer = 4 * self.width**2 + 2 * self.width * self.neurons + self.width * WIDTHS[-1]
        return 6.0 * (self.depth * layer + WIDTHS[-1] * self.width)


SPACE = [Shape(depth, width, neurons) for depth in DEPTHS for width in WIDTHS for neurons in NEURONS]
SMALLEST, LARGEST = SPACE[0], SPACE[-1]
MIDDLE = 2  # random shapes in a step of the supernet, beside these
# three of each depth, of each width and of each number of neurons, no two of them together twice
CHOSEN = [Shape(DEPTHS[d], WIDTHS[w], NEURONS[d ^ w]) for d in range(4) for w in range(4) if w != (0, 2, 3, 1)[d]]


def configs(setting: Setting, shapes: Iterable[Shape]) -> dict[str, KDNASConfig]:
    """Configurations by name."""
    return {str(one): shape(setting.teacher, one.depth, one.width, HEADS, one.neurons) for one in shapes}


def axes_of(name: str) -> str:
    """What the axes of a parameter are: hidden dimensions H, those of heads A and V, neurons N, others T."""
    kinds = {"self.query": "AH", "self.key": "AH", "self.value": "VH", "attention.output.dense": "HV"}
    kinds |= {"intermediate": "NH", "output.dense": "HN", "LayerNorm": "H"}
    axes = next((axes for part, axes in kinds.items() if part in name), "TH")
    return axes[:1] if name.endswith("bias") else axes


def sliced(value: torch.Tensor, axes: str, one: Shape) -> torch.Tensor:
    """The part of a parameter of the largest student that a shape has."""
    for dim, axis in enumerate(axes):
        if axis in "AV":
            heads = value.unflatten(dim, (HEADS, -1)).narrow(dim + 1, 0, one.width // HEADS)
            value = heads.flatten(dim, dim + 1)
        elif axis != "T":
            value = value.narrow(dim, 0, one.width if axis == "H" else one.neurons)
    return value


def reorder(module: nn.Module, orders: Mapping[str, torch.Tensor]) -> None:
    """Reorder the axes of all parameters that have them; the teacher's table has none."""
    for name, value in module.named_parameters():
        for dim, axis in enumerate("" if name.endswith("table") else axes_of(name)):
            if axis in orders:
                value.copy_(value.index_select(dim, orders[axis]))


@torch.no_grad()
def most_important_first(student: Any) -> torch.Tensor:
    """Reorder hidden dimensions, those of each head, and neurons of a student; gives the former's order ``(hidden,)``.

    The student computes the same, its states in another order. What is important is read and written by large weights.
    """
    norm, importance = student.embeddings.LayerNorm, torch.zeros(student.config.hidden_size)
    for layer in student.encoder.layer:
        attention, reads, writes = layer.attention, layer.intermediate.dense, layer.output.dense
        query, key, value = (getattr(attention.self, name).weight for name in ("query", "key", "value"))
        importance += norm.weight.abs() * value.norm(dim=0)
        importance += attention.output.LayerNorm.weight.abs() * reads.weight.norm(dim=0)
        norm, orders = layer.output.LayerNorm, {}
        for axis, rows, written in (
            ("A", HEADS, query.norm(dim=1) * key.norm(dim=1)),
            ("V", HEADS, value.norm(dim=1) * attention.output.dense.weight.norm(dim=0)),
            ("N", 1, reads.weight.norm(dim=1) * writes.weight.norm(dim=0)),
        ):
            order = written.view(rows, -1).argsort(dim=1, descending=True)
            orders[axis] = (order + torch.arange(rows)[:, None] * order.shape[1]).flatten()
        reorder(layer, orders)
    reorder(student, {"H": importance.argsort(descending=True)})
    return importance.argsort(descending=True)


class LossOf(nn.Module):
    """A member's loss as a module's output, which `functional_call` computes with other weights."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self.member = member

    def forward(self, batch: DistillationBatch) -> torch.Tensor:
        """See `Member.loss`."""
        return self.member.loss(batch)


class Supernet(Member):
    """The largest student, which learns through its slices; they share projections with those of their depth.

    Args:
        setting: The teacher and its text.
        args: What is learned, and the seed that shapes are drawn from.
    """

    def __init__(self, setting: Setting, args: Any) -> None:
        # templates: real students that lend their code to slices, and become them to be evaluated
        pool = StudentPool.create(configs(setting, SPACE), setting.teacher, args)
        templates: dict[Shape, Any] = {one: pool.members[str(one)] for one in SPACE}
        model = copy.deepcopy(templates[LARGEST].model)
        super().__init__(model, {}, {"hidden_states": 1.0}, args.seed)
        self.started, self.draw, order = True, random.Random(args.seed), most_important_first(model)
        self.templates: dict[Shape, Any] = {
            one: LossOf(template) for one, template in templates.items()
        }  # none of its parameters
        for one, template in templates.items():
            template.student.set_attn_implementation("eager" if args.bf16 else "sdpa")
            template.losses["hidden_states"].projections.basis = torch.eye(len(order))[:, order[: one.width]]
        widest = [Shape(depth, *LARGEST[1:]) for depth in DEPTHS]
        self.losses.update({str(one.depth): copy.deepcopy(templates[one].losses["hidden_states"]) for one in widest})
        make_trainer(setting, self.pool(widest, fit=True), args)
        for one in widest:
            self.losses[str(one.depth)].load_state_dict(templates[one].losses["hidden_states"].state_dict())

    def slice(self, one: Shape, own: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """The weights of a shape, or what else is given of the largest's, by their names in its template."""
        own = dict(self.named_parameters()) if own is None else own
        found, layers = {}, default_layers(one.depth, DEPTHS[-1])
        for name, _ in self.templates[one].member.named_parameters():
            parts = name.replace("losses.hidden_states", f"losses.{one.depth}").split(".")
            if "layer" in parts:
                place = parts.index("layer") + 1
                parts[place] = str(layers[int(parts[place])] - 1)
            source = ".".join(parts)
            found[name] = own[source] if source.endswith("table") else sliced(own[source], axes_of(source), one)
        return found

    def loss_of(self, one: Shape, batch: DistillationBatch) -> torch.Tensor:
        """The loss of a slice."""
        weights = {f"member.{name}": value for name, value in self.slice(one).items()}
        return functional_call(self.templates[one], weights, (batch,))

    def loss(self, batch: DistillationBatch) -> torch.Tensor:
        """The mean loss of the shapes of a step."""
        shapes = [LARGEST, SMALLEST, *self.draw.sample(SPACE[1:-1], MIDDLE)]
        return torch.stack([self.loss_of(one, batch) for one in shapes]).mean()

    @torch.no_grad()
    def pool(self, shapes: Iterable[Shape], fit: bool) -> StudentPool:
        """Slices as students of their own, whose projections a trainer is to ``fit`` anew or to leave."""
        members = {}
        for one in shapes:
            member = members[str(one)] = self.templates[one].member
            for name, value in self.slice(one).items():
                if not name.endswith("table"):
                    member.get_parameter(name).copy_(value)
            member.started = not fit
        return StudentPool(members)


class Runs:
    """Everything that is measured, each thing once: it is in a file of the output directory from then on."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder, self.file = setting, folder, folder / "measured.json"
        self.measured: dict[str, Any] = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``measure`` gave under this name, now or earlier."""
        if name not in self.measured:
            self.measured[name] = measure()
            self.file.write_text(json.dumps(self.measured))
            print(f"{name}: {self.measured[name].get('seconds', 0):.0f} CPU seconds", flush=True)
        return self.measured[name]

    def arguments(self, seed: int, steps: int, **kwargs: Any) -> Any:
        """Arguments of a training."""
        return training_arguments(self.folder / "trainer", seed, {"max_steps": steps} | kwargs)

    def own(self, shapes: Sequence[Shape], steps: int, seed: int, readings: int = 1) -> dict[str, Any]:
        """R² of shapes that are trained each on its own, by step, and what it took."""
        when = {"eval_on_start": readings > 1, "eval_strategy": "steps", "eval_steps": steps // readings}
        args, started, evaluating = self.arguments(seed, steps, **when), time.process_time(), 0.0
        trainer = make_trainer(self.setting, configs(self.setting, shapes), args)
        evaluate = trainer.evaluate

        def clocked(*args: Any, **kwargs: Any) -> dict[str, float]:
            nonlocal evaluating
            begun = time.process_time()
            metrics = evaluate(*args, **kwargs)
            evaluating += time.process_time() - begun
            return metrics

        trainer.evaluate = clocked  # type: ignore[method-assign]
        trainer.train()
        seconds = time.process_time() - started - evaluating
        logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        return {"seconds": seconds, "r2": {str(entry["step"]): r2_of(entry, shapes) for entry in logged}}

    def supernet(self, steps: int, seed: int) -> dict[str, Any]:
        """R² of slices, with projections as they are and fitted anew, and what it took."""
        args = self.arguments(seed, max(steps, 1))
        started = time.process_time()
        net = Supernet(self.setting, args)
        if steps:
            make_trainer(self.setting, StudentPool({"supernet": net}), args).train()
        found: dict[str, Any] = {"seconds": time.process_time() - started}
        for name, fit in (("as trained", False), ("fitted", True)):
            trainer = make_trainer(self.setting, net.pool(CHOSEN, fit), args)
            found[name] = r2_of(trainer.evaluate(), CHOSEN)
        return found


def r2_of(metrics: Mapping[str, float], shapes: Iterable[Shape]) -> dict[str, float]:
    """R² of the last layer by name."""
    return {str(one): metrics[f"eval_{one}_r2"] for one in shapes}


def check(setting: Setting, args: Any) -> dict[str, Any]:
    """The largest slice computes what the student does, and each what a student of its own with these weights does.

    To 1e-5, in float32; its gradient is that of such a student, and there is none elsewhere.
    """
    net = Supernet(setting, args)
    trainer = make_trainer(setting, net.pool([LARGEST, *CHOSEN], fit=False), args)
    batch = trainer._training_batch(next(iter(trainer.get_train_dataloader())), None)
    for one in (SMALLEST, LARGEST, *CHOSEN[4:8]):
        member: Any = net.pool([one], fit=False).members[str(one)]
        found = functional_call(member, net.slice(one), (batch,)).hidden_states[-1]
        own = (net if one == LARGEST else member)(batch).hidden_states[-1]
        torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
        net.zero_grad()
        net.loss_of(one, batch).backward()
        member.loss(batch).backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in net.named_parameters()}
        for name, gradient in net.slice(one, gradients).items():
            if not name.endswith("table"):
                torch.testing.assert_close(gradient, member.get_parameter(name).grad, atol=1e-5, rtol=1e-4)
        outside = sum(g.abs().double().sum() for g in gradients.values())
        inside = sum(p.grad.abs().double().sum() for p in member.parameters() if p.grad is not None)
        torch.testing.assert_close(outside, inside)
        member.zero_grad()
    return {}


def halve(curves: Mapping[int, Mapping[str, float]], steps: int) -> tuple[dict[str, float], float]:
    """What successive halving at a quarter and at half of the steps ranks shapes by, and the share of FLOPs it takes.

    Who stops ranks below those that go on; those that stop together rank by what they had reached.
    """
    rule, training, flops, last = SuccessiveHalving((0.25, 0.5), 0.5), {str(one): one for one in CHOSEN}, 0.0, 0
    whole, ranks = sum(one.flops for one in CHOSEN) * steps, dict[str, float]()
    for rung, step in enumerate([*rule.steps(steps), steps]):
        flops += sum(one.flops for one in training.values()) * (step - last)
        reached = {name: curves[step][name] for name in training}
        ranks |= {name: 10 * rung + value for name, value in reached.items()}
        training, last = {name: training[name] for name in reached.keys() - rule.stopped(reached)}, step
    return ranks, flops / whole


def correlation(found: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr([found[name] for name in truth], list(truth.values())).statistic)


def beyond(found: Mapping[str, float], truth: Mapping[str, float], known: Mapping[str, float]) -> float:
    """Partial rank correlation: what is found says of the truth beyond what is known."""
    known_found, known_truth = correlation(found, known), correlation(truth, known)
    rest = (1 - known_found**2) * (1 - known_truth**2)
    return (correlation(found, truth) - known_found * known_truth) / rest**0.5 if rest > 1e-9 else 0.0


def pairs_in_order(found: Mapping[str, float], truth: Mapping[str, float]) -> str:
    """How many pairs of shapes of a depth are in the order of the truth, of how many."""
    pairs = [(str(a), str(b)) for a, b in itertools.combinations(CHOSEN, 2) if a.depth == b.depth]
    return f"{sum((found[a] > found[b]) == (truth[a] > truth[b]) for a, b in pairs)}/{len(pairs)}"


def main() -> None:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/supernet"))
    parser.add_argument("--steps", type=int, default=100, help="of a mini-KD")
    parser.add_argument("--times", type=int, default=10, help="how many times longer the truth is")
    parser.add_argument("--sentences", type=int, default=24000)
    parser.add_argument("--costs", type=float, nargs="+", default=(0.4, 1.0, 2.5), help="of the first seed's supernets")
    args = parser.parse_args()
    setting, steps = load_setting(args, args.sentences, heldout=500), args.steps
    teacher, runs = setting.teacher, Runs(setting, args.output_dir)
    _ = teacher.embeddings.basis  # not a cost of who asks first
    training = runs.arguments(0, 1)
    print(f"{describe_machine()}\n", flush=True)
    runs.once("check", lambda: check(setting, runs.arguments(0, 1, bf16=False)))
    for name in ("train", "heldout"):
        texts, required = getattr(setting, name), required_by(training, teacher, list(DEPTHS))
        kept: dict[str, Any] = {"folder": args.output_dir / "targets", "batch_size": 64}
        dtype = training.teacher_torch_dtype or torch.float32
        setattr(setting, name, store_targets(teacher, texts, required, dtype=dtype, **kept))

    def measure_latency() -> dict[str, float]:
        models: dict[str, Any] = {name: stand_in(KDNASModel, one) for name, one in configs(setting, CHOSEN).items()}
        models["teacher"] = stand_in(type(teacher.model), teacher.model.config)
        bench = LatencyBenchmark(batch_size=1, sequence_length=128, threads=1, repeats=25)
        return {name: one.median_ms for name, one in bench.measure(models).measurements.items()}

    latency = runs.once("latency", measure_latency)
    rows: list[tuple[str, float, float, dict[str, float], dict[str, float]]] = []

    def reward(qualities: Mapping[str, float]) -> dict[str, float]:
        timed = {name: Latency(latency[name], 0.0, latency["teacher"]) for name in qualities}
        return {name: REWARDS["quality"](r2, timed[name]) for name, r2 in qualities.items()}

    sizes = {str(one): one.flops for one in CHOSEN}
    rows.append(("FLOPs of the shape", 0, 0, sizes, reward(dict.fromkeys(sizes, 0.5))))
    seeds = args.seed + 1, args.seed + 2
    for seed in seeds:
        run = runs.once(f"own {seed}", functools.partial(runs.own, CHOSEN, steps, seed, readings=4))
        curves = {int(step): r2 for step, r2 in run["r2"].items()}
        by_reward, share = halve({step: reward(r2) for step, r2 in curves.items()}, steps)
        rows += [
            (f"own start, no step, {seed}", 0, 0, curves[0], reward(curves[0])),
            (f"own mini-KDs, {seed}", 1, run["seconds"], curves[steps], reward(curves[steps])),
            (f"successive halving, {seed}", share, run["seconds"] * share, halve(curves, steps)[0], by_reward),
        ]
    of_step = LARGEST.flops + SMALLEST.flops + MIDDLE * statistics.fmean(one.flops for one in SPACE[1:-1])
    for seed, cost in [(seeds[0], 0.0), *((seeds[0], cost) for cost in args.costs), (seeds[1], 1.0)]:
        number = round(cost * steps * sum(sizes.values()) / of_step)
        run = runs.once(f"supernet {seed} {number}", functools.partial(runs.supernet, number, seed))
        for how in ("as trained", "fitted"):
            rows.append((f"supernet, {number} steps, {how}, {seed}", cost, run["seconds"], run[how], reward(run[how])))
    truth, length = dict[str, float](), args.times * steps
    for depth in DEPTHS:
        own = functools.partial(runs.own, [one for one in CHOSEN if one.depth == depth], length, args.seed)
        truth |= runs.once(f"truth {depth}", own)["r2"][str(length)]

    print(
        "\n| measured by | cost | CPU seconds | Spearman, R² | given FLOPs | pairs of a depth in order | "
        "Spearman, reward | reward lost by the best | by the best of three after own mini-KDs | "
        f"R² lost at 7x, 10x, 15x |\n{'| --- ' * 10}|"
    )
    goal, mini, found = reward(truth), reward(runs.measured[f"own {seeds[0]}"]["r2"][str(steps)]), {}
    for name, cost, seconds, qualities, rewards in rows:
        best_first = sorted(rewards, key=lambda one: -rewards[one])
        chosen = best_first[0], max(best_first[:3], key=mini.__getitem__)
        lost = " | ".join(f"{1 - goal[one] / max(goal.values()):.1%}" for one in chosen)
        within = []
        for speedup in (7, 10, 15):
            fast = [one for one in truth if latency["teacher"] >= speedup * latency[one]]
            within.append(f"{max(truth[one] for one in fast) - truth[max(fast, key=qualities.__getitem__)]:.3f}")
        found[name] = round(correlation(qualities, truth), 3)
        print(
            f"| {name} | {cost:.2f} | {seconds:.0f} | {found[name]:.3f} | {beyond(qualities, truth, sizes):.2f} | "
            f"{pairs_in_order(qualities, truth)} | {correlation(rewards, goal):.3f} | {lost} | {', '.join(within)} |"
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
