"""The tiny model of each family, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, Family


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests with a `family` run for each of `FAMILIES`, but those that the module's `READ_ONLY` leaves out.

    A module's `ONLY` names those that its tests are about.
    """
    if "family" in metafunc.fixturenames:
        left_out = getattr(metafunc.module, "READ_ONLY", ())
        only = getattr(metafunc.module, "ONLY", FAMILIES)
        each = [
            pytest.param(name, marks=pytest.mark.xdist_group(f"family-{name}"))  # one worker makes its checkpoint
            for name in FAMILIES
            if name in only and name not in left_out
        ]
        metafunc.parametrize("family", each, indirect=True, scope="session")


@pytest.fixture(scope="session")
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def checkpoint(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's tiny verifier, as a checkpoint directory."""
    directory = tmp_path_factory.mktemp("verifier")
    family.write(directory)
    return directory


@pytest.fixture(scope="session")
def reference(family: Family, checkpoint: Path) -> Any:
    """The same, as transformers runs it."""
    import transformers

    model: Any = getattr(transformers, family.model).from_pretrained(
        checkpoint, attn_implementation="eager", dtype=torch.float32
    )
    return model.eval()
