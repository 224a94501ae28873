"""What a person sees in the terminal: the loading bar, streamed answers, the chat."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from glm_portable.engine.engine import EngineFailure
from glm_portable.errors import UsageError
from glm_portable.glm import GLM
from glm_portable.serve.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from glm_portable.virtual import banner

Message = dict[str, Any]


def load_with_progress(
    model: str | None,
    *,
    virtual: str | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> GLM:
    """GLM.load with a progress bar on stderr and, at the end, one line with the speed.

    virtual: a chip to simulate; what that means is said before anything else. say: takes the lines
    in place of stderr, for a log.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say = say or console.print
    size = 0
    begin = time.monotonic()
    with progress_bar("loading", console) as advance:

        def on_bytes(count: int, total: int) -> None:
            nonlocal size
            size += count
            advance(count, total)

        glm = GLM.load(model, virtual=virtual, on_bytes=on_bytes, on_note=say, **options)
    seconds = time.monotonic() - begin
    if virtual is not None:
        console.print(banner(virtual), style="bold yellow", markup=False)
    say(
        f"Loaded {glm.name}: {size / 1e6:,.1f} MB in {seconds:.1f} s "
        f"({size / 1e6 / seconds:,.0f} MB/s), {_dtype(glm)} on {glm.model.ops.name}"
    )
    return glm


@contextmanager
def progress_bar(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes, where there is a terminal; yields what to call with (more bytes, of all)."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(what, total=None)
        yield lambda count, total: progress.update(task, advance=count, total=total)


def _dtype(glm: GLM) -> str:
    return str(glm.model.dtype).removeprefix("torch.")


class Printer:
    """Prints an answer as it comes: thinking dim on stderr, the answer plain on stdout."""

    def __init__(self, out: Console | None = None, aside: Console | None = None) -> None:
        self.out = out or Console(highlight=False, soft_wrap=True)
        self.aside = aside or Console(stderr=True, highlight=False, soft_wrap=True)

    def show(self, events: Iterable[Event]) -> list[Event]:
        """Print all events and return them."""
        seen: list[Event] = []
        for event in events:
            if seen and type(event) is not type(seen[-1]) and not _goes_on(event):
                (self.aside if isinstance(seen[-1], Reasoning) else self.out).print()
            self._print(event)
            seen.append(event)
        if seen:
            (self.aside if isinstance(seen[-1], Reasoning) else self.out).print()
        return seen

    def _print(self, event: Event) -> None:
        if isinstance(event, Reasoning):
            self.aside.print(event.text, style="dim italic", end="", markup=False)
        elif isinstance(event, Content):
            self.out.print(event.text, end="", markup=False)
        elif isinstance(event, ToolCallStart):
            self.out.print(f"calls {event.name} ", style="cyan", end="", markup=False)
        else:
            self.out.print(event.text, style="cyan", end="", markup=False)


def _goes_on(event: Event) -> bool:
    """Whether an event stands on the line of the one before it."""
    return isinstance(event, ToolCallArguments)


class Chat:
    """A conversation in the terminal. Ctrl-C stops an answer, Ctrl-D or /exit ends it all."""

    def __init__(
        self, glm: GLM, *, thinking: bool, system: str | None, sampling: dict[str, Any]
    ) -> None:
        self.glm, self.thinking, self.sampling = glm, thinking, sampling
        self.messages: list[Message] = []
        self._start = [{"role": "system", "content": system}] if system else []
        self.console = Console(stderr=True, highlight=False)
        self.printer = Printer()

    def run(self) -> None:
        """Until the end of the input."""
        self.console.print("/thinking switches thinking, /clear forgets, /exit ends.", style="dim")
        self._clear()
        for line in self._lines():
            if line == "/exit":
                return
            if line == "/clear":
                self._clear()
            elif line == "/thinking":
                self.thinking = not self.thinking
                self.console.print(f"thinking {'on' if self.thinking else 'off'}", style="dim")
            elif line.strip():
                self.answer(line)

    def answer(self, text: str) -> None:
        """Answer one message and remember both; a message that cannot be answered is forgotten."""
        self.messages.append({"role": "user", "content": text})
        events = self.glm.stream(
            self.messages,
            chat_template_kwargs={"enable_thinking": self.thinking},
            **self.sampling,
        )
        seen: list[Event] = []
        try:
            self.printer.show(_recorded(events, seen))
        except KeyboardInterrupt:
            self.console.print("\n(stopped)", style="dim")
        except (UsageError, EngineFailure) as error:
            self.console.print(f"Error: {error}", style="red", markup=False)
            self.messages.pop()
            return
        said = "".join(event.text for event in seen if isinstance(event, Content))
        self.messages.append({"role": "assistant", "content": said})

    def _clear(self) -> None:
        self.messages = list(self._start)

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                yield self.console.input("[bold]> [/bold]")
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return


def _recorded(events: Iterable[Event], seen: list[Event]) -> Iterator[Event]:
    for event in events:
        seen.append(event)
        yield event
