"""What was added is found again, whatever a kill did to the last line."""

from __future__ import annotations

from pathlib import Path

from speculators.data.journal import Journal


def test_a_line_that_was_cut_off_is_forgotten_and_spoils_nothing(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    assert list(Journal(file).records()) == []
    with Journal(file) as journal:
        journal.add({"id": "a", "text": "ä\n"})
        journal.add({"id": "b"})
    file.write_bytes(file.read_bytes()[:-3])
    assert [one["id"] for one in Journal(file).records()] == ["a"]
    with Journal(file) as journal:
        journal.add({"id": "c"})
    assert [one["id"] for one in Journal(file).records()] == ["a", "c"]
