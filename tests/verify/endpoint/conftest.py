"""The pocket model behind the real server, sound and with faults, and what it is compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from glm_portable.engine.engine import Engine
from glm_portable.glm import GLM
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from glm_portable.verify.endpoint.client import Client
from glm_portable.verify.endpoint.exam import Exam, Settings, judge
from glm_portable.verify.endpoint.making import make_pocket
from glm_portable.verify.endpoint.reference import Reference
from glm_portable.verify.endpoint.run import ITEMS, find_model
from glm_portable.verify.results import Check
from tests.serve.fake_engine import Threaded, serving

WINDOW = 1024
QUICK = Settings(samples=4, concurrency=6, repeats=2, longest=400, every=3)


def load(**options: Any) -> GLM:
    # float32: in bfloat16 the rounding of a sum depends on how many requests share the step.
    return GLM.load(backend="cpu", dtype="float32", **options)


@contextmanager
def served(glm: GLM, **parts: Any) -> Iterator[str]:
    """The URL of a server of the model. parts: what differs from its own, such as its template."""
    limits = glm.limits(max_model_len=WINDOW, max_num_seqs=16)
    settings = ServerSettings(port=0, served_model_names=("glm-pocket",))
    with Engine(glm.model, glm.tokenizer, limits) as engine:
        threaded = Threaded(engine)
        service = Service(threaded, glm.chat, glm.tokenizer, glm.call_format, WINDOW, settings)
        for name, part in parts.items():
            setattr(service, name, part)
        with serving(service) as (url, _, _):
            yield url


@dataclass
class Examined:
    """The checks of one run, by "subject: name"."""

    checks: dict[str, Check] = field(default_factory=dict)

    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if check.status == "fail"]

    def findings(self, name: str) -> str:
        return "\n".join(self.checks[name].findings)


Look = Callable[..., Examined]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """A smaller one than the command makes."""
    return make_pocket(every=3)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The pocket model is too small to share; threads that wait for each other cost more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sound() -> Iterator[str]:
    with served(load()) as url:
        yield url


@pytest.fixture
def look(reference: Reference) -> Look:
    """Examine the server at a URL: the groups, or the single checks, that are named."""

    def examined(url: str, *only: str) -> Examined:
        with Client(url, timeout=60) as client:
            exam = Exam(client, *find_model(client, None), reference, QUICK)
            items = [item for item in ITEMS if item.group in only or item.name in only]
            checks = (judge(item, exam) for item in items)
            return Examined({f"{check.subject}: {check.name}": check for check in checks})

    return examined
