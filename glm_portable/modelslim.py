"""`quant_model_description.json`: how msmodelslim says which tensors of a checkpoint are quantised.

The file maps every tensor's name to a tag, beside a few fields about the whole model, whose names
have no dot (msmodelslim, docs/zh/quantization_formats/ascendv1.md). All tensors of a linear module
have one tag. W8A8_DYNAMIC is `weight` int8 [out, in] with `weight_scale` and `weight_offset`
float32 [out, 1], the activations quantised per token at run time; FLOAT is what it was. Every other
tag, and a cache or a collective in fewer bits, needs arithmetic that is not here and is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glm_portable.errors import UsageError

FILE = "quant_model_description.json"
DYNAMIC, FLOAT = "W8A8_DYNAMIC", "FLOAT"

# What these say of the model as a whole, the tags say of every tensor.
HARMLESS = {"model_quant_type", "version", "group_size"}
ADVICE = "use a W8A8 dynamic conversion, or convert the original with `glm-portable convert`."


def load(folder: Path) -> dict[str, str] | None:
    """Tags by tensor name; None where no description lies in the folder. Raises UsageError."""
    path = find(folder)
    if path is None:
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON ({error}): download it again.") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds a {type(raw).__name__}, not an object.")
    for name, value in raw.items():
        _check(path, name, value)
    return {name: tag for name, tag in raw.items() if "." in name}


def find(folder: Path) -> Path | None:
    """The description; MindIE's layout has the scheme at the end of its name."""
    found = sorted(folder.glob("quant_model_description*.json"))
    if len(found) > 1:
        raise UsageError(
            f"{folder} has both {found[0].name} and {found[1].name}: keep the one that belongs "
            "to the weights."
        )
    return found[0] if found else None


def _check(path: Path, name: str, value: Any) -> None:
    if "." in name:
        if value not in (DYNAMIC, FLOAT):
            raise UsageError(
                f"{path} tags {name} {str(value)[:80]!r}; only {DYNAMIC} and {FLOAT} are "
                f"supported: {ADVICE}"
            )
    elif name not in HARMLESS and value and value != FLOAT:
        raise UsageError(
            f"{path} has {name} {str(value)[:80]!r}, which needs arithmetic that is not "
            f"supported: {ADVICE}"
        )


def without_pointer(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """config.json of a described checkpoint, without a quantization_config that only points here.

    Engines write `{"quant_method": ...}` there to be told what they read. One that describes
    weights itself contradicts the description. Raises UsageError.
    """
    found = raw.get("quantization_config")
    if found is not None:
        only_points = isinstance(found, dict) and set(found) == {"quant_method"}
        if not only_points or found["quant_method"] in ("compressed-tensors", "fp8"):
            raise UsageError(
                f"{folder / 'config.json'} has a quantization_config ({str(found)[:80]}), but "
                f"{FILE} lies beside it: remove the one that does not belong to the weights."
            )
    return {key: value for key, value in raw.items() if key != "quantization_config"}


def description(tags: Mapping[str, str]) -> str:
    """The file's text for these tags."""
    fields = {"model_quant_type": DYNAMIC, "version": "1.0.0", "group_size": 0}
    return json.dumps(fields | dict(tags), indent=2) + "\n"
