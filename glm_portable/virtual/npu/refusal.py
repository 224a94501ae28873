"""How a simulated operator refuses a call that its document does not allow."""


class Refusal(RuntimeError):
    """One sentence: the operator, its argument, the value it had, and the rule."""


def require(holds: bool, op: str, argument: str, value: object, rule: str) -> None:
    """Raise Refusal unless `holds`."""
    if not holds:
        raise Refusal(f"{op}: {argument} is {value}, but {rule}.")
