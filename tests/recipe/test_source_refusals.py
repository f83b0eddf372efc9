"""YAML that a recipe may not contain, and the exact words in which it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

WHOLE = [
    pytest.param(
        "# nothing\n",
        """\
bad.yaml:1:1: error: the file is empty
     1 | # nothing
       | ^ a recipe is a mapping: `recipe: 1` and so on
""",
        id="an empty file",
    ),
    pytest.param(
        """\
- a
- b
""",
        """\
bad.yaml:1:1: error: the root is a list, expected a mapping
     1 | - a
       | ^ a recipe is a mapping: `recipe: 1` and so on
""",
        id="a list at the root",
    ),
    pytest.param(
        "hello\n",
        """\
bad.yaml:1:1: error: the root is text, expected a mapping
     1 | hello
       | ^ a recipe is a mapping: `recipe: 1` and so on
""",
        id="text at the root",
    ),
    pytest.param(
        """\
recipe: 1
---
recipe: 1
""",
        """\
bad.yaml:2:1: error: a second document begins here
     2 | ---
       | ^ a recipe is one document; remove `---`
""",
        id="two documents",
    ),
    pytest.param(
        """\
a: &a [x, x, x, x, x, x, x, x, x]
b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]
c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]
d: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]
e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]
f: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]
g: &g [*f, *f, *f, *f, *f, *f, *f, *f, *f]
h: &h [*g, *g, *g, *g, *g, *g, *g, *g, *g]
i: &i [*h, *h, *h, *h, *h, *h, *h, *h, *h]
""",
        """\
bad.yaml:5:12: error: more than 20,000 values, aliases included
     5 | e: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]
       |            ^ no recipe is that large; is an alias repeated?
""",
        id="aliases that multiply",
    ),
    pytest.param(
        """\
recipe: 1
  name: bad
""",
        """\
bad.yaml:2:7: error: a `:` is not expected here
     2 |   name: bad
       |       ^ is the line indented as it should be? text that contains `: ` stands in quotes
""",
        id="a key one level too deep",
    ),
    pytest.param(
        b"recipe: 1\nname: caf\xe9\n",
        """\
bad.yaml:2:10: error: the byte 0xe9 is not UTF-8
         save the file as UTF-8
""",
        id="bytes that are not UTF-8",
    ),
]
"""Files as they are."""

REFUSED = [
    pytest.param(
        """\
train:
  epochs: 1
  epochs: 2
""",
        """\
bad.yaml:9:3: error: `epochs` is given twice (first on line 8)
     9 |   epochs: 2
       |   ^ remove one of the two
""",
        id="a key given twice",
    ),
    pytest.param(
        "train: {epochs: 1, precision: float32, epochs: 1}\n",
        """\
bad.yaml:7:40: error: `epochs` is given twice (first on line 7)
     7 | train: {epochs: 1, precision: float32, epochs: 1}
       |                                        ^ remove one of the two
""",
        id="a key given twice in one line",
    ),
    pytest.param(
        "train:\n\tepochs: 1\n",
        """\
bad.yaml:8:1: error: a tab is used as a space
     8 |  epochs: 1
       | ^ YAML is indented with spaces
""",
        id="a tab for indentation",
    ),
    pytest.param(
        "train: {epochs:\t1}\n",
        """\
bad.yaml:7:16: error: a tab is used as a space
     7 | train: {epochs: 1}
       |                ^ YAML is indented with spaces
""",
        id="a tab for a space",
    ),
    pytest.param(
        "seed: !!int '3'\n",
        """\
bad.yaml:7:7: error: the tag !!int is not read
     7 | seed: !!int '3'
       |       ^ a recipe is plain data; remove the tag
""",
        id="a tag on a scalar",
    ),
    pytest.param(
        "train: !!python/object/apply:os.system [echo]\n",
        """\
bad.yaml:7:8: error: the tag !!python/object/apply:os.system is not read
     7 | train: !!python/object/apply:os.system [echo]
       |        ^ a recipe is plain data; remove the tag
""",
        id="a tag on a list",
    ),
    pytest.param(
        "train: !train {epochs: 1}\n",
        """\
bad.yaml:7:8: error: the tag !train is not read
     7 | train: !train {epochs: 1}
       |        ^ a recipe is plain data; remove the tag
""",
        id="a tag on a mapping",
    ),
    pytest.param(
        """\
train:
  <<: {epochs: 2}
""",
        """\
bad.yaml:8:3: error: merge keys (<<) are not read
     8 |   <<: {epochs: 2}
       |   ^ use `extends` to build on another file
""",
        id="a merge key",
    ),
    pytest.param(
        "3: x\n",
        """\
bad.yaml:7:1: error: the key 3 is a number, expected text
     7 | 3: x
       | ^ put it in quotes
""",
        id="a number as a key",
    ),
    pytest.param(
        "~: x\n",
        """\
bad.yaml:7:1: error: the key ~ is null, expected text
     7 | ~: x
       | ^ put it in quotes
""",
        id="null as a key",
    ),
    pytest.param(
        "true: x\n",
        """\
bad.yaml:7:1: error: the key true is a boolean, expected text
     7 | true: x
       | ^ put it in quotes
""",
        id="a boolean as a key",
    ),
    pytest.param(
        """\
? [a, b]
: x
""",
        """\
bad.yaml:7:3: error: a key is a list
     7 | ? [a, b]
       |   ^ keys are words
""",
        id="a list as a key",
    ),
    pytest.param(
        """\
name: &n bad
*n : 1
""",
        """\
bad.yaml:7:1: error: a key is an alias
     7 | *n : 1
       | ^ keys are words
""",
        id="an alias as a key",
    ),
    pytest.param(
        """\
eval: &e
  gates: [*e]
""",
        """\
bad.yaml:8:11: error: the alias *e contains itself
     8 |   gates: [*e]
       |           ^
""",
        id="an alias that contains itself",
    ),
    pytest.param(
        "seed: *s\n",
        """\
bad.yaml:7:7: error: the alias *s names an anchor that does not exist
     7 | seed: *s
       |       ^
""",
        id="an alias without an anchor",
    ),
    pytest.param(
        "train: {gradient_clip: .nan}\n",
        """\
bad.yaml:7:24: error: .nan is no finite number
     7 | train: {gradient_clip: .nan}
       |                        ^
""",
        id="not a number",
    ),
    pytest.param(
        "train: {gradient_clip: -.inf}\n",
        """\
bad.yaml:7:24: error: -.inf is no finite number
     7 | train: {gradient_clip: -.inf}
       |                        ^
""",
        id="infinity",
    ),
    pytest.param(
        "train: {gradient_clip: 1e999}\n",
        """\
bad.yaml:7:24: error: 1e999 is too large a number
     7 | train: {gradient_clip: 1e999}
       |                        ^
""",
        id="a float beyond all bounds",
    ),
    pytest.param(
        "seed: 99999999999999999999\n",
        """\
bad.yaml:7:7: error: 99999999999999999999 is too large a number
     7 | seed: 99999999999999999999
       |       ^
""",
        id="an integer beyond 64 bits",
    ),
    pytest.param(
        "eval: {gates: [a, b}\n",
        """\
bad.yaml:7:15: error: a list is not closed, or lacks a comma
     7 | eval: {gates: [a, b}
       |               ^ write [a, b]
""",
        id="a list closed by the wrong bracket",
    ),
    pytest.param(
        "eval: {gates: [a, b]\n",
        """\
bad.yaml:7:7: error: a mapping is not closed, or lacks a comma
     7 | eval: {gates: [a, b]
       |       ^ write {a: 1, b: 2}
""",
        id="a mapping that is not closed",
    ),
    pytest.param(
        'description: "abc\n',
        """\
bad.yaml:7:14: error: a quoted text is not closed
     7 | description: "abc
       |              ^
""",
        id="a quote that is not closed",
    ),
    pytest.param(
        "description: a draft: small\n",
        """\
bad.yaml:7:21: error: a `:` is not expected here
     7 | description: a draft: small
       |                     ^ is the line indented as it should be? text that contains `: ` stands in quotes
""",
        id="a colon inside plain text",
    ),
    pytest.param(
        """\
train:
    epochs: 1
  precision: float32
""",
        """\
bad.yaml:9:3: error: the indentation does not fit
     9 |   precision: float32
       |   ^ keys of one section begin in the same column
""",
        id="a key between two levels",
    ),
    pytest.param(
        "description: %a\n",
        """\
bad.yaml:7:14: error: a value cannot begin with `%`
     7 | description: %a
       |              ^ put it in quotes
""",
        id="a value that begins with a percent sign",
    ),
    pytest.param(
        "description: @a\n",
        """\
bad.yaml:7:14: error: a value cannot begin with `@`
     7 | description: @a
       |              ^ put it in quotes
""",
        id="a value that begins with an at sign",
    ),
    pytest.param(
        "train\n",
        """\
bad.yaml:7:1: error: a `:` is missing after the key
     7 | train
       | ^
""",
        id="a key without a colon",
    ),
    pytest.param(
        "description: a\x07b\n",
        """\
bad.yaml:7:15: error: the character U+0007 is not allowed in YAML
     7 | description: a b
       |               ^
""",
        id="a control character",
    ),
]
"""What stands in the place of the good sections of the same names, or below them all."""


@pytest.mark.parametrize(("text", "said"), WHOLE)
def test_is_refused_in_a_whole_file(complaint: Callable[..., str], text: str, said: str) -> None:
    assert complaint(text, whole=True) == said


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_is_refused(complaint: Callable[..., str], text: str, said: str) -> None:
    assert complaint(text) == said
