"""GLM-4.5's `config.json` as a frozen dataclass, with the field names used on disk.

There are no architecture defaults: a checkpoint says what it is, or it is refused. transformers'
own class defaults differ from every published file (bias, qk-norm, rope base), so a missing field
filled in silently would run and answer nonsense.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glm_portable import modelslim
from glm_portable.errors import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of a `Glm4MoeForCausalLM` checkpoint."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    partial_rotary_factor: float
    attention_bias: bool
    use_qk_norm: bool
    first_k_dense_replace: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    num_nextn_predict_layers: int
    tie_word_embeddings: bool
    eos_token_id: tuple[int, ...]
    dtype: str
    quantization: "Quantization | None"

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions are rotated; the rest pass through."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def load(cls, folder: Path) -> "ModelConfig":
        """Read `config.json` of a checkpoint folder. Raises UsageError on anything not GLM-4.5.

        Its quantisation is that of `quantization_config`, or of msmodelslim's description.
        """
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{path} is missing: point at a checkpoint folder.") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not valid JSON ({error}): download it again.") from None
        if not isinstance(raw, dict):
            raise UsageError(f"{path} holds a {type(raw).__name__}, not an object.")
        tags = modelslim.load(folder)
        if tags is None:
            return cls.from_dict(raw, str(path))
        config = cls.from_dict(modelslim.without_pointer(raw, folder), str(path))
        return replace(config, quantization=W8A8 if modelslim.DYNAMIC in tags.values() else None)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config.json") -> "ModelConfig":
        """Build from the parsed JSON; `source` names the file in error messages."""
        _check_architecture(raw, source)
        read = _Reader(raw, source)
        config = cls(
            vocab_size=read.count("vocab_size"),
            hidden_size=read.count("hidden_size"),
            intermediate_size=read.count("intermediate_size"),
            num_hidden_layers=read.count("num_hidden_layers"),
            num_attention_heads=read.count("num_attention_heads"),
            num_key_value_heads=read.count("num_key_value_heads"),
            head_dim=read.count("head_dim"),
            max_position_embeddings=read.count("max_position_embeddings"),
            rms_norm_eps=read.number("rms_norm_eps"),
            rope_theta=read.rope("rope_theta"),
            partial_rotary_factor=read.rope("partial_rotary_factor"),
            attention_bias=read.flag("attention_bias"),
            use_qk_norm=read.flag("use_qk_norm"),
            first_k_dense_replace=read.count("first_k_dense_replace", least=0),
            moe_intermediate_size=read.count("moe_intermediate_size"),
            n_routed_experts=read.count("n_routed_experts"),
            n_shared_experts=read.count("n_shared_experts"),
            num_experts_per_tok=read.count("num_experts_per_tok"),
            n_group=read.count("n_group"),
            topk_group=read.count("topk_group"),
            norm_topk_prob=read.flag("norm_topk_prob"),
            routed_scaling_factor=read.number("routed_scaling_factor"),
            # Files of other tools leave this one out when they dropped the MTP layer.
            num_nextn_predict_layers=read.count("num_nextn_predict_layers", least=0)
            if "num_nextn_predict_layers" in raw
            else 0,
            tie_word_embeddings=read.flag("tie_word_embeddings"),
            eos_token_id=read.ids("eos_token_id"),
            dtype=read.dtype(),
            quantization=Quantization.from_dict(raw.get("quantization_config"), source),
        )
        config._check_shapes(source)
        return config

    def _check_shapes(self, source: str) -> None:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        rules = [
            (heads % groups == 0, f"num_attention_heads {heads} is not a multiple of "
             f"num_key_value_heads {groups}"),
            (self.rotary_dim % 2 == 0, f"the rotary dimension {self.rotary_dim} is odd"),
            (0 < self.rotary_dim <= self.head_dim,
             f"partial_rotary_factor {self.partial_rotary_factor} is not in (0, 1]"),
            (self.n_routed_experts % self.n_group == 0,
             f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group "
             f"{self.n_group}"),
            (self.topk_group <= self.n_group,
             f"topk_group {self.topk_group} exceeds n_group {self.n_group}"),
            (self.num_experts_per_tok <= self.n_routed_experts // self.n_group * self.topk_group,
             f"num_experts_per_tok {self.num_experts_per_tok} exceeds the experts of "
             f"{self.topk_group} of {self.n_group} groups"),
            (self.n_group == 1 or self.n_routed_experts // self.n_group >= 2,
             f"n_group {self.n_group} leaves fewer than two experts a group"),
            (self.first_k_dense_replace <= self.num_hidden_layers,
             f"first_k_dense_replace {self.first_k_dense_replace} exceeds num_hidden_layers "
             f"{self.num_hidden_layers}"),
            (self.num_nextn_predict_layers <= 1,
             f"num_nextn_predict_layers {self.num_nextn_predict_layers} is above the one MTP "
             "layer that GLM-4.5 to 4.7 have"),
        ]  # fmt: skip
        for holds, what in rules:
            if not holds:
                raise UsageError(f"{source}: {what}; the file is not a GLM-4.5 configuration.")


@dataclass(frozen=True)
class Quantization:
    """How the checkpoint's linear weights are stored.

    bits and kind: "fp8" (e4m3fn) or "int8". block: None for one scale an output channel,
    or the (rows, columns) of one scale's block. dynamic_activations: the checkpoint was made for
    activations quantised per token at run time.
    """

    kind: str
    block: tuple[int, int] | None
    dynamic_activations: bool

    @classmethod
    def from_dict(cls, raw: Any, source: str) -> "Quantization | None":
        """Read `quantization_config`; None when the checkpoint has none."""
        if raw is None:
            return None
        method = raw.get("quant_method") if isinstance(raw, dict) else None
        if method == "compressed-tensors":
            return _compressed_tensors(raw, source)
        if method == "fp8":
            scheme = raw.get("activation_scheme", "dynamic")
            if scheme != "dynamic":
                raise UsageError(
                    f"{source}: activation_scheme {scheme!r} is not supported; use a checkpoint "
                    "whose activations are quantised dynamically."
                )
            return cls("fp8", _block(raw.get("weight_block_size"), source), True)
        raise UsageError(
            f"{source}: quantisation method {method!r} is not supported; use the BF16 checkpoint, "
            "compressed-tensors FP8 or INT8 (per channel), or FP8 with 128x128 blocks."
        )


W8A8 = Quantization("int8", None, True)
"""INT8 weights with one scale an output channel, and INT8 activations with one a token."""


def _compressed_tensors(raw: dict[str, Any], source: str) -> Quantization:
    groups = raw.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        raise UsageError(
            f"{source}: compressed-tensors with config_groups {str(groups)[:80]}; exactly one "
            "group with quantised weights is supported."
        )
    kind = {"float": "fp8", "int": "int8"}.get(str(weights.get("type")))
    strategy, form = weights.get("strategy"), raw.get("format")
    if (
        kind is None
        or weights.get("num_bits") != 8
        or strategy not in ("channel", "block")
        or not weights.get("symmetric", True)
        or form not in (None, "float-quantized", "int-quantized", "naive-quantized")
    ):
        raise UsageError(
            f"{source}: weights of type {weights.get('type')!r} with {weights.get('num_bits')} "
            f"bits, strategy {strategy!r}, symmetric {weights.get('symmetric')}, format {form!r} "
            "are not supported; use symmetric 8-bit float or int weights, per channel or per block."
        )
    block = _block(weights.get("block_structure"), source) if strategy == "block" else None
    return Quantization(kind, block, _dynamic(group.get("input_activations"), weights, source))


def _dynamic(activations: Any, weights: dict[str, Any], source: str) -> bool:
    """Whether activations are quantised at run time; no entry means they are not quantised."""
    if activations is None:
        return False
    entries = {"symmetric": True} | (activations if isinstance(activations, dict) else {})
    expected = {"type": weights.get("type"), "num_bits": 8, "symmetric": True, "dynamic": True}
    found = {key: entries.get(key) for key in expected}
    if found != expected:
        raise UsageError(
            f"{source}: input_activations with {found} are not supported; use a checkpoint whose "
            f"activations are quantised with {expected}, or not at all."
        )
    return True


def _block(size: Any, source: str) -> tuple[int, int]:
    """(rows, columns) of one scale's block."""
    if isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size):
        return size[0], size[1]
    raise UsageError(
        f"{source}: a quantisation block of {str(size)[:80]}; only two-dimensional blocks such as "
        "[128, 128] are supported."
    )


def _check_architecture(raw: dict[str, Any], source: str) -> None:
    model_type = raw.get("model_type")
    architectures = raw.get("architectures") or ["Glm4MoeForCausalLM"]
    if not isinstance(architectures, list):
        architectures = [architectures]
    if model_type == "glm4_moe_lite" or "Glm4MoeLiteForCausalLM" in architectures:
        raise UsageError(
            f"{source}: GLM-4.7-Flash (Glm4MoeLiteForCausalLM) uses latent attention (MLA) and is "
            "another architecture; glm-portable runs GLM-4.5, 4.5-Air, 4.6 and 4.7."
        )
    if model_type != "glm4_moe" or "Glm4MoeForCausalLM" not in architectures:
        raise UsageError(
            f"{source}: model_type {model_type!r} with architectures {architectures} is not "
            "GLM-4.5; glm-portable runs model_type 'glm4_moe' (Glm4MoeForCausalLM)."
        )
    fixed = {"hidden_act": "silu", "rope_scaling": None}
    for field, expected in fixed.items():
        if raw.get(field, expected) != expected:
            raise UsageError(
                f"{source}: {field} is {raw[field]!r}, but GLM-4.5 to 4.7 have {expected!r}; "
                "this checkpoint needs code that glm-portable does not have."
            )


@dataclass(frozen=True)
class _Reader:
    """Typed look-ups in the parsed file; every failure names the file, the field and the value."""

    raw: dict[str, Any]
    source: str

    def _get(self, field: str) -> Any:
        if field not in self.raw:
            raise UsageError(
                f"{self.source}: {field!r} is missing; glm-portable does not guess architecture "
                "fields, so take the config.json that was published with the weights."
            )
        return self.raw[field]

    def _bad(self, field: str, value: Any, wanted: str) -> UsageError:
        return UsageError(f"{self.source}: {field} is {repr(value)[:80]}, expected {wanted}.")

    def count(self, field: str, least: int = 1) -> int:
        value = self._get(field)
        if type(value) is not int or not least <= value < 2**31:
            raise self._bad(field, value, f"an integer of at least {least} and below 2^31")
        return value

    def number(self, field: str, value: Any = None) -> float:
        value = self._get(field) if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise self._bad(field, value, "a positive number")
        if not value <= sys.float_info.max:
            raise self._bad(field, value, "a finite number")
        return float(value)

    def flag(self, field: str) -> bool:
        value = self._get(field)
        if not isinstance(value, bool):
            raise self._bad(field, value, "true or false")
        return value

    def rope(self, field: str) -> float:
        """transformers 5 moved these two into `rope_parameters`; both spellings are in use."""
        parameters = self.raw.get("rope_parameters") or {}
        if not isinstance(parameters, dict):
            raise self._bad("rope_parameters", parameters, "an object")
        if parameters.get("rope_type", "default") != "default":
            raise self._bad("rope_parameters.rope_type", parameters["rope_type"], "'default'")
        return self.number(field, parameters.get(field, self.raw.get(field)))

    def ids(self, field: str) -> tuple[int, ...]:
        value = self._get(field)
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) is int and v >= 0 for v in values):
            raise self._bad(field, value, "a token id or a list of token ids")
        return tuple(values)

    def dtype(self) -> str:
        value = self.raw.get("dtype", self.raw.get("torch_dtype"))
        if value not in ("bfloat16", "float32", "float16"):
            raise self._bad("torch_dtype", value, "bfloat16, float16 or float32")
        return str(value)
