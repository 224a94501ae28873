import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable import ops
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig, Quantization
from glm_portable.errors import UsageError
from glm_portable.model import Model
from glm_portable.ops import Weight
from glm_portable.parallel import SINGLE
from tests.random_checkpoint import quantization_config, small_config, tensor_shapes

# The published files, without the ignore lists of the FP8 ones (hundreds of names).
PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "published_configs.json").read_text(encoding="utf-8")
)
GLM_45, AIR = PUBLISHED["zai-org/GLM-4.5"], PUBLISHED["zai-org/GLM-4.5-Air"]

SHARED: dict[str, Any] = {
    "vocab_size": 151552,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rotary_dim": 64,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "eos_token_id": (151329, 151336, 151338),
    "dtype": "bfloat16",
}
LARGE: dict[str, Any] = SHARED | {
    "hidden_size": 5120,
    "num_hidden_layers": 92,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "first_k_dense_replace": 3,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
}
SMALL: dict[str, Any] = SHARED | {
    "hidden_size": 4096,
    "num_hidden_layers": 46,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
}


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.startswith("zai-org/")])
def test_published_configs(name: str) -> None:
    config = ModelConfig.from_dict(PUBLISHED[name])
    expected = SMALL if "Air" in name else LARGE
    assert {field: getattr(config, field) for field in expected} == expected
    fp8 = Quantization(kind="fp8", block=None, dynamic_activations=True)
    assert config.quantization == (fp8 if name.endswith("-FP8") else None)


def test_a_tied_config_of_someone_else() -> None:
    config = ModelConfig.from_dict(PUBLISHED["tiny-random/glm-4-moe"])
    assert config.tie_word_embeddings and config.hidden_size == 16


class Shapes(Checkpoint):
    """Stands where a checkpoint would, and writes down which names and shapes it is asked for."""

    def __init__(self) -> None:
        self.dtype, self.parallel = torch.bfloat16, SINGLE
        self.asked: dict[str, tuple[int, ...]] = {}

    def has(self, name: str) -> bool:
        return name.endswith("eh_proj.weight")

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        self.asked[name] = shape
        return torch.empty(shape, device="meta")

    def weight(self, modules: Any, out_features: Any, in_features: int) -> Weight:
        for module, n in zip(modules, out_features, strict=True):
            self.asked[f"{module}.weight"] = (n, in_features)
        return Weight(torch.empty(sum(out_features), in_features, device="meta"), self.dtype)

    def experts(
        self, prefix: str, projections: Any, count: int, out_features: int, in_features: int
    ) -> Weight:
        names = [f"{prefix}.{e}.{p}.weight" for e in range(count) for p in projections]
        self.asked |= dict.fromkeys(names, (out_features, in_features))
        shape = (count, len(projections) * out_features, in_features)
        return Weight(torch.empty(shape, device="meta"), self.dtype)

    def finish(self) -> None:
        pass


@pytest.mark.parametrize(
    ("raw", "layers", "parameters"),
    [
        (GLM_45, "main", 352_797_829_024),
        (GLM_45, "main and MTP", 356_785_898_816),  # as GLM-4.6 is stored
        (GLM_45, "main, MTP and its copies", 358_337_791_296),  # as GLM-4.5 and 4.7 are
        (AIR, "main", 106_852_251_264),
        (AIR, "main, MTP and its copies", 110_468_824_832),
    ],
)
def test_parameter_counts(raw: dict[str, Any], layers: str, parameters: int) -> None:
    """What the model asks for adds up to the counts that llama.cpp prints for the same files."""
    raw = raw | {"num_nextn_predict_layers": int("MTP" in layers)}
    shapes = Shapes()
    Model(ModelConfig.from_dict(raw), ops.load("reference"), shapes)
    assert shapes.asked == dict(tensor_shapes(raw))
    copies = 2 * raw["vocab_size"] * raw["hidden_size"] if "copies" in layers else 0
    count = sum(torch.Size(shape).numel() for shape in shapes.asked.values())
    assert count + copies == parameters


def test_transformers_5_spelling() -> None:
    raw = small_config(dtype="bfloat16")
    for moved in ("rope_theta", "partial_rotary_factor", "rope_scaling", "torch_dtype"):
        del raw[moved]
    raw["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.25,
    }
    config = ModelConfig.from_dict(raw)
    assert (config.rope_theta, config.rotary_dim, config.dtype) == (5e5, 4, "bfloat16")


def test_a_config_without_the_mtp_count_has_no_mtp_layer() -> None:
    raw = small_config()
    del raw["num_nextn_predict_layers"]
    assert ModelConfig.from_dict(raw).num_nextn_predict_layers == 0


REQUIRED = sorted(
    set(small_config())
    - {"architectures", "hidden_act", "rope_scaling", "attention_dropout", "pad_token_id"}
    - {"num_nextn_predict_layers"}
)


@pytest.mark.parametrize("field", REQUIRED)
def test_nothing_is_guessed(field: str) -> None:
    raw = small_config()
    del raw[field]
    with pytest.raises(UsageError, match=f"config.json: .*{field}"):
        ModelConfig.from_dict(raw)


FLASH = {"model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (FLASH, r"GLM-4.7-Flash .* latent attention \(MLA\)"),
        ({"architectures": ["Glm4MoeLiteForCausalLM"]}, "GLM-4.7-Flash"),
        ({"model_type": "glm4"}, "model_type 'glm4' .* is not GLM-4.5"),
        ({"model_type": "glm_moe_dsa", "architectures": ["GlmMoeDsaForCausalLM"]}, "is not GLM"),
        ({"architectures": ["Glm4MoeForTokenClassification"]}, "is not GLM-4.5"),
        ({"architectures": "Qwen3ForCausalLM"}, "is not GLM-4.5"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling is .*yarn"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected an object"),
        ({"hidden_size": 0}, "hidden_size is 0, expected an integer of at least 1"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 2**31}, f"hidden_size is {2**31}"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": float("inf")}, "rope_theta is inf"),
        ({"rope_theta": None}, "rope_theta is None"),
        ({"use_qk_norm": 1}, "use_qk_norm is 1, expected true or false"),
        ({"eos_token_id": []}, r"eos_token_id is \[\]"),
        ({"eos_token_id": [True]}, "eos_token_id"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype is 'float8_e4m3fn'"),
        ({"num_attention_heads": 9}, "num_attention_heads 9 is not a multiple"),
        ({"partial_rotary_factor": 1.5}, r"partial_rotary_factor 1.5 is not in \(0, 1\]"),
        ({"partial_rotary_factor": 0.2}, "rotary dimension 3 is odd"),
        ({"n_group": 3}, "n_routed_experts 8 is not a multiple of n_group 3"),
        ({"n_group": 8, "topk_group": 2}, "fewer than two experts a group"),
        ({"n_group": 2, "topk_group": 3}, "topk_group 3 exceeds n_group 2"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 exceeds"),
        ({"n_group": 4, "num_experts_per_tok": 3}, "num_experts_per_tok 3 exceeds"),
        ({"first_k_dense_replace": 4}, "first_k_dense_replace 4 exceeds"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers 2 is above"),
    ],
)
def test_what_is_refused_and_why(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelConfig.from_dict(small_config(**overrides))


def changed(kind: Any, **weights: Any) -> dict[str, Any]:
    """compressed-tensors with some fields of its weights changed."""
    raw = quantization_config(kind, (128, 128))
    raw["config_groups"]["group_0"]["weights"] |= weights
    return raw


def activations(**fields: Any) -> dict[str, Any]:
    raw = quantization_config("fp8", (128, 128))
    raw["config_groups"]["group_0"]["input_activations"] |= fields
    return raw


def weight_only() -> dict[str, Any]:
    raw = quantization_config("fp8", (128, 128))
    raw["config_groups"]["group_0"]["input_activations"] = None
    return raw


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 64]}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, None),
        (changed("fp8"), Quantization("fp8", None, True)),
        (changed("int8"), Quantization("int8", None, True)),
        (weight_only(), Quantization("fp8", None, False)),
        (
            changed("fp8", strategy="block", block_structure=[128, 32]),
            Quantization("fp8", (128, 32), True),
        ),
        (BLOCKS, Quantization("fp8", (128, 64), True)),
    ],
)
def test_quantisation(raw: Any, expected: Quantization | None) -> None:
    config = ModelConfig.from_dict(small_config(quantization_config=raw))
    assert config.quantization == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "method 'gptq' is not supported"),
        ("fp8", "method None is not supported"),
        ({"quant_method": "fp8"}, "a quantisation block of None"),
        (BLOCKS | {"weight_block_size": [128]}, r"a quantisation block of \[128\]"),
        (BLOCKS | {"weight_block_size": [128, 0]}, r"a quantisation block of \[128, 0\]"),
        (BLOCKS | {"activation_scheme": "static"}, "activation_scheme 'static'"),
        (changed("fp8", num_bits=4), "with 4 bits"),
        (changed("fp8", strategy="tensor"), "strategy 'tensor'"),
        (changed("int8", symmetric=False), "symmetric False"),
        (changed("fp8", strategy="block", block_structure=None), "quantisation block of None"),
        (changed("int8") | {"format": "pack-quantized"}, "format 'pack-quantized'"),
        (changed("fp8") | {"config_groups": {}}, "exactly one group"),
        (changed("fp8") | {"config_groups": [1]}, "exactly one group"),
        (activations(dynamic=False), "input_activations with .*'dynamic': False"),
        (activations(num_bits=4), "input_activations with .*'num_bits': 4"),
    ],
)
def test_quantisation_that_is_refused(raw: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelConfig.from_dict(small_config(quantization_config=raw))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)
BASE = small_config(
    quantization_config=quantization_config("fp8", (128, 128)),
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
)


def paths(raw: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place in a nested object."""
    if not isinstance(raw, dict):
        return [prefix]
    inner = [path for key, value in raw.items() for path in paths(value, (*prefix, key))]
    return [prefix, *inner] if prefix else inner


@given(st.sampled_from(paths(BASE)), json_values)
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_is_read_or_refused(path: tuple[str, ...], value: Any) -> None:
    raw = copy.deepcopy(BASE)
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    try:
        ModelConfig.from_dict(raw)
    except UsageError as error:
        assert str(error).startswith("config.json: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"vocab_size": ', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds a list, not an object"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UsageError, match=message):
        ModelConfig.load(tmp_path)


def test_folders_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="config.json is missing"):
        ModelConfig.load(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UsageError, match="config.json cannot be read: Is a directory"):
        ModelConfig.load(tmp_path)
