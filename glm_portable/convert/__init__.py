"""Writing a checkpoint in another format, once: `glm-portable convert`."""

from glm_portable.convert.run import SHARD_BYTES, Conversion

__all__ = ["SHARD_BYTES", "Conversion"]
