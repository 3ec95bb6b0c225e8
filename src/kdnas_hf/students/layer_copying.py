"""Start a student's layers from its teacher's layers, in the basis in which the student's states live.

A student state `s` (H_S) stands for a teacher state `h ≈ B s` (H_T), with `B` from `residual_basis`. What reads states
becomes `W B`, what writes them `Bᵀ W`; heads and neurons are chosen by importance, and heads are compressed to the
student's head size by the best low-rank approximation of what they compute.

A layer norm after each block stands in the way: it works per dimension and does not commute with a rotation. And a
student of fewer layers never sees the states that the copied layer was made for. With a sample of the teacher's
states, least squares does better: each map reads the best linear prediction of what the teacher's map reads, each map
that writes is fitted so that the norm's output comes close to the target, and so is each norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_kdnas import KDNASAttention, KDNASLayer, KDNASModel, KDNASOutput, KDNASSelfOutput, _make_attention_mask

COPIED_MODEL_TYPES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

# Ridge penalties, in units of the mean variance of the inputs. Reading is a regression on few inputs; the maps that
# write have as many as neurons, and what they overfit, the norm behind them blows up.
_READ_PENALTY = 0.01
_WRITE_PENALTY = 1.0
_SMALLEST_NORM_WEIGHT = 0.05  # what a norm weighs with zero no longer learns through it


class AffineMap(NamedTuple):
    """Weights of a linear map, `(out, in)`, and its bias, `(out,)`; of a layer norm both are `(size,)`."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, eq=False)
class TeacherLayer:
    """The weights of one teacher layer, float32, on the CPU.

    Attributes:
        query: `(H_T, H_T)`, as are `key`, `value` and `attention_output`.
        key: See `query`.
        value: See `query`.
        attention_output: See `query`.
        attention_norm: The layer norm after attention and residual, `(H_T,)`.
        intermediate: `(I_T, H_T)`, before the activation.
        output: `(H_T, I_T)`, after the activation.
        output_norm: The layer norm after feed-forward block and residual, `(H_T,)`.
        num_heads: Number of attention heads.
    """

    query: AffineMap
    key: AffineMap
    value: AffineMap
    attention_output: AffineMap
    attention_norm: AffineMap
    intermediate: AffineMap
    output: AffineMap
    output_norm: AffineMap
    num_heads: int


@dataclass(frozen=True, eq=False)
class LayerSample:
    """What one teacher layer computes on a sample of real (unpadded) tokens, float32, on the CPU.

    Attributes:
        attention_inputs: `(tokens, H_T)`, what queries, keys and values are made from.
        ffn_inputs: `(tokens, H_T)`, what the feed-forward block reads.
        outputs: `(tokens, H_T)`, the layer's output.
        head_importance: `(heads,)`, root mean square over tokens of the norm of what a head adds to the states.
        neuron_importance: `(I_T,)`, mean absolute activation times the norm of the neuron's output weights.
    """

    attention_inputs: torch.Tensor
    ffn_inputs: torch.Tensor
    outputs: torch.Tensor
    head_importance: torch.Tensor
    neuron_importance: torch.Tensor


@dataclass(frozen=True, eq=False)
class TeacherSample:
    """A sample of text and what the teacher computes on it.

    Attributes:
        batches: `(input_ids, attention_mask)`, both `(batch, sequence)`, on the CPU.
        layers: Samples of teacher layers, counted from 1; their tokens are the batches' real tokens in order.
    """

    batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
    layers: Mapping[int, LayerSample]


def read_teacher_layers(model: PreTrainedModel) -> list[TeacherLayer]:
    """Read the layers of an encoder of BERT's kind, first layer first; the model stays as it is.

    Args:
        model: The teacher, with or without a head.

    Raises:
        ValueError: If the architecture is another; its layers have no counterpart in a student's.
    """
    return [
        TeacherLayer(
            query=_weights_of(layer.get_submodule("attention.self.query")),
            key=_weights_of(layer.get_submodule("attention.self.key")),
            value=_weights_of(layer.get_submodule("attention.self.value")),
            attention_output=_weights_of(layer.get_submodule("attention.output.dense")),
            attention_norm=_weights_of(layer.get_submodule("attention.output.LayerNorm")),
            intermediate=_weights_of(layer.get_submodule("intermediate.dense")),
            output=_weights_of(layer.get_submodule("output.dense")),
            output_norm=_weights_of(layer.get_submodule("output.LayerNorm")),
            num_heads=model.config.num_attention_heads,
        )
        for layer in _encoder_layers(model)
    ]


def _encoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    config = model.config
    # older BERTs can add relative positions inside attention, which no student has
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if config.model_type not in COPIED_MODEL_TYPES or positions != "absolute":
        kind = "" if positions == "absolute" else f" with position_embedding_type={positions!r}"
        raise ValueError(
            f"the layers of model_type={config.model_type!r}{kind} cannot be copied into a student's; choose a teacher "
            f"of {', '.join(COPIED_MODEL_TYPES)}, or student_init='embeddings'."
        )
    layers = model.base_model.get_submodule("encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    return layers


def _weights_of(module: nn.Module) -> AffineMap:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    return AffineMap(weight.detach().float().cpu(), bias.detach().float().cpu())


@torch.no_grad()
def collect_layer_samples(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, torch.Tensor]],
    layers: Iterable[int],
    max_tokens: int = 16384,
) -> TeacherSample:
    """Run the teacher on a sample of text and keep what `copy_layers` needs.

    Memory: 12 * H_T bytes per token and layer.

    Args:
        model: The teacher, as `read_teacher_layers` takes it, in eval mode.
        batches: `input_ids` and `attention_mask`, both `(batch, sequence)`; a mixture that is like the training text.
        layers: Teacher layers that are to be copied, counted from 1.
        max_tokens: No further batch is read once there are so many real tokens.

    Raises:
        ValueError: If the architecture is not one that can be copied, it has no such layer, or there are fewer than two
            tokens.
    """
    modules = _encoder_layers(model)
    wanted = sorted(set(layers))
    for layer in wanted:
        _check_layer("teacher", layer, len(modules))
    recorders = {layer: _Recorder(modules[layer - 1], model.config.num_attention_heads) for layer in wanted}
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    tokens = 0
    try:
        for batch in batches:
            if tokens >= max_tokens:
                break
            input_ids, attention_mask = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
            real = attention_mask.bool()
            model.base_model(input_ids=input_ids, attention_mask=attention_mask)
            for recorder in recorders.values():
                recorder.keep(real)
            kept.append((input_ids.cpu(), attention_mask.cpu()))
            tokens += int(real.sum())
    finally:
        for recorder in recorders.values():
            recorder.remove()
    if tokens < 2:
        raise ValueError("copying layers with a sample needs at least two tokens of text.")
    return TeacherSample(kept, {layer: recorder.sample(tokens) for layer, recorder in recorders.items()})


class _Recorder:
    """Keeps what one teacher layer computes."""

    def __init__(self, layer: nn.Module, num_heads: int) -> None:
        self._now: dict[str, torch.Tensor] = {}
        self._kept: dict[str, list[torch.Tensor]] = {"attention_inputs": [], "ffn_inputs": [], "outputs": []}
        self._head_sums: torch.Tensor | float = 0.0
        self._neuron_sums: torch.Tensor | float = 0.0
        by_head = _weights_of(layer.get_submodule("attention.output.dense")).weight.unflatten(1, (num_heads, -1))
        self._head_products = torch.einsum("ohd,ohe->hde", by_head, by_head)
        self._output_norms = _weights_of(layer.get_submodule("output.dense")).weight.norm(dim=0)
        self._hooks = [
            layer.get_submodule("attention.self.query").register_forward_pre_hook(self._watch("attention_inputs")),
            layer.get_submodule("attention.output.dense").register_forward_pre_hook(self._watch("contexts")),
            layer.get_submodule("intermediate.dense").register_forward_pre_hook(self._watch("ffn_inputs")),
            layer.get_submodule("output.dense").register_forward_pre_hook(self._watch("activations")),
            layer.get_submodule("output.LayerNorm").register_forward_hook(
                lambda _, __, output: self._now.update(outputs=output)
            ),
        ]

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda module, inputs: self._now.__setitem__(name, inputs[0])

    def keep(self, real: torch.Tensor) -> None:
        """Keep the real tokens, `(batch, sequence)`, of the batch that has just been run."""
        values = {name: value[real].float().cpu() for name, value in self._now.items()}
        for name, kept in self._kept.items():
            kept.append(values[name])
        contexts = values["contexts"].unflatten(1, (len(self._head_products), -1))
        self._head_sums += torch.einsum("thd,hde,the->h", contexts, self._head_products, contexts)
        self._neuron_sums += values["activations"].abs().sum(0)

    def sample(self, tokens: int) -> LayerSample:
        """All that was kept."""
        assert isinstance(self._head_sums, torch.Tensor)
        return LayerSample(
            **{name: torch.cat(kept) for name, kept in self._kept.items()},
            head_importance=(self._head_sums / tokens).clamp_min(0).sqrt(),
            neuron_importance=self._neuron_sums / tokens * self._output_norms,
        )

    def remove(self) -> None:
        """Leave the teacher as it was."""
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def copy_layers(
    student: KDNASModel,
    layers: Mapping[int, int],
    teacher_layers: Sequence[TeacherLayer],
    basis: torch.Tensor,
    sample: TeacherSample | None = None,
    standardize: bool = True,
) -> None:
    """Start layers of a student from layers of its teacher, in place.

    Where a student layer has more heads or neurons than the teacher's, or larger heads, the rest keeps its initial
    weights where it reads. It writes nothing without a sample, and with one what fits.

    Args:
        student: A student of `create_student`, on one device.
        layers: For each student layer that is to be started the teacher layer; both are counted from 1.
        teacher_layers: All of the teacher's layers, as `read_teacher_layers` gives them.
        basis: `(H_T, H_S)`, as `residual_basis` gives it.
        sample: What the teacher computes on some text. Heads and neurons are then chosen by what they contribute on it,
            and the maps and norms are fitted to it, layer after layer. Without one, weights alone decide: right for a
            student of the teacher's hidden size and depth, poor for any other.
        standardize: With a sample: whether the student's states shall be those of the teacher standardised per layer
            and dimension, which is what `hidden_state_normalization="standardize"` compares them with. Without a sample
            they are the teacher's own.

    Raises:
        ValueError: If a layer does not exist, the basis has another size, or the sample lacks a layer.
    """
    _check(student, layers, teacher_layers, basis, sample)
    basis = basis.detach().double().cpu()
    if sample is None:
        for number, source in layers.items():
            layer = student.encoder.layer[number - 1]
            assert isinstance(layer, KDNASLayer)
            _copy_weights(layer, teacher_layers[source - 1], basis)
        return
    training = student.training
    student.eval()
    try:
        walk = _SampleWalk(student, sample)
        for number, layer in enumerate(student.encoder.layer, start=1):
            if number > max(layers):
                break
            assert isinstance(layer, KDNASLayer)
            if number in layers:
                source = layers[number]
                _fit_layer(walk, layer, teacher_layers[source - 1], sample.layers[source], basis, standardize)
            walk.step(layer)
    finally:
        student.train(training)


def _check(
    student: KDNASModel,
    layers: Mapping[int, int],
    teacher_layers: Sequence[TeacherLayer],
    basis: torch.Tensor,
    sample: TeacherSample | None,
) -> None:
    if not layers:
        raise ValueError("layers names no pair of layers; give a teacher layer for at least one student layer.")
    for number, source in layers.items():
        _check_layer("student", number, len(student.encoder.layer))
        _check_layer("teacher", source, len(teacher_layers))
        if sample is not None and source not in sample.layers:
            raise ValueError(
                f"the sample lacks teacher layer {source}; it has {sorted(sample.layers)}. Collect it for all layers "
                "that are copied."
            )
    wanted = (len(teacher_layers[0].output_norm.weight), student.config.hidden_size)
    if tuple(basis.shape) != wanted:
        raise ValueError(f"basis is {tuple(basis.shape)}, but teacher and student have {wanted}; use residual_basis.")


def _check_layer(whose: str, number: int, count: int) -> None:
    if not 1 <= number <= count:
        raise ValueError(f"{whose} layer {number} does not exist; the {whose} has layers 1 to {count}.")


# ---- from the weights alone ----


def _copy_weights(layer: KDNASLayer, source: TeacherLayer, basis: torch.Tensor) -> None:
    read = AffineMap(basis, basis.new_zeros(len(basis)))
    root = torch.eye(basis.shape[1], dtype=basis.dtype)
    values = source.value.weight.unflatten(0, (source.num_heads, -1)).unbind(0)
    outputs = source.attention_output.weight.unflatten(1, (source.num_heads, -1)).unbind(1)
    heads = torch.stack([(output @ value).norm() for output, value in zip(outputs, values, strict=True)])
    _copy_attention(layer.attention, source, read, root, basis, importance=heads)
    reads = torch.cat([source.intermediate.weight, source.intermediate.bias[:, None]], dim=1)
    neurons = reads.norm(dim=1) * source.output.weight.norm(dim=0)
    _copy_feed_forward(layer, source, read, basis, importance=neurons)
    _rotate_norm(layer.attention.output.LayerNorm, source.attention_norm, basis)
    _rotate_norm(layer.output.LayerNorm, source.output_norm, basis)


def _rotate_norm(norm: nn.LayerNorm, source: AffineMap, basis: torch.Tensor) -> None:
    """Set a layer norm to the closest to the teacher's that works in the basis.

    The teacher scales by `diag(w)`, in the basis by `Bᵀ diag(w) B`, which is not diagonal. For inputs that are equally
    long in all directions its diagonal is the nearest diagonal map; it is exact where B is the identity or all weights
    are equal. Dimensions beyond the teacher's, where B is zero, keep the weight 1.
    """
    squares = basis.square()
    norm.weight.copy_(squares.T @ source.weight.double() + 1 - squares.sum(0))
    norm.bias.copy_(basis.T @ source.bias.double())


def _copy_attention(
    attention: KDNASAttention,
    source: TeacherLayer,
    read: AffineMap,
    root: torch.Tensor,
    basis: torch.Tensor,
    importance: torch.Tensor,
) -> None:
    """Copy the most important heads, each as the best low-rank version of its two bilinear forms.

    What a head computes depends only on `W_qᵀ W_k`, which gives the scores, and `W_o W_v`, which gives the output; the
    dimensions within a head are arbitrary. Key biases shift all scores of a query alike and therefore fall away; value
    biases pass through, as attention weights add up to one, and join the output's bias.

    Args:
        attention: The student's.
        source: The teacher's layer.
        read: What the teacher's attention reads, `(H_T, H_S)`, predicted from the student's states.
        root: `(H_S, H_S)`, symmetric root of the second moment of the student's states, by which errors are weighted.
        basis: `(H_T, H_S)`.
        importance: `(heads,)`.
    """
    maps = attention.self
    size, source_size = maps.attention_head_size, len(source.query.weight) // source.num_heads
    inverse = torch.linalg.inv(root)
    query, key, value = (_compose(part, read) for part in (source.query, source.key, source.value))
    write = basis.T @ source.attention_output.weight.double()
    scale = (size / source_size) ** 0.25  # of queries and of keys: the student divides scores by sqrt(size)
    attention.output.dense.weight.zero_()
    attention.output.dense.bias.copy_(basis.T @ source.attention_output.bias.double() + write @ value.bias)
    for linear in (maps.query, maps.key, maps.value):
        linear.bias.zero_()
    for place, head in enumerate(_most_important(importance, maps.num_attention_heads)):
        rows = slice(head * source_size, (head + 1) * source_size)
        asked = torch.cat([root @ query.weight[rows].T, query.bias[None, rows]])
        left, right = _low_rank(asked, root @ key.weight[rows].T, size)
        begin = place * size
        ours = slice(begin, begin + left.shape[1])
        # dimensions that the head does not need: zero queries keep them out of the scores until they learn
        maps.query.weight[begin : begin + size] = 0
        maps.query.weight[ours] = (scale * inverse @ left[:-1]).T.float()
        maps.query.bias[ours] = scale * left[-1].float()
        maps.key.weight[ours] = (scale * inverse @ right).T.float()
        left, right = _low_rank(write[:, rows], root @ value.weight[rows].T, size)
        ours = slice(begin, begin + left.shape[1])
        attention.output.dense.weight[:, ours] = left.float()
        maps.value.weight[ours] = (inverse @ right).T.float()


def _low_rank(left: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of `left @ right.T` of at most the given rank, as two such factors of equal norm."""
    # by way of two QR decompositions the SVD is as small as a teacher's head
    left_basis, left_part = torch.linalg.qr(left)
    right_basis, right_part = torch.linalg.qr(right)
    u, values, v = torch.linalg.svd(left_part @ right_part.T, full_matrices=False)
    roots = values[:rank].sqrt()
    return left_basis @ u[:, :rank] * roots, right_basis @ v[:rank].T * roots


def _copy_feed_forward(
    layer: KDNASLayer, source: TeacherLayer, read: AffineMap, basis: torch.Tensor, importance: torch.Tensor
) -> None:
    """Copy the most important neurons; those beyond the teacher's keep their inputs and write nothing."""
    chosen = _most_important(importance, layer.intermediate.dense.out_features)
    copied = _compose(AffineMap(source.intermediate.weight[chosen], source.intermediate.bias[chosen]), read)
    layer.intermediate.dense.weight[: len(chosen)] = copied.weight.float()
    layer.intermediate.dense.bias[: len(chosen)] = copied.bias.float()
    layer.output.dense.weight.zero_()
    layer.output.dense.weight[:, : len(chosen)] = (basis.T @ source.output.weight[:, chosen].double()).float()
    layer.output.dense.bias.copy_(basis.T @ source.output.bias.double())


def _compose(outer: AffineMap, inner: AffineMap) -> AffineMap:
    """First the inner, then the outer map, in float64."""
    weight = outer.weight.double()
    return AffineMap(weight @ inner.weight, weight @ inner.bias + outer.bias.double())


def _most_important(importance: torch.Tensor, count: int) -> list[int]:
    """The indices of the largest values, in ascending order."""
    return sorted(importance.argsort(descending=True, stable=True)[:count].tolist())


# ---- fitted to a sample ----


class _SampleWalk:
    """The student's states on the sample, layer by layer."""

    def __init__(self, student: KDNASModel, sample: TeacherSample) -> None:
        device = next(student.get_input_embeddings().parameters()).device
        self._real = [mask.bool() for _, mask in sample.batches]
        self._states = [student.embeddings(input_ids.to(device)) for input_ids, _ in sample.batches]
        self._masks = [
            _make_attention_mask(student.config, mask.to(device), states, training=False)
            for (_, mask), states in zip(sample.batches, self._states, strict=True)
        ]

    @property
    def states(self) -> torch.Tensor:
        """The states before the current layer, `(tokens, H_S)`, on the CPU."""
        return self._tokens(self._states)

    def contexts(self, attention: KDNASAttention) -> torch.Tensor:
        """What the output map of attention reads, `(tokens, H_S)`, on the CPU."""
        attend = attention.self
        return self._tokens([attend(states, mask)[0] for states, mask in zip(self._states, self._masks, strict=True)])

    def step(self, layer: KDNASLayer) -> None:
        """Go on behind a layer."""
        self._states = [layer(states, mask)[0] for states, mask in zip(self._states, self._masks, strict=True)]

    def _tokens(self, batches: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([values.cpu()[real] for values, real in zip(batches, self._real, strict=True)]).float()


def _fit_layer(
    walk: _SampleWalk,
    layer: KDNASLayer,
    source: TeacherLayer,
    sample: LayerSample,
    basis: torch.Tensor,
    standardize: bool,
) -> None:
    """Copy what reads, through fitted maps; fit what writes, so that each norm comes close to the target."""
    target = sample.outputs
    if standardize:
        target = (target - target.mean(0)) / _scale(target)
    target = target @ basis.float()
    # what a norm should give before its own weight and bias
    before_norm = (target - target.mean(0)) / _scale(target)

    states = walk.states
    read = _fit_affine(states, sample.attention_inputs, _READ_PENALTY)
    _copy_attention(layer.attention, source, read, _moment_root(states), basis, sample.head_importance)
    attended = _fit_block(layer.attention.output, walk.contexts(layer.attention), states, before_norm, target)

    read = _fit_affine(attended, sample.ffn_inputs, _READ_PENALTY)
    _copy_feed_forward(layer, source, read, basis, sample.neuron_importance)
    activations = layer.intermediate(attended.to(layer.intermediate.dense.weight.device)).cpu()
    _fit_block(layer.output, activations, attended, before_norm, target)


def _fit_block(
    block: KDNASSelfOutput | KDNASOutput,
    inputs: torch.Tensor,
    residual: torch.Tensor,
    before_norm: torch.Tensor,
    target: torch.Tensor,
) -> torch.Tensor:
    """Fit a block's output map and its norm, `(tokens, …)` each; returns what the block then gives."""
    write = _fit_affine(inputs, before_norm - residual, _WRITE_PENALTY)
    block.dense.weight.copy_(write.weight)
    block.dense.bias.copy_(write.bias)
    sums = inputs @ write.weight.T.float() + write.bias.float() + residual
    normed = nn.functional.layer_norm(sums, sums.shape[1:], eps=block.LayerNorm.eps)
    centred = normed - normed.mean(0)
    slopes = (centred * target).sum(0) / centred.square().sum(0).clamp_min(torch.finfo(torch.float32).tiny)
    weight = slopes.clamp_min(_SMALLEST_NORM_WEIGHT)
    bias = target.mean(0) - weight * normed.mean(0)
    block.LayerNorm.weight.copy_(weight)
    block.LayerNorm.bias.copy_(bias)
    return normed * weight + bias


def _fit_affine(inputs: torch.Tensor, targets: torch.Tensor, penalty: float) -> AffineMap:
    """Ridge regression of targets `(tokens, out)` on inputs `(tokens, in)`, without penalty on the bias."""
    input_mean, target_mean = inputs.mean(0), targets.mean(0)
    centred = inputs - input_mean
    scatter = (centred.T @ centred).double()
    scatter.diagonal().add_(penalty * scatter.diagonal().mean() + torch.finfo(torch.float32).tiny)
    weight = torch.linalg.solve(scatter, (centred.T @ (targets - target_mean)).double()).T
    return AffineMap(weight, target_mean.double() - weight @ input_mean.double())


def _moment_root(states: torch.Tensor) -> torch.Tensor:
    """Symmetric root of the second moment of `(tokens, size)`, kept away from singular."""
    values, vectors = torch.linalg.eigh((states.T @ states / len(states)).double())
    return vectors * values.clamp_min(1e-6 * values[-1]).sqrt() @ vectors.T


def _scale(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation over tokens; 1 where nothing varies."""
    deviation = values.std(0, correction=0)
    return torch.where(deviation > 1e-6, deviation, 1.0)


__all__ = [
    "COPIED_MODEL_TYPES",
    "AffineMap",
    "LayerSample",
    "TeacherLayer",
    "TeacherSample",
    "collect_layer_samples",
    "copy_layers",
    "read_teacher_layers",
]
