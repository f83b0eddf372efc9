"""Recipes written for one test, and what loading them says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from speculators.errors import SpeculatorsError
from speculators.recipe.load import Loaded, load_recipe

GOOD = {
    "recipe": "recipe: 1\n",
    "name": "name: bad\n",
    "verifier": "verifier: {random: {}}\n",
    "algorithm": "algorithm: {type: eagle3, aux_layers: [1, 2, 3], draft_vocab_size: 300}\n",
    "data": "data:\n  sources: [{synthesize: magpie, samples: 4}]\n",
}
"""The sections of a recipe in which nothing is wrong."""

Write = Callable[[str], Path]
Complaint = Callable[..., str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write `bad.yaml`: the sections given, before them the good ones that are not."""

    def write(text: str, name: str = "bad.yaml") -> Path:
        given = set(re.findall(r"^(\w+)\s*:", text, flags=re.MULTILINE))
        (tmp_path / name).write_text("".join(good for key, good in GOOD.items() if key not in given) + text)
        return tmp_path / name

    return write


@pytest.fixture
def load(write: Write) -> Callable[..., Loaded]:
    """Load a recipe made of the given sections and good ones."""

    def load(text: str = "", **options: object) -> Loaded:
        return load_recipe(write(text), **options)  # type: ignore[arg-type]

    return load


@pytest.fixture
def complaint(tmp_path: Path, write: Write) -> Complaint:
    """What loading says of a recipe made of the given sections and good ones; the folder is printed as FOLDER."""

    def complaint(
        text: str | bytes = "", *, files: Mapping[str, str] | None = None, whole: bool = False, **options: Sequence[str]
    ) -> str:
        for name, content in (files or {}).items():
            (tmp_path / name).write_text(content)
        if isinstance(text, bytes) or whole:
            (tmp_path / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        else:
            write(text)
        with pytest.raises(SpeculatorsError) as caught:
            load_recipe("bad.yaml", **options)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2
        return str(caught.value).replace(str(tmp_path), "FOLDER") + "\n"

    return complaint
