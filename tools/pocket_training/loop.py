"""The training loop: schedule, router balance, progress and checkpoints to resume from."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tools.pocket_training.data import RECIPE, Batches, Phase, phase_at
from tools.pocket_training.network import Network
from tools.pocket_training.optimiser import Average, Optimiser

WARM_UP, DECAY = 60, 0.3
"""Steps until the full learning rate, and the share of the training at its end that falls to 0."""
BALANCE_RATE = 2e-3
SAVE_EVERY = 180.0


@dataclass(frozen=True)
class Budget:
    """How long to train: until the first of them is spent. Raises ValueError if there is none."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise ValueError("a budget needs steps or minutes")

    def spent(self, step: int, seconds: float) -> float:
        """The share that is spent, 1 when training is over."""
        of_steps = step / self.steps if self.steps else 0.0
        of_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(of_steps, of_time))


@dataclass
class Position:
    """Where a training stands; saved with its checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    chunk: int = 0


class Trainer:
    """Trains a network within a budget; `average` holds the weights to export."""

    def __init__(
        self,
        network: Network,
        batches: Batches,
        budget: Budget,
        *,
        recipe: tuple[Phase, ...] = RECIPE,
        report: Callable[[str], None] = print,
        save_to: Path | None = None,
    ) -> None:
        self.network, self.batches, self.budget = network, batches, budget
        self.recipe, self.report, self.save_to = recipe, report, save_to
        self.optimiser, self.average = Optimiser(network), Average(network)
        self.position = Position()
        self.losses: list[tuple[float, float]] = []

    def run(self) -> None:
        """Train until the budget is spent, with progress every 20 steps."""
        self.network.train()
        before, saved = self.position.seconds, 0.0
        start = time.monotonic()
        while (progress := self.budget.spent(self.position.step, self.position.seconds)) < 1:
            worst = self._step(progress)
            self.position.seconds = before + time.monotonic() - start
            if self.position.step % 20 == 0:
                self._report(progress, worst)
            if self.save_to and self.position.seconds - saved > SAVE_EVERY:
                self.save(self.save_to)
                saved = self.position.seconds
        if self.save_to:
            self.save(self.save_to)

    def _step(self, progress: float) -> float:
        ids, weights = self.batches.next(phase_at(progress, self.recipe))
        loss = self.network.loss(ids, weights)
        loss.total.backward()  # type: ignore[no-untyped-call]
        self.position.step += 1
        remaining = min(1.0, (1 - progress) / DECAY)
        self.optimiser.step(remaining * min(1.0, self.position.step / WARM_UP))
        rate = BALANCE_RATE * max(0.05, remaining)
        worst = max(gate.balance(rate) for gate in self.network.gates())
        if self.position.step % 10 == 0:
            self.average.update(self.network, keep=0.9 if self.position.step < 500 else 0.96)
        self.position.tokens += ids.numel()
        self.position.chunk = self.batches.chunk
        self.losses.append((loss.next_token, loss.mtp))
        return worst

    def _report(self, progress: float, worst: float) -> None:
        recent = self.losses[-20:]
        following, after = (sum(column) / len(recent) for column in zip(*recent, strict=True))
        p = self.position
        self.report(
            f"{100 * progress:5.1f} %  {phase_at(progress, self.recipe).name}  step {p.step}  "
            f"{p.tokens / 1e6:.2f} M tokens  {p.tokens / p.seconds:.0f} tokens/s  "
            f"loss {following:.4f}  MTP {after:.4f}  busiest expert {worst:.2f} x mean"
        )

    def save(self, path: Path) -> None:
        """Everything that `resume` needs; a crash while writing leaves the last file whole."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.tensors,
            "optimiser": self.optimiser.state_dict(),
            "position": asdict(self.position),
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def resume(self, path: Path) -> None:
        """Go on from a saved file, at the first chunk of chats that had not been started."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.tensors = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.position = Position(**state["position"])
        self.batches.chunk = self.position.chunk
