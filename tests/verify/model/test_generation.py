"""Long prompts and answers of a backend's own, against the reference beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_portable import ops, pocket
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step, Weight
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.generated import small_checkpoint
from glm_portable.verify.model.checks import Options, checks
from glm_portable.verify.model.needles import ANSWER, prompt
from glm_portable.verify.results import Check, Status
from glm_portable.verify.subject import Subject
from tests.verify.model.faulty import REFERENCE, Faulty

POCKET = Subject("glm-pocket", pocket.FOLDER)


def run(machine: Any, subject: Subject, parts: str, length: int = 0) -> list[Check]:
    options = Options(parts=(parts,), lengths=(length,) if length else ())
    return list(checks(machine, subject, options))[:-1]


def test_an_answer_of_the_backends_own() -> None:
    (found,) = run(ops.load("cpu"), POCKET, "greedy")
    assert found.status is Status.PASS and len(found.series["margin"]) == 16
    assert found.measures["diverged_margin"] == max(found.series["margin"])


def test_an_answer_that_no_margin_explains() -> None:
    def linear(call: int, x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
        y = REFERENCE.linear(x, w, bias)
        return -y if w.data.shape[0] == 1280 and bias is None else y

    (found,) = run(Faulty("linear", linear), POCKET, "greedy")
    assert found.status is Status.FAIL and found.measures["diverged"] == 16
    assert found.findings[0].startswith("greedy: token 24 of the answer is ")
    assert found.note.endswith("first at token 24")


def test_a_prompt_whose_answer_is_at_its_begin() -> None:
    ids, answer = prompt(POCKET, 300)
    assert 200 < len(ids) <= 300
    tokenizer = Tokenizer.load(POCKET.folder, POCKET.config)
    assert tokenizer.decode(ids[-answer:]) == ANSWER
    assert tokenizer.decode(ids).index("locker code is 4821") < 100
    with pytest.raises(UsageError, match="a prompt of 9000 tokens cannot be judged: take 128 to"):
        prompt(POCKET, 9000)


def forgetful(call: int, q: Tensor, cache: KVCache, step: Step, scale: float) -> Tensor:
    """Attention that has lost the first page of what is longer than a step."""
    y = REFERENCE.attend(q, cache, step, scale)
    if step.kv_lengths[0] > 300:
        k, v = cache.k_PSGC.clone(), cache.v_PSGC.clone()
        page = int(step.block_table_BP[0, 0])
        k[page] = v[page] = 0
        lost = REFERENCE.attend(q, KVCache(k, v), step, scale)
        return torch.where((step.positions_T > 300).view(-1, 1, 1), lost, y)
    return y


def test_what_only_the_end_of_a_long_prompt_shows(tmp_path: Path) -> None:
    subject = Subject("air-like", small_checkpoint("air-like", tmp_path))
    (clean,) = run(REFERENCE, subject, "needles", 400)
    assert clean.status is Status.PASS and len(clean.series["error"]) == 8
    (found,) = run(Faulty("attend", forgetful), subject, "needles", 400)
    assert found.status is Status.FAIL
    stretches = [f for f in found.findings if " from token " in f]
    assert stretches and all(int(f.split(" from token ")[1].split()[0]) >= 300 for f in stretches)
