"""What is verified: a checkpoint, read in a format, with prompts that it understands."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from glm_portable import hub, pocket
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.model import Model
from glm_portable.ops import Ops
from glm_portable.tasks import generate
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.generated import small_checkpoint
from glm_portable.verify.quantised import QuantisedCheckpoint

FORMATS: dict[str, Callable[..., Checkpoint]] = {
    "bf16": Checkpoint,
    "fp8": QuantisedCheckpoint,
    "w8a8": partial(Checkpoint, quantization="w8a8"),
}
"""bf16: as stored. The others quantise a plain checkpoint as it is read."""
PROMPTS = 11
"""The seed of the pocket model's prompts."""

Build = Callable[[ModelConfig, Ops, Checkpoint], Model]


@dataclass(frozen=True)
class Subject:
    """A checkpoint folder under a name. kind: of FORMATS. seed: of what is random.

    build: makes the model that is judged; the reference's is always `Model`.
    """

    name: str
    folder: Path
    kind: str = "bf16"
    seed: int = 0
    build: Build = field(default=Model, compare=False)

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.load(self.folder)

    def weights(self, dtype: torch.dtype, device: torch.device) -> Checkpoint:
        return FORMATS[self.kind](self.folder, self.config, dtype=dtype, device=device)

    def model(self, dtype: torch.dtype, machine: Ops) -> Model:
        return Model(self.config, machine, self.weights(dtype, machine.device))

    def judged(self, machine: Ops) -> Model:
        """The model in its serving type on the backend that is judged."""
        weights = self.weights(torch.bfloat16, machine.device)
        return self.build(self.config, machine, weights)

    def prompt(self, count: int, sample: int = 0) -> list[int]:
        """So many tokens: of conversations such as the pocket model knows, or random ones."""
        config = self.config
        if not (self.folder / "tokenizer.json").exists():
            generator = torch.Generator().manual_seed(1000 * self.seed + sample)
            return torch.randint(config.vocab_size, (count,), generator=generator).tolist()
        tokenizer = Tokenizer.load(self.folder, config)
        ids: list[int] = []
        index = 100 * sample
        while len(ids) < count:
            ids += tokenizer.encode(str(generate(PROMPTS + self.seed, index).messages))
            index += 1
        return ids[:count]


@contextmanager
def opened(
    model: str | None = None, config: str | None = None, kind: str = "bf16", seed: int = 0
) -> Iterator[Subject]:
    """MODEL, or a small random checkpoint of one of `generated.CONFIGS`, or the pocket model."""
    if kind not in FORMATS:
        raise UsageError(f"there is no format {kind!r}; use one of {', '.join(FORMATS)}.")
    if config is None:
        folder = pocket.FOLDER if model is None else hub.resolve(model, None)
        yield Subject("glm-pocket" if model is None else model, folder, kind, seed)
        return
    if model is not None:
        raise UsageError(f"MODEL {model!r} and the small config {config!r} exclude each other.")
    with tempfile.TemporaryDirectory(prefix="glm-portable-") as temporary:
        yield Subject(config, small_checkpoint(config, Path(temporary), seed), kind, seed)
