"""Files of reports are replaced whole, and pipes and links are what they were afterwards."""

import os
from pathlib import Path

import pytest

from glm_portable.verify.report import files, read, write
from tests.verify.report.samples import clean


def test_who_reads_meanwhile_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with path.open() as old:
        write(clean(), json=path)
        assert old.read() == "old"
    assert read(path) == clean()


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError("No space left on device")

    (tmp_path / "r.json").write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        files.write(clean(), json=tmp_path / "r.json")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.json", "old")]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "r.json")
    write(clean(), json=tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "r.json") == clean()


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(clean(), badge=path)
        assert os.read(reader, 10_000).startswith(b"**glm-portable verify: PASS**")
    finally:
        os.close(reader)
    assert path.is_fifo()
