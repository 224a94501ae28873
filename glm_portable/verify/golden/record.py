"""What a golden file holds, and how it is stored: one safetensors file and one of JSON.

Rows are tokens of all prompts, one prompt behind the other, without each prompt's last. L is the
number of main layers, and layer L the MTP layer; W is `fingerprint.WIDTH`. Projections have seed i
for the stream of layer i, 1000 and 1001 for keys and values, 2000 for logits.

    stream.i (T, W), rms.i (T)     residual stream as it enters layer i; i = L as it leaves the last
    keys.i, values.i (T, W)        of layer i, as they are cached
    experts.i (T, K), margin.i (T) chosen in layer i, and how far the last is ahead of the next
    hidden, mtp.hidden (T, W)      after the last norm, of the model and of the MTP layer; seed 3000
    top.ids, top.logprobs (T, 64)  the likeliest next tokens; tail (T) is the mass of all others
    logits, mtp.logits (T, W)      projected logits
    mtp.top, mtp.margin (T)        the token that the MTP layer drafts, how far ahead of the second
    rerouted (T)                   whether plain PyTorch chose other experts in a main layer
    kl.plain, kl.free (T)          of plain PyTorch in BF16 (see `Golden`), over top and tail
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.verify.metrics import Distance

FORMAT = 1
TENSORS, DESCRIPTION = "golden.safetensors", "golden.json"
LOGITS, HIDDEN, KEYS, VALUES = 2000, 3000, 1000, 1001


@dataclass(frozen=True)
class Golden:
    """about: provenance. prompts: token ids. tensors: see above.

    plain: how far plain PyTorch in BF16 is from the exact result, by part ("layer 3", "keys 3",
    "hidden", "logits", ...), with the exact model's experts. noise: what it is off at most in the
    scores that experts are chosen by ("layer 3"), and in the logprobs ("logits", "mtp"). "free" is
    plain PyTorch with experts of its own choice; its noise is that of tokens not re-routed.
    """

    about: Mapping[str, Any]
    prompts: tuple[tuple[int, ...], ...]
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Distance]
    noise: Mapping[str, float]

    def save(self, folder: Path) -> None:
        """Into a folder that exists; the description, which makes it a golden file, last."""
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, folder / TENSORS)
        description = {
            "about": self.about,
            "prompts": self.prompts,
            "plain": {part: asdict(found) for part, found in self.plain.items()},
            "noise": self.noise,
        }
        (folder / DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Golden":
        """Raises UsageError for a folder that is no golden file, or one of another version."""
        try:
            raw = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            tensors = load_file(folder / TENSORS)
            version = raw["about"]["format"]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UsageError(
                f"{folder} holds no golden file ({error}): make one with glm-portable verify "
                "golden."
            ) from None
        if version != FORMAT:
            raise UsageError(
                f"{folder} is a golden file of format {version}, and this version reads {FORMAT}: "
                "make it again."
            )
        plain = {part: Distance(**found) for part, found in raw["plain"].items()}
        prompts = tuple(tuple(ids) for ids in raw["prompts"])
        return cls(raw["about"], prompts, tensors, plain, raw["noise"])
