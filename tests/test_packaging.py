"""What travels in the wheel, and that an installed wheel needs nothing beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(target), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(target.glob("speculators-*.whl"))


def test_recipes_and_schemas_travel_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for file in [*ROOT.glob("recipes/**/*.*"), *ROOT.glob("schemas/**/*.json")]:
        assert f"speculators/shipped_files/{file.relative_to(ROOT).as_posix()}" in names
    assert "speculators/reporting/html/report.html.j2" in names


def test_an_unpacked_wheel_validates_its_own_quickstart_from_any_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import speculators.cli as c, sys; sys.argv = ['speculators', 'validate', 'quickstart']; c.main()"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_told_without_heavy_imports():
    code = (
        "import sys, speculators, speculators.cli; print(speculators.__version__);"
        "heavy = {'torch', 'transformers', 'datasets', 'guidellm', 'matplotlib'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
