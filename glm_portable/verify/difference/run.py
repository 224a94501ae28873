"""Two servers of the OpenAI API, compared."""

import time
from collections.abc import Sequence
from contextlib import ExitStack

from rich.console import Console

from glm_portable.errors import UsageError
from glm_portable.verify import report
from glm_portable.verify.difference.compare import KINDS, checks, compare
from glm_portable.verify.endpoint.client import Broken, Client, Refused
from glm_portable.verify.endpoint.exam import Exam, Settings
from glm_portable.verify.endpoint.run import find_model
from glm_portable.verify.results import Report


def difference(
    urls: tuple[str, str],
    *,
    model: str | None,
    api_key: str | None,
    alpha: float,
    samples: int,
    kinds: Sequence[str],
    seed: int,
    timeout: float,
    console: Console,
) -> Report:
    """Compare until decided, with a line of progress on a terminal.

    Raises UsageError if one is no such server, or stops answering.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise UsageError(f"--what {','.join(kinds)!r} is not of {', '.join(KINDS)}.")
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Client(url, api_key=api_key, timeout=timeout)) for url in urls
        ]
        names = [find_model(client, model)[0] for client in clients]
        a, b = (
            Exam(client, name, None, None, Settings())
            for client, name in zip(clients, names, strict=True)
        )
        begin = time.monotonic()
        status = stack.enter_context(console.status("comparing"))
        try:
            for now in compare(a, b, alpha=alpha, samples=samples, seed=seed, kinds=tuple(kinds)):
                status.update(f"comparing: {now.samples} samples")
        except (Broken, Refused) as error:
            raise UsageError(
                f"a server stopped answering during the comparison: {error}."
            ) from None
    about = {"first": f"{names[0]} at {urls[0]}", "second": f"{names[1]} at {urls[1]}"}
    about |= {"alpha": f"{alpha:g}", "samples": f"{now.samples} of at most {samples}"}
    if "tasks" in kinds:
        about["right answers"] = f"first {now.rights[0]}, second {now.rights[1]}"
    seconds = (time.monotonic() - begin) / len(kinds)
    return Report("diff", about | report.about(), checks(now, seconds))
