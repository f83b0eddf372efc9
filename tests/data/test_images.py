"""Images are read from where a row says and nowhere else, kept once by content, and refused by place and reason."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from speculators.data import download, images
from speculators.data.conversations import Conversation, conversation, without_repeats
from speculators.data.images import Album
from speculators.data.sources import digests, read_source
from speculators.errors import MachineError, UsageError


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


Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, bytes | list[Answer]]]]:
    """A server on this machine, which may be asked, and what it serves by path: a content, or answers in turn."""
    files: dict[str, bytes | list[Answer]] = {}
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(download.ALLOWS_LOCAL, "1")
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            found = files.get(path, [(404, {}, b"")])
            code, headers, content = (200, {}, found) if isinstance(found, bytes) else found[0]
            if isinstance(found, list):
                found.pop(0)
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

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
        (by_path("with\0null.png"), r"the image with\\x00null.png cannot be read: it is no path: embedded null byte"),
        (by_path("\ud800.png"), r"the image \\ud800.png cannot be read: it is no path: .*surrogates not allowed"),
        (by_path("loop.png"), "the image loop.png cannot be read"),
        (by_path("x" * 999), r"the image x{200}\.\.\. cannot be read: .*name too long"),
        (
            by_url("data:image/png;base64,\u00e9\u00e9\u00e9="),
            "it is not base64: string argument should contain only ASCII",
        ),
        (
            by_url("http://host/a b.png"),
            "the image http://host/a b.png cannot be read: in a URL, spaces and .* percent",
        ),
        (
            by_url("http://host/\u00e9.png"),
            "the image http://host/\u00e9.png cannot be read: in a URL, .* percent-encoded",
        ),
        (by_url("http://[::1/a.png"), "the image at a malformed URL cannot be read: it is not a URL"),
        (by_url("http://host:port/a.png"), "the image http://host:port/a.png cannot be read: it is not a URL"),
        (
            by_url("http://user:hidden@host/a.png"),
            "the image http://host/a.png cannot be read: a URL with a user or pass",
        ),
        (by_url("http://u:hidden@host:99999/"), "the image http://host:99999/ cannot be read: it is not a URL"),
        (
            by_url("http://127.0.0.1:9/a.png?key=hidden"),
            "the image http://127.0.0.1:9/a.png cannot be read: its host has",
        ),
        (by_url("http://[::ffff:10.0.0.1]/a.png"), "its host has the address .*, which is not on the internet"),
        (by_url("https://169.254.0.1/a"), "its host has .*; SPECULATORS_LOCAL_IMAGES=1 allows such hosts"),
        (by_url("http://localhost/a.png"), "its host has the address .*, which is not on the internet"),
        (by_url("file:///etc/hostname"), "a URL begins with http://, https:// or data:"),
        (by_url("data:image/png;base64,%%%"), "the image in a `data:` URL cannot be read: it is not base64"),
    ],
)
def test_an_image_that_cannot_be_read_is_refused_with_place_and_reason(
    data: Path, output: Path, part: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", download.ALLOWS_LOCAL, "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (data / "loop.png").symlink_to(data / "loop.png")
    (data.parent / "outside.png").write_bytes(drawn("red"))
    (data / "link.png").symlink_to(data.parent / "outside.png")
    (data / "text.png").write_text("no picture")
    (data / "half.png").write_bytes(drawn("red")[:48])
    (data / "drawing.bmp").write_bytes(drawn("red", "BMP"))
    with pytest.raises(UsageError, match=f"`data.sources`: file:rows.jsonl, row 2: .*{reason}") as caught:
        read(data, output, {"prompt": "first"}, row(part))
    assert "hidden" not in "".join(traceback.format_exception(caught.value))
    assert digests([Source(data / "rows.jsonl")]), "a plan can be made all the same"
    assert not list(output.rglob("*.png"))


def test_a_url_is_fetched_once_for_all_rows(data: Path, output: Path, served: Any) -> None:
    url, files = served
    files["/a.png"] = [(200, {}, drawn("red"))]
    found = read(data, output, row(by_url(f"{url}/a.png"), id="1"), row(by_url(f"{url}/a.png"), id="2"))
    assert files["/a.png"] == [], "it was asked for"
    assert found[0].images == found[1].images
    files["/a.png"] = [(200, {}, drawn("red"))]
    with pytest.raises(UsageError, match=r"row 2: .*its sha256 is .*, the row says 00"):
        read(data, output, row(by_url(f"{url}/a.png")), row(by_url(f"{url}/a.png", sha256="00")))


def test_a_server_that_fails_is_asked_twice_more_and_is_not_the_datas_fault(
    data: Path, output: Path, served: Any
) -> None:
    url, files = served
    failure, picture = (503, {}, b""), drawn("red")
    cut = (200, {"Content-Length": str(len(picture))}, picture[:-9])
    files["/a.png"] = [failure, cut, (200, {"Content-Length": str(len(picture))}, picture)]
    (found,) = read(data, output, row(by_url(f"{url}/a.png")))
    assert len(found.images) == 1
    files["/b.png"] = [failure] * 3
    with pytest.raises(MachineError, match=r"row 1: the image .*/b.png cannot be fetched: the server answered 503"):
        read(data, output, row(by_url(f"{url}/b.png?key=hidden")), row(by_url(f"{url}/b.png")))
    files["/b.png"] = [cut] * 3
    with pytest.raises(MachineError, match=rf"broke off after {len(picture) - 9} of {len(picture)} bytes"):
        read(data, output, row(by_url(f"{url}/b.png")))
    files["/c.png"] = [(403, {}, b""), (200, {}, picture)]
    with pytest.raises(UsageError, match="the server answered 403"):
        read(data, output, row(by_url(f"{url}/c.png")))
    with pytest.raises(MachineError, match=r"the server cannot be reached: .*refused"):
        read(data, output, row(by_url("http://127.0.0.1:9/a.png")))


def test_a_server_that_never_ends_is_left(
    data: Path, output: Path, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TRY_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        begin = time.monotonic()
        with pytest.raises(MachineError, match=r"it did not come within 0\.3 s"):
            read(data, output, row(by_url(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png")))
        assert time.monotonic() - begin < 10


def test_redirections_are_followed_to_where_data_may_be_fetched_from(
    data: Path, output: Path, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, files = served

    def to(place: str) -> list[Answer]:
        return [(302, {"Location": place}, b"")]

    files["/red.png"], files["/a"], files["/b"] = drawn("red"), to("/b"), to(f"{url}/red.png")
    (found,) = read(data, output, row(by_url(f"{url}/a")))
    assert len(found.images) == 1
    for place, reason in (
        ("file:///etc/hostname", "a URL begins with"),
        ("ftp://host/a.png", "a URL begins with"),
        ("http://user:hidden@host/", "a URL with a user or password"),
        ("http://[::1/", "it is redirected to what is not a URL"),
    ):
        files["/a"] = to(place)
        with pytest.raises(UsageError, match=f"the image {url}/a cannot be read: {reason}"):
            read(data, output, row(by_url(f"{url}/a")))

    class AllowedOnce(list[Answer]):
        def pop(self, *where: Any) -> Answer:
            monkeypatch.delenv(download.ALLOWS_LOCAL)
            return super().pop(*where)

    files["/a"] = AllowedOnce(to(f"{url}/red.png"))
    with pytest.raises(UsageError, match=r"its host has the address 127\.0\.0\.1, which is not on the internet"):
        read(data, output, row(by_url(f"{url}/a")))
    monkeypatch.setenv(download.ALLOWS_LOCAL, "1")
    files["/a"] = to("/a") * 9
    with pytest.raises(UsageError, match="it is redirected more than 5 times"):
        read(data, output, row(by_url(f"{url}/a")))


def test_a_picture_of_a_camera_with_further_ones_behind_is_its_first(data: Path, output: Path) -> None:
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    first.save(data / "both.jpg", "MPO", save_all=True, append_images=[second])
    (found,) = read(data, output, row(by_path("both.jpg")))
    assert found.images[0].endswith(".jpg")


def test_what_is_too_large_is_not_read(data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (data / "large.png").open("wb") as file:
        file.truncate(1 << 40)  # a sparse file that no memory holds
    with pytest.raises(UsageError, match="it is larger than 20 MiB"):
        read(data, output, row(by_path("large.png")))
    monkeypatch.setattr(images, "MOST_BYTES", 64)
    with pytest.raises(UsageError, match="it is larger than"):
        read(data, output, row(by_url(f"data:;base64,{'%' * 999}")))


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
