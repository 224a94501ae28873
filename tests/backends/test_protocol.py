"""Every backend has every op of the protocol, under the same signature."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops
from glm_portable.errors import UsageError
from glm_portable.ops import Ops, Weight

OPS = [name for name, body in vars(Ops).items() if inspect.isfunction(body) and name[0] != "_"]


def signature(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Names, kinds, defaults and resolved annotations, `self` left out, the return type last."""
    hints = typing.get_type_hints(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    listed = [(p.name, p.kind, p.default, hints.get(p.name)) for p in parameters]
    return [*listed, ("return", hints.get("return"))]


def differences(backend: object) -> list[str]:
    """The ops that a backend lacks or spells differently."""
    return [
        op
        for op in OPS
        if not callable(getattr(backend, op, None))
        or signature(getattr(backend, op)) != signature(getattr(Ops, op))
    ]


def test_the_protocol_lists_the_ops() -> None:
    assert {"pack", "linear", "rms_norm", "silu_mul", "rope_store", "attend", "route"} < set(OPS)


@pytest.mark.parametrize("name", ops.names())
def test_a_backend_has_the_ops_of_the_protocol(name: str) -> None:
    module = ops.module_of(name)
    if hasattr(module, "connect"):  # its device need not be here: look at what it would return
        assert differences(typing.get_type_hints(module.connect)["return"]) == []
        return
    backend = ops.load(name)
    assert differences(backend) == []
    assert backend.name == name
    assert isinstance(backend.device, torch.device)


def test_shared_modules_are_no_backends() -> None:
    assert {"cpu", "cuda", "reference", "rocm"} <= set(ops.names())
    assert not [name for name in ops.names() if name.startswith("_")]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(UsageError, match="backend 'rocm' needs the Python package 'triton'"):
        ops.module_of("rocm")


def _renamed(x_T2F_: Tensor) -> Tensor:
    return x_T2F_


def _untyped(x_T2F):  # type: ignore[no-untyped-def]  # the point of this one
    return x_T2F


def _other_default(
    x_TD: Tensor, w_D: Tensor, eps: float = 1e-5, residual_TD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return x_TD, w_D


def _other_type(x_TR: Tensor, w: Tensor, bias_N: Tensor | None = None) -> Tensor:
    return x_TR


def _other_order(w: Weight, x_TR: Tensor, bias_N: Tensor | None = None) -> Tensor:
    return x_TR


@pytest.mark.parametrize(
    ("op", "body"),
    [
        ("silu_mul", _renamed),
        ("silu_mul", _untyped),
        ("silu_mul", None),
        ("rms_norm", _other_default),
        ("linear", _other_type),
        ("linear", _other_order),
    ],
)
def test_a_differing_signature_is_noticed(
    op: str, body: Callable[..., Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ops.load("reference")
    monkeypatch.setattr(backend, op, body)
    assert differences(backend) == [op]


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'tpu' is not one of auto, .*cpu.*reference"):
        ops.load("tpu")


def test_auto_is_a_backend_of_this_installation() -> None:
    assert ops.load("auto").name in ops.names()
