"""The served pocket model, and the table of docs/clients.md: see `make test-clients`."""

import os
import re
from collections import defaultdict
from collections.abc import Generator, Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from tests.clients.server import ROOT, Server, serve

# What the clients would fetch from other hosts when they are imported.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
os.environ |= {"LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}

WINDOW = 2048
TABLE = re.compile(r"(<!-- table -->\n).*(<!-- end of table -->)", re.DOTALL)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clients", "tests/clients")
    group.addoption(
        "--server-python",
        default=str(ROOT / ".venv/bin/python"),
        help="the interpreter that serves; the tests run with the clients' own",
    )
    group.addoption(
        "--load-seconds", type=int, default=5, help="how long the load generator keeps 32 clients"
    )
    group.addoption("--schemathesis-seed", type=int, default=1)
    group.addoption(
        "--table", type=Path, help="a Markdown file whose table of results is written anew"
    )


@pytest.fixture(scope="session")
def server_python(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--server-python"))


@pytest.fixture(scope="session")
def server(server_python: str) -> Iterator[Server]:
    """One server for all tests. float32: the same answers, however many requests share a step."""
    options = ["--dtype", "float32", "--max-model-len", str(WINDOW), "--max-num-seqs", "32"]
    with serve(server_python, *options) as running:
        yield running


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


class Results:
    """What ran, for each client: a module says in CLIENT which packages it is about."""

    def __init__(self) -> None:
        self.clients: dict[str, str] = {}
        self.outcomes: dict[str, dict[str, str]] = defaultdict(dict)

    def add(self, module: str, test: str, outcome: str) -> None:
        self.outcomes[module][test] = outcome

    def table(self) -> str:
        rows = ["| client | version | what ran | result |", "|---|---|---|---|"]
        return "\n".join(rows + [self._row(module) for module in self.outcomes]) + "\n"

    def _row(self, module: str) -> str:
        packages = self.clients[module].split()
        tests = self.outcomes[module]
        counts = {kind: [*tests.values()].count(kind) for kind in ("passed", "failed", "skipped")}
        what = dict.fromkeys(test.partition("[")[0].replace("_", " ") for test in tests)
        result = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        versions = ", ".join(map(metadata.version, packages))
        return f"| {', '.join(packages)} | {versions} | {'; '.join(what)} | {result} |"


RESULTS = pytest.StashKey[Results]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = Results()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    module = getattr(item, "module", None)
    if module is not None and (report.when == "call" or report.outcome != "passed"):
        results = item.config.stash[RESULTS]
        results.clients[module.__name__] = module.CLIENT
        results.add(module.__name__, item.name.removeprefix("test_"), report.outcome)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    table = config.stash[RESULTS].table()
    terminalreporter.section("clients")
    terminalreporter.write_line(table)
    path = config.getoption("--table")
    if path is not None:
        text = path.read_text(encoding="utf-8")
        path.write_text(TABLE.sub(lambda m: m[1] + table + m[2], text), encoding="utf-8")
