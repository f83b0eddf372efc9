"""Images are read from where a row says and nowhere else, kept once by content, and refused by place and reason."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from speculators.data import images
from speculators.data.conversations import Conversation, conversation, without_repeats
from speculators.data.images import Album
from speculators.data.sources import digests, read_source
from speculators.errors import UsageError


class Source:
    """A source of a recipe that is a file."""

    dataset = synthesize = samples = None

    def __init__(self, file: Path) -> None:
        self.file = str(file)


def drawn(color: str, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), color).save(stream, kind)
    return stream.getvalue()


def row(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}], **more}


def by_path(path: str) -> dict[str, Any]:
    return {"type": "image", "path": path}


def by_url(url: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a data file."""
    folder = tmp_path / "data"
    (folder / "pictures").mkdir(parents=True)
    (folder / "red.png").write_bytes(drawn("red"))
    (folder / "pictures" / "blue.jpg").write_bytes(drawn("blue", "JPEG"))
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return folder


def read(data: Path, output: Path, *rows: dict[str, Any]) -> list[Conversation]:
    (data / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return read_source(Source(data / "rows.jsonl"), 0, seed=0, holdout=0.0, output=output)


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server on this machine, and what it serves by path."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", files
        server.shutdown()
        thread.join()


def test_an_image_is_kept_once_under_the_digest_of_its_content(data: Path, output: Path) -> None:
    (data / "copy.png").write_bytes(drawn("red"))
    encoded = base64.b64encode(drawn("red")).decode()
    parts = [by_path("red.png"), by_path("copy.png"), by_url(f"data:image/png;base64,{encoded}")]
    (found,) = read(data, output, row(*parts, by_path("pictures/blue.jpg")))
    red = f"{hashlib.sha256(drawn('red')).hexdigest()}.png"
    blue = f"{hashlib.sha256(drawn('blue', 'JPEG')).hexdigest()}.jpg"
    assert found.images == (red, red, red, blue)
    assert sorted(file.name for file in (output / "images").iterdir()) == sorted((red, blue))
    assert (output / "images" / blue).read_bytes() == drawn("blue", "JPEG")
    assert found.prompt == "What is it?"
    assert Conversation.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_turns_of_one_speaker_become_one_with_its_images_in_order(data: Path, output: Path) -> None:
    shown = {"role": "user", "content": [by_path("red.png")]}
    (found,) = read(data, output, {"messages": [{"role": "user", "content": "Look:"}, shown]})
    (message,) = found.messages
    assert [part.get("text") for part in message.to_json()["content"]] == ["Look:", "\n\n", None]


def test_a_prompt_is_another_one_when_it_is_about_another_image(data: Path, output: Path) -> None:
    held = row(by_path("red.png"), split="holdout")
    found = read(data, output, held, row(by_path("red.png"), id="x"), row(by_path("pictures/blue.jpg")))
    assert [item.split for item in without_repeats(found)] == ["holdout", "train"]
    assert len({item.id for item in found}) == 3


def test_the_digest_of_a_source_covers_its_images_and_is_the_files_own_without_them(data: Path, output: Path) -> None:
    source = Source(data / "rows.jsonl")
    read(data, output, {"prompt": "no images"})
    plain = digests([source])["data.sources[0]"]
    assert plain == f"sha256:{hashlib.sha256((data / 'rows.jsonl').read_bytes()).hexdigest()}"
    read(data, output, row(by_path("red.png")), row(by_path("pictures/blue.jpg")))
    before = digests([source])
    red, blue = data / "red.png", data / "pictures" / "blue.jpg"
    contents = red.read_bytes(), blue.read_bytes()
    red.write_bytes(contents[1])
    blue.write_bytes(contents[0])
    assert digests([source]) != before, "the same images under each other's names are other data"


def test_the_digest_of_a_source_follows_the_names_that_rows_use(data: Path, output: Path) -> None:
    source = Source(data / "rows.jsonl")
    targets = [data / "red.png", data / "pictures" / "blue.jpg"]
    links = [data / "one", data / "two"]
    for link, target in zip(links, targets, strict=True):
        link.symlink_to(target)
    read(data, output, row(by_path("one")), row(by_path("two")))
    before = digests([source])
    for link, target in zip(links, reversed(targets), strict=True):
        link.unlink()
        link.symlink_to(target)
    assert digests([source]) != before


@pytest.mark.parametrize("key", ["image", "path"])
def test_the_digest_of_a_source_covers_images_that_json_names_with_escapes(data: Path, output: Path, key: str) -> None:
    source = Source(data / "rows.jsonl")
    read(data, output, row(by_path("red.png")))
    text = (data / "rows.jsonl").read_text()
    (data / "rows.jsonl").write_text(text.replace(f'"{key}"', f'"{key.replace("a", chr(92) + "u0061")}"'))
    assert "; images sha256:" in digests([source])["data.sources[0]"]


def test_urls_are_fetched_kept_and_held_to_their_digest(
    data: Path, output: Path, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    url, files = served
    files["/red.webp"] = drawn("red", "WEBP")
    sha256 = hashlib.sha256(files["/red.webp"]).hexdigest()
    (found,) = read(data, output, row(by_url(f"{url}/red.webp", sha256=sha256)))
    assert found.images == (f"{sha256}.webp",)
    with pytest.raises(UsageError, match=f"its sha256 is {sha256}, the row says 00"):
        read(data, output, row(by_url(f"{url}/red.webp", sha256="00")))
    with pytest.raises(UsageError, match="cannot be read: the server answered 404"):
        read(data, output, row(by_url(f"{url}/green.png")))
    monkeypatch.setattr(images, "MOST_BYTES", 64)
    with pytest.raises(UsageError, match="it is larger than"):
        read(data, output, row(by_url(f"{url}/red.webp")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="the run is offline"):
        read(data, output, row(by_url(f"{url}/red.webp")))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (by_path("gone.png"), "the image gone.png cannot be read: there is no such file"),
        (by_path("../outside.png"), "stays in that file's folder"),
        (by_path("/etc/hostname"), "a path is relative to the data file"),
        (by_path("link.png"), "stays in that file's folder"),
        (by_path(""), "a path is relative to the data file"),
        (by_path("text.png"), "it is not an image in one of the formats PNG, JPEG, WEBP"),
        (by_path("half.png"), "cannot be read: .*(truncated|broken|incomplete)"),
        (by_path("drawing.bmp"), "it is not an image in one of the formats"),
        (by_url("file:///etc/hostname"), "a URL begins with http://, https:// or data:"),
        (by_url("data:image/png;base64,%%%"), "the image in a `data:` URL cannot be read: it is not base64"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_with_place_and_reason(
    data: Path, output: Path, part: dict[str, Any], reason: str
) -> None:
    (data.parent / "outside.png").write_bytes(drawn("red"))
    (data / "link.png").symlink_to(data.parent / "outside.png")
    (data / "text.png").write_text("no picture")
    (data / "half.png").write_bytes(drawn("red")[:48])
    (data / "drawing.bmp").write_bytes(drawn("red", "BMP"))
    with pytest.raises(UsageError, match=f"`data.sources`: file:rows.jsonl, row 2: .*{reason}"):
        read(data, output, {"prompt": "first"}, row(part))
    assert not list(output.rglob("*.png"))


def test_images_of_data_sets_and_of_other_speakers_than_users_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data sets name images by URL"):
        conversation(row(by_path("a.png")), source="s", holdout=0.0, keep=Album(tmp_path / "images", None).keep)
    said = {"messages": [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": [by_path("a.png")]}]}
    with pytest.raises(UsageError, match="an image in a turn of assistant; users show images"):
        conversation(said, source="s", holdout=0.0, keep=Album(tmp_path / "images", tmp_path).keep)


def test_an_image_is_one_though_its_part_has_every_column_of_a_table(data: Path, output: Path) -> None:
    (found,) = read(data, output, row({**by_path("red.png"), "text": ""}))
    assert len(found.images) == 1
    with pytest.raises(UsageError, match="row 1 has an image with a `text`; write it as a part of its own"):
        read(data, output, row({**by_path("red.png"), "text": "a square"}))


def test_an_image_of_too_many_pixels_is_refused(data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 199)
    with pytest.raises(UsageError, match="it has 20 x 10 pixels, more than 199"):
        read(data, output, row(by_path("red.png")))
