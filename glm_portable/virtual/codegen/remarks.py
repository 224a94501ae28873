"""Why a row stands above a peer's: (chip, configuration) to one sentence."""

REMARKS = {
    ("gfx942", "decode, bf16 pages of 64"): (
        "13 of the 251 VALU instructions more than AITER's loop."
    ),
}
