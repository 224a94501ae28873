"""Why a row stands above a peer's: (chip, configuration) to one sentence."""

from collections.abc import Mapping

REMARKS: Mapping[tuple[str, str], str] = {}
"""No row does. The gate has a finding for one that does and is not named here."""
