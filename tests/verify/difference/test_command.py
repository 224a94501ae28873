"""`verify diff` on the command line."""

import pytest

from tests.verify.endpoint.test_client import Answer, answer, answering, chat_with, verify


def parrot(text: str) -> Answer:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return answer({"choices": [choice], "usage": {}})


@pytest.mark.parametrize("text, code", [("Hello", 0), ("Good morning", 1)])
def test_two_parrots(text: str, code: int) -> None:
    with answering(chat_with(parrot("Hello"))) as one, answering(chat_with(parrot(text))) as two:
        result = verify("diff", one, two, "--max-samples", "12", "--what", "numbers")
    assert result.exit_code == code, result.output
    assert ("decided after 6 samples" in " ".join(result.output.split())) == bool(code)


def test_what_there_is_not() -> None:
    with answering(chat_with(parrot("Hello"))) as url:
        result = verify("diff", url, url, "--what", "speed")
    assert result.exit_code == 3 and "'speed' is not of tasks, numbers" in result.stderr
