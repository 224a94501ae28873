"""`glm-portable evaluate`: ask, print the table, write the JSON."""

import json
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import track

from glm_portable.errors import UsageError
from glm_portable.evaluate.ask import Ask
from glm_portable.evaluate.report import Report, Result
from glm_portable.evaluate.run import MAX_TOKENS, evaluate


def run_evaluate(
    ask: Ask,
    *,
    samples: int,
    skills: str | None = None,
    seed: int = 9000,
    concurrency: int = 16,
    max_tokens: int = MAX_TOKENS,
    show: int = 0,
    json_path: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Evaluate and print. skills: separated by commas; show: how many wrong answers to print.

    Raises UsageError on bad options and on a server that does not answer.
    """
    if json_path is not None and not json_path.parent.is_dir():
        raise UsageError(f"{json_path} cannot be written: {json_path.parent} is not a folder.")
    console = console or Console()

    def shown(results: Iterable[Result], total: int) -> Iterable[Result]:
        return track(results, "asking", total, console=Console(stderr=True), transient=True)

    report = evaluate(
        ask,
        samples_per_skill=samples,
        skills=skills.split(",") if skills else None,
        seed=seed,
        concurrency=concurrency,
        max_tokens=max_tokens,
        track=shown,
    )
    console.print(report.table())
    for result in report.wrong()[:show]:
        _print_wrong(console, result)
    if json_path is not None:
        text = json.dumps(report.to_json(), ensure_ascii=False, indent=1)
        json_path.write_text(text + "\n", encoding="utf-8")
    return report


def _print_wrong(console: Console, result: Result) -> None:
    case, answer = result.case, result.answer
    mode = "thinking" if case.thinking else "thinking off"
    lines = [
        f"[{case.skill}, {mode}] {case.messages[-1]['content'][-300:]}",
        f"  wanted: {case.expected.get('tool_calls') or case.expected['content']}",
        f"  said:   {answer.content!r} {answer.tool_calls or ''} ({answer.finish_reason})",
        f"  thought: {answer.reasoning!r}",
    ]
    console.print("\n".join(lines), markup=False, highlight=False)
