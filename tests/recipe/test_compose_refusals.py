"""Files and settings that cannot be made into one recipe, and the exact words."""

# Messages stand here as they are printed.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

REFUSED = [
    pytest.param(
        "extends: bases/egle.yaml\n",
        {},
        """\
bad.yaml:7:10: error: `extends` names bases/egle.yaml, which is neither a file beside this one nor shipped
     7 | extends: bases/egle.yaml
       |          ^ nearest: bases/eagle.yaml, bases/peagle.yaml, bases/eagle3.yaml
""",
        id="a base that does not exist",
    ),
    pytest.param(
        "extends: hf://org/repo/recipe.yaml@main\n",
        {},
        """\
bad.yaml:7:10: error: `extends` names a remote recipe, hf://org/repo/recipe.yaml@main
     7 | extends: hf://org/repo/recipe.yaml@main
       |          ^ only files and shipped recipes can be extended; copy the recipe beside this one and name its path
""",
        id="a remote base",
    ),
    pytest.param(
        "extends: 7\n",
        {},
        """\
bad.yaml:7:10: error: `extends` is a number, expected a path, or a list of them
     7 | extends: 7
       |          ^
""",
        id="a number as a base",
    ),
    pytest.param(
        "extends: bad.yaml\n",
        {},
        """\
bad.yaml:7:10: error: `extends` goes in a circle: bad.yaml -> bad.yaml
     7 | extends: bad.yaml
       |          ^
""",
        id="a recipe that extends itself",
    ),
    pytest.param(
        "extends: a.yaml\n",
        {"files": {"a.yaml": "extends: b.yaml\n", "b.yaml": "extends: [bad.yaml]\n"}},
        """\
b.yaml:1:11: error: `extends` goes in a circle: bad.yaml -> a.yaml -> b.yaml -> bad.yaml
     1 | extends: [bad.yaml]
       |           ^
""",
        id="a circle of three",
    ),
    pytest.param(
        "extends: base.yaml\n",
        {"files": {"base.yaml": "recipe: 1\ntrain: {epoch: 2}\n"}},
        """\
base.yaml:2:9: error: unknown key `epoch` in `train`
     2 | train: {epoch: 2}
       |         ^ did you mean `epochs`?
""",
        id="an error in a base",
    ),
    pytest.param(
        "",
        {"sets": ["train.epocs=1"]},
        """\
--set train.epocs=1:1:7: error: unknown key `epocs` in `train`
     1 | train.epocs=1
       |       ^ did you mean `epochs`?
""",
        id="a setting with a typing error",
    ),
    pytest.param(
        "",
        {"sets": ["train={epochs: 1"]},
        """\
--set train={epochs: 1:1:7: error: a mapping is not closed, or lacks a comma
     1 | train={epochs: 1
       |       ^ write {a: 1, b: 2}
""",
        id="a setting that is no YAML",
    ),
    pytest.param(
        "",
        {"sets": ["train.epochs"]},
        "--set train.epochs: expected PATH=VALUE, such as --set train.epochs=2\n",
        id="a setting without a value",
    ),
    pytest.param(
        "",
        {"sets": ["data.sources[3].samples=2"]},
        """\
--set data.sources[3].samples=2:1:13: error: there is no `data.sources[3]`: `data.sources` has 1 entry
     1 | data.sources[3].samples=2
       |             ^
""",
        id="a setting beyond the end of a list",
    ),
    pytest.param(
        "",
        {"sets": ["train.optimizer.betas[0]=0.5"]},
        """\
--set train.optimizer.betas[0]=0.5:1:17: error: there is no list `train.optimizer.betas`
     1 | train.optimizer.betas[0]=0.5
       |                 ^
""",
        id="a setting in a list that is not there",
    ),
    pytest.param(
        "",
        {"sets": ["extends=tiny"]},
        """\
--set extends=tiny:1:1: error: `extends` cannot be set
     1 | extends=tiny
       | ^ use --overlay to merge another file on top
""",
        id="a setting of a base",
    ),
    pytest.param(
        "",
        {"sets": ['train.epochs="2"']},
        """\
--set train.epochs="2":1:7: error: `train.epochs` is "2", expected integer
     1 | train.epochs="2"
       |       ^ write it without quotes
""",
        id="a setting in quotes",
    ),
    pytest.param(
        "",
        {"overlays": ["over.yaml"], "files": {"over.yaml": "extends: tiny\n"}},
        """\
over.yaml:1:1: error: an overlay cannot extend anything
     1 | extends: tiny
       | ^
""",
        id="an overlay with a base",
    ),
    pytest.param(
        "",
        {"overlays": ["over.yaml"], "files": {"over.yaml": "train: {epochs: 0}\n"}},
        """\
over.yaml:1:9: error: `train.epochs` is 0, must be at least 1
     1 | train: {epochs: 0}
       |         ^
""",
        id="an error in an overlay",
    ),
    pytest.param(
        "",
        {"overlays": ["gone.yaml"]},
        "gone.yaml cannot be read: No such file or directory\n",
        id="an overlay that is not there",
    ),
    pytest.param(
        "verifier: {model: a/b, revision: abc, trust_remote_code: true}\n",
        {"trust_remote_code": False},
        """\
bad.yaml:6:39: error: `verifier.trust_remote_code` is true, but the command line does not agree
     6 | verifier: {model: a/b, revision: abc, trust_remote_code: true}
       |                                       ^ add --trust-remote-code to run the model's own code
""",
        id="untrusted code",
    ),
]


@pytest.mark.parametrize(("text", "options", "said"), REFUSED)
def test_says_what_cannot_be_composed(
    complaint: Callable[..., str], text: str, options: dict[str, Any], said: str
) -> None:
    assert complaint(text, **options) == said
