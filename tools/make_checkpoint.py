"""The random checkpoint that the README's speeds were measured on: 1.26 B parameters, 2.9 GB.

    python -m tools.make_checkpoint OUT && glm-portable bench OUT

GLM-4.5-Air's structure, smaller: 12 layers, 64 experts of which 8 a token, head size 128.
"""

import sys
from pathlib import Path

from tests.random_checkpoint import random_tensors, small_config, write_files

MINI = small_config(
    torch_dtype="bfloat16",
    vocab_size=32768,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=12,
    num_attention_heads=16,
    head_dim=128,
    n_routed_experts=64,
    num_experts_per_tok=8,
    moe_intermediate_size=512,
    max_position_embeddings=8192,
)
SHARDS = 3


def main(folder: Path) -> None:
    """Write the checkpoint, without a tokenizer, which the benchmark does not need."""
    if folder.exists():
        sys.exit(f"{folder} exists: name a folder to be made.")
    write_files(folder, MINI, random_tensors(MINI), SHARDS)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.make_checkpoint OUT")
    main(Path(sys.argv[1]))
