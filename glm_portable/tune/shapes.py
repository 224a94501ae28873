"""Which products a model asks for on one rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError


@dataclass(frozen=True)
class Model:
    """The numbers of a model that decide its expert products."""

    name: str
    experts: int
    hidden: int
    width: int
    chosen: int

    @classmethod
    def of(cls, name: str, config: ModelConfig) -> "Model":
        return cls(
            name,
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
            config.num_experts_per_tok,
        )


# config.json of zai-org/GLM-4.5 (4.6 and 4.7 are alike) and zai-org/GLM-4.5-Air.
PUBLISHED = (Model("GLM-4.5", 160, 5120, 1536, 8), Model("GLM-4.5-Air", 128, 4096, 1408, 8))


@dataclass(frozen=True)
class Shape:
    """A layer's experts on one rank: gate_up (experts, 2 * width, hidden), down (experts, hidden,
    width). all_experts: of the whole model, from which a token chooses `chosen`."""

    name: str
    experts: int
    all_experts: int
    hidden: int
    width: int
    chosen: int


@dataclass(frozen=True)
class Job:
    """One line of the table. down: the second product, a row for each choice, weighted."""

    shape: Shape
    down: bool
    dtype: str
    tokens: int

    @property
    def n(self) -> int:
        return self.shape.hidden if self.down else 2 * self.shape.width

    @property
    def k(self) -> int:
        return self.shape.width if self.down else self.shape.hidden

    @property
    def key(self) -> tuple[int, int, int, str, int]:
        """As `kernels.tuned_lines.Line.key`."""
        return self.shape.experts, self.n, self.k, self.dtype, self.tokens

    def __str__(self) -> str:
        part = "down" if self.down else "gate_up"
        return f"{self.shape.name} {part} {self.dtype}, {self.tokens} tokens"


def shapes(model: Model, tp: Sequence[int], ep: Sequence[int]) -> Iterator[Shape]:
    """One for each number of ranks. Raises UsageError where the model cannot be split so."""
    for kind, ranks, whole, what in (
        ("TP", tp, model.width, "moe_intermediate_size"),
        ("EP", ep, model.experts, "n_routed_experts"),
    ):
        for count in ranks:
            if whole % count:
                raise UsageError(
                    f"{model.name} cannot be split over --{kind.lower()} {count}: its {what} is "
                    f"{whole}; choose a divisor of it."
                )
            split = (count, 1) if kind == "EP" else (1, count)
            yield Shape(
                f"{model.name} {kind}{count}",
                model.experts // split[0],
                model.experts,
                model.hidden,
                model.width // split[1],
                model.chosen,
            )


def jobs(
    all_shapes: Sequence[Shape], dtypes: Sequence[str], tokens: Sequence[int]
) -> Iterator[tuple[Job, Job]]:
    """(gate_up, down) of every case: they share an alignment, so down follows gate_up's block_m."""
    for shape in all_shapes:
        for dtype in dtypes:
            for count in tokens:
                yield Job(shape, False, dtype, count), Job(shape, True, dtype, count)
