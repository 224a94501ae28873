"""Faults outside the ops: of a model's own steps, done to one that has been loaded."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from glm_portable.model import MLP, Layer, Model, MoE, Rotary
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.verify.faults.fault import MODEL, Fault, faulty

WHY = "no op is wrong"


def each_layer(change: Callable[[Layer], None], model: Model) -> None:
    """Change every layer, the MTP layer too."""
    layers = [*model.layers, *([model.mtp.layer] if model.mtp else [])]
    for layer in layers:
        change(layer)


def each_mixture(change: Callable[[MoE], None], model: Model) -> None:
    def of(layer: Layer) -> None:
        if layer.moe is not None:
            change(layer.moe)

    each_layer(of, model)


def shared_scaled(factor: Callable[[MoE], float], moe: MoE) -> None:
    """The shared expert's output times a number."""
    honest, by = moe.shared, factor(moe)

    def shared(x_TD: Tensor) -> Tensor:
        return honest(x_TD) * by

    moe.shared = cast(MLP, shared)


def factor_of_config(factor: float, moe: MoE) -> None:
    moe.config = replace(moe.config, routed_scaling_factor=factor)


def mixture_input_unnormed(layer: Layer) -> None:
    """The norm before the MLP is the one before attention."""
    layer.post_norm = layer.input_norm


def norms_exchanged(layer: Layer) -> None:
    layer.input_norm, layer.post_norm = layer.post_norm, layer.input_norm


def no_bias(layer: Layer) -> None:
    layer.attention.qkv_bias = None


def no_qk_norm(layer: Layer) -> None:
    layer.attention.q_norm = layer.attention.k_norm = None


class Turned:
    """A layer that rotates by other angles than it is given."""

    def __init__(self, layer: Layer, rotary: Callable[[Tensor], Rotary], ahead: int) -> None:
        self._layer, self._rotary, self._ahead = layer, rotary, ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(
        self, x: Tensor, residual: Tensor | None, rotary: Rotary, cache: KVCache, step: Step,
        *rest: Any,
    ) -> Any:  # fmt: skip
        turned = self._rotary(step.positions_T + self._ahead)
        return self._layer(x, residual, turned, cache, step, *rest)


def rotate_by(angles: Callable[[Tensor, Model], Rotary], model: Model) -> None:
    """Every layer rotates by what `angles` makes of the positions."""

    def rotary(positions_T: Tensor) -> Rotary:
        return angles(positions_T, model)

    model.layers = [cast(Layer, Turned(layer, rotary, 0)) for layer in model.layers]
    if model.mtp is not None:
        model.mtp.layer = cast(Layer, Turned(model.mtp.layer, rotary, 1))


def base_10000(positions_T: Tensor, model: Model) -> Rotary:
    return Rotary.at(positions_T, replace(model.config, rope_theta=1e4), model.dtype)


def half_the_dimensions(positions_T: Tensor, model: Model) -> Rotary:
    """Frequencies of a head that is rotated as a whole."""
    whole = replace(model.config, partial_rotary_factor=1.0)
    width = model.config.rotary_dim
    rotary = Rotary.at(positions_T, whole, model.dtype)
    halves = [x[:, : width // 2].repeat(1, 2) for x in (rotary.cos_TC, rotary.sin_TC)]
    return Rotary(*halves)


def angles_in_bf16(positions_T: Tensor, model: Model) -> Rotary:
    """Positions times frequencies are rounded before cos and sin."""
    width = model.config.rotary_dim
    even = torch.arange(0, width, 2, dtype=torch.float32, device=positions_T.device)
    frequency = model.config.rope_theta ** (-even / width)
    angles = (positions_T.bfloat16().unsqueeze(1) * frequency.bfloat16()).repeat(1, 2)
    return Rotary(angles.cos().to(model.dtype), angles.sin().to(model.dtype))


def within_the_step(positions_T: Tensor, model: Model) -> Rotary:
    """Positions start at 0 in every step."""
    return Rotary.at(positions_T - positions_T[0], model.config, model.dtype)


def attention_output_in_part(model: Model) -> None:
    """One of two ranks' share of the output projection is missing."""
    each_layer(_half_of_heads, model)


def _half_of_heads(layer: Layer) -> None:
    def attend(honest: Any, q: Tensor, *rest: Any) -> Tensor:
        y: Tensor = honest(q, *rest).clone()
        y[:, y.shape[1] // 2 :] = 0
        return y

    layer.attention.ops = faulty(layer.attention.ops, {"attend": attend})


def reduced_twice(layer: Layer) -> None:
    """The output projection's result is summed over two ranks that both have all of it."""

    def linear(honest: Any, x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
        y: Tensor = honest(x, w, bias)
        return y * 2 if w is layer.attention.out else y

    layer.attention.ops = faulty(layer.attention.ops, {"linear": linear})


def layer_skipped(model: Model) -> None:
    """One layer hands on what it got."""

    def skipped(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x), x if residual is None else x + residual

    model.layers[1] = cast(Layer, skipped)


def layers_exchanged(model: Model) -> None:
    model.layers[1], model.layers[2] = model.layers[2], model.layers[1]


def embedding_shifted(model: Model) -> None:
    model.embed = model.embed.roll(1, 0)


def head_shifted(model: Model) -> None:
    """Logits of one token stand in the row of the next."""
    head = model.head

    def linear(honest: Any, x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
        y: Tensor = honest(x, w, bias)
        return y.roll(1, -1) if w is head else y

    model.ops = faulty(model.ops, {"linear": linear})


def final_norm_missing(model: Model) -> None:
    model.norm = torch.ones_like(model.norm)


class DraftsFrom:
    """An MTP layer that is given other tokens, states, steps or caches."""

    def __init__(self, mtp: Any, change: Callable[..., tuple[Any, ...]]) -> None:
        self._mtp, self._change = mtp, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mtp, name)

    def __call__(self, ids: Tensor, hidden: Tensor, step: Step, cache: KVCache) -> Tensor:
        y: Tensor = self._mtp(*self._change(ids, hidden, step, cache))
        return y


def mtp_given(change: Callable[..., tuple[Any, ...]], model: Model) -> None:
    model.mtp = cast(Any, DraftsFrom(model.mtp, change))


def tokens_not_shifted(model: Model) -> None:
    """The token itself goes in, not the one that follows."""
    last: list[Tensor] = []

    def change(ids: Tensor, *rest: Any) -> tuple[Any, ...]:
        first = last[-1:] if int(rest[1].positions_T[0]) else [ids[:1]]
        last[:] = [ids[-1:]]
        return torch.cat([*first, ids[:-1]]), *rest

    mtp_given(change, model)


def hidden_shifted(ids: Tensor, hidden: Tensor, *rest: Any) -> tuple[Any, ...]:
    """The state of the token before."""
    return ids, hidden.roll(1, 0), *rest


def hidden_missing(ids: Tensor, hidden: Tensor, *rest: Any) -> tuple[Any, ...]:
    return ids, torch.zeros_like(hidden), *rest


def mtp_norms_swapped(model: Model) -> None:
    assert model.mtp is not None
    model.mtp.enorm, model.mtp.hnorm = model.mtp.hnorm, model.mtp.enorm


def mtp_norm_missing(model: Model) -> None:
    assert model.mtp is not None
    model.mtp.norm = torch.ones_like(model.mtp.norm)


def mtp_halves_swapped(model: Model) -> None:
    """The hidden state comes first and the embedding second."""
    assert model.mtp is not None
    projection = model.mtp.eh_proj

    def linear(honest: Any, x: Tensor, w: Weight, bias: Tensor | None = None) -> Any:
        if w is projection:
            x = torch.cat(x.chunk(2, -1)[::-1], -1)
        return honest(x, w, bias)

    model.mtp.ops = faulty(model.mtp.ops, {"linear": linear})


def mtp_shares_a_cache(model: Model) -> None:
    """Keys of the MTP layer overwrite those of the last layer."""
    kept: list[KVCache] = []
    last = model.layers[-1]

    def keeping(
        x: Tensor, residual: Tensor | None, rotary: Rotary, cache: KVCache, *rest: Any
    ) -> Any:
        kept[:] = [cache]
        return last(x, residual, rotary, cache, *rest)

    model.layers[-1] = cast(Layer, keeping)
    mtp_given(lambda ids, hidden, step, cache: (ids, hidden, step, kept[0]), model)


def mtp_without_history(model: Model) -> None:
    """The prompt is not run through the layer: drafting sees empty pages."""

    def change(ids: Tensor, hidden: Tensor, step: Step, cache: KVCache) -> tuple[Any, ...]:
        if len(ids) == 1:
            cache.k_PSGC.zero_()
            cache.v_PSGC.zero_()
        return ids, hidden, step, cache

    mtp_given(change, model)


def _fault(name: str, part: str, spoil: Callable[[Model], None], stands_for: str) -> Fault:
    return Fault(name, part, stands_for, MODEL, WHY, spoil=spoil)


AROUND = [
    _fault("shared-expert-scaled", "mixture",
           partial(each_mixture, partial(shared_scaled, lambda m: m.config.routed_scaling_factor)),
           "routed factor on the sum of both branches"),
    _fault("shared-expert-missing", "mixture",
           partial(each_mixture, partial(shared_scaled, lambda m: 0.0)),
           "shared branch not added (sglang#22521)"),
    _fault("shared-expert-twice", "mixture",
           partial(each_mixture, partial(shared_scaled, lambda m: 2.0)),
           "added in the fused operator and after it"),
    _fault("factor-of-air", "mixture", partial(each_mixture, partial(factor_of_config, 1.0)),
           "routed_scaling_factor left at the default"),
    _fault("post-norm-is-input-norm", "layer", partial(each_layer, mixture_input_unnormed),
           "one norm's weight loaded twice"),
    _fault("layer-norms-exchanged", "layer", partial(each_layer, norms_exchanged),
           "names of norms mapped wrongly"),
    _fault("qkv-bias-missing", "attention", partial(each_layer, no_bias),
           "attention_bias false by default"),
    _fault("qk-norm-not-loaded", "attention", partial(each_layer, no_qk_norm),
           "use_qk_norm false by default"),
    _fault("rope-base-10000", "rotary", partial(rotate_by, base_10000), "rope_theta's default"),
    _fault("rope-frequencies-of-a-whole-head", "rotary", partial(rotate_by, half_the_dimensions),
           "frequencies spread over head_dim"),
    Fault("rope-angles-in-bf16", "rotary", "inv_freq cast with the model", frozenset(),
          "its error grows with the position: 100 tokens are too few",
          spoil=partial(rotate_by, angles_in_bf16)),
    _fault("positions-of-the-step", "step", partial(rotate_by, within_the_step),
           "positions restart in every chunk (vllm#46262)"),
    _fault("rank-missing", "attention", attention_output_in_part,
           "one rank left out of the sum (vllm-ascend#2767)"),
    _fault("reduced-twice", "attention", partial(each_layer, reduced_twice),
           "all-reduce of what is already whole (vllm-ascend#6710)"),
    _fault("layer-skipped", "model", layer_skipped, "pipeline boundary off by one"),
    _fault("layers-exchanged", "model", layers_exchanged, "layer names sorted as text: 10 < 2"),
    _fault("embedding-shifted", "model", embedding_shifted, "vocabulary offset of a rank"),
    _fault("head-shifted", "model", head_shifted, "vocabulary offset of a rank"),
    _fault("final-norm-missing", "model", final_norm_missing, "weight of model.norm not loaded"),
    _fault("mtp-input-not-shifted", "MTP", tokens_not_shifted,
           "token i where i + 1 belongs (vllm#52833)"),
    _fault("mtp-hidden-shifted", "MTP", partial(mtp_given, hidden_shifted),
           "state of the token before"),
    _fault("mtp-hidden-missing", "MTP", partial(mtp_given, hidden_missing),
           "hidden states not handed on"),
    _fault("mtp-norms-swapped", "MTP", mtp_norms_swapped, "enorm and hnorm exchanged"),
    _fault("mtp-norm-missing", "MTP", mtp_norm_missing, "shared_head.norm not loaded"),
    _fault("mtp-halves-swapped", "MTP", mtp_halves_swapped, "hidden state before embedding"),
    _fault("mtp-shares-a-cache", "MTP", mtp_shares_a_cache,
           "draft layer on another's block table (vllm-ascend#14306)"),
    _fault("mtp-without-history", "MTP", mtp_without_history,
           "prompt not run through the layer (ik_llama.cpp PR#1992)"),
]  # fmt: skip
