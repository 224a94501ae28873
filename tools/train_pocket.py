"""Trains the pocket model from scratch: `python -m tools.train_pocket OUT --minutes 70`.

Builds the tokenizer, trains on synthetic chats (`glm_portable.tasks`, training split only) by the
phases of `pocket_training.data.RECIPE`, and writes a checkpoint folder in the published format.
Nothing is read but this repository. `glm-portable evaluate OUT` then examines it.
"""

import shutil
from pathlib import Path

import click
import tokenizers
import torch

from glm_portable import pocket
from glm_portable.config import ModelConfig
from glm_portable.tasks import generate
from tools.pocket_training.data import Batches, Encoder
from tools.pocket_training.export import POCKET, export, largest_difference
from tools.pocket_training.loop import Budget, Trainer
from tools.pocket_training.network import Network
from tools.pocket_training.vocabulary import build_tokenizer, end_of_turn_ids, save_tokenizer

TOLERANCE = 1e-3
"""Largest difference of a float32 logit between two implementations of the same network."""


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Train that long.")
@click.option("--steps", type=click.IntRange(min=1), help="Train that many steps at most.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--batch-tokens", type=click.IntRange(min=64), default=9216, show_default=True)
@click.option("--vocabulary-chats", type=click.IntRange(min=1), default=20_000, show_default=True)
@click.option("--resume", is_flag=True, help="Go on from OUT/training.pt.")
def main(
    out: Path,
    minutes: float | None,
    steps: int | None,
    seed: int,
    batch_tokens: int,
    vocabulary_chats: int,
    resume: bool,
) -> None:
    """Train the pocket model from scratch and write its checkpoint into OUT."""
    if minutes is None and steps is None:
        raise click.UsageError("say how long to train: --minutes, --steps or both.")
    out.mkdir(parents=True, exist_ok=True)
    template = shutil.copy(pocket.path() / "chat_template.jinja", out)
    text = Path(template).read_text(encoding="utf-8")
    tokenizer = _tokenizer(out, text, vocabulary_chats, resume)
    ends = end_of_turn_ids(tokenizer)
    raw = {**POCKET, "pad_token_id": ends[0], "eos_token_id": ends}
    torch.manual_seed(seed)
    network = Network(ModelConfig.from_dict(raw), torch.bfloat16)
    click.echo(f"{sum(p.numel() for p in network.parameters()):,} parameters")
    encoder = Encoder(tokenizer, text)
    batches = Batches(encoder, seed, batch_tokens)
    saved = out / "training.pt"
    trainer = Trainer(network, batches, Budget(steps, minutes), report=click.echo, save_to=saved)
    if resume:
        trainer.resume(saved)
    trainer.run()
    export(trainer.average.tensors, raw, out)
    ids = encoder(generate(seed, 0)).ids.tolist()
    difference = largest_difference(out, ids)
    click.echo(f"largest difference to glm_portable's reference: {difference:.1e}")
    if difference > TOLERANCE:
        raise click.ClickException(f"{out} does not compute what was trained.")


def _tokenizer(out: Path, template: str, chats: int, resume: bool) -> tokenizers.Tokenizer:
    """The folder's own when training goes on, or else a new one."""
    path = out / "tokenizer.json"
    if resume:
        return tokenizers.Tokenizer.from_file(str(path))
    tokenizer = build_tokenizer(template, chats)
    save_tokenizer(tokenizer, out, int(str(POCKET["max_position_embeddings"])))
    return tokenizer


if __name__ == "__main__":
    main()
