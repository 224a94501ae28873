"""References: files, published models, and what a served name says."""

from pathlib import Path

import pytest

from glm_portable import pocket
from glm_portable.errors import UsageError
from glm_portable.verify.endpoint import making
from glm_portable.verify.endpoint.conversations import COUNTED
from glm_portable.verify.endpoint.reference import Reference, published
from glm_portable.verify.endpoint.run import find_reference


def test_a_file_is_read_as_it_was_written(reference: Reference, tmp_path: Path) -> None:
    reference.write(tmp_path / "pocket.json")
    assert (tmp_path / "pocket.json").stat().st_size < 200_000
    assert find_reference(str(tmp_path / "pocket.json"), "x", answers=True) == reference


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "recorded": 3}']
)
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UsageError, match="no file that glm-portable verify endpoint-reference"):
        Reference.read(tmp_path / "other.json")


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"version": 0}')
    with pytest.raises(UsageError, match="version 0, not 1"):
        Reference.read(tmp_path / "old.json")


def test_what_is_recorded(reference: Reference) -> None:
    assert reference.family == "glm45" and set(reference.prompt_tokens) == {c.name for c in COUNTED}
    assert reference.plain["kl_50%"] < reference.plain["kl_90%"] < 0.01
    for record in reference.recorded:
        assert len(record.pieces) == len(record.answer_ids)
        assert all(8 <= position.index < len(record.ids) for position in record.positions)
        for position in record.positions:
            index = position.index - len(record.prompt_ids)
            if index >= 0:  # greedy: the likeliest token is the one that was taken
                assert position.top[0][:2] == (record.answer_ids[index], record.pieces[index])


@pytest.mark.parametrize(
    "name, family",
    [
        ("zai-org/GLM-4.5-Air-FP8", "glm45"),
        ("glm-4p6", "glm45"),
        ("GLM4.7", "glm47"),
        ("GLM-4.7-Flash", None),
        ("glm-5", None),
        ("qwen", None),
    ],
)
def test_published_models(name: str, family: str | None) -> None:
    found = published(name)
    assert (found.family if found else None) == family


def test_published_counts_differ_as_the_templates_do() -> None:
    """4.5: a newline after each role, /nothink and empty thoughts when thinking is off."""
    older, newer = published("glm-4.5"), published("glm-4.7")
    assert older and newer
    off = {
        r.family: r.prompt_tokens["thinking off"] - r.prompt_tokens["question"]
        for r in (older, newer)
    }
    assert off == {"glm45": 4, "glm47": 0}
    assert older.prompt_tokens["system"] - newer.prompt_tokens["system"] == 1
    assert not older.recorded and set(older.prompt_tokens) <= {c.name for c in COUNTED}


def test_the_reference_of_a_served_name() -> None:
    found = find_reference(None, "glm-pocket", answers=False)
    assert found is not None and not found.recorded
    assert find_reference(str(pocket.FOLDER), "x", answers=True) == making.counts_of(
        str(pocket.FOLDER)
    )
    assert find_reference(None, "some-model", answers=True) is None
    with pytest.raises(UsageError, match="no file, no folder and no published model"):
        find_reference("nothing", "x", answers=True)
