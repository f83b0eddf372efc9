"""A remote store at the other end of a real protocol: FTP and S3."""

import threading

import pytest

from speculators.errors import MachineError
from speculators.pipeline.remote import Remote


@pytest.fixture
def ftp(tmp_path):
    """The URL of an FTP server over an empty folder, with a password in it."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    class Handler(FTPHandler):
        authorizer = DummyAuthorizer()

    place = tmp_path / "ftp"
    place.mkdir()
    Handler.authorizer.add_user("me", "hunter2", str(place), perm="elradfmwMT")
    server = FTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"timeout": 0.1, "handle_exit": False}, daemon=True)
    thread.start()
    yield f"ftp://me:hunter2@127.0.0.1:{server.address[1]}/team"
    server.close_all()


@pytest.fixture
def s3(monkeypatch, tmp_path):
    """The URL of a bucket of an S3 server."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "us",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("team", exist_ok=True)  # the servers of one process share their buckets
    yield f"s3://team/{tmp_path.name}"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("kind", ["ftp", "s3"])
def test_machines_share_what_they_made_through_a_server(toy, another, request, kind):
    url = request.getfixturevalue(kind)
    run = toy.run(push_to=Remote.open(url))
    assert run.outcome.exit_code == 0
    assert len([text for text in run.said if text.startswith("pushed")]) == 4, run.said
    second = another("second")
    fetched = second.run({"total": {"noise": True}}, remote=Remote.open(url))
    assert fetched.did == {
        "shards": "step_cached", "words": "step_cached", "total": "step_finished", "report": "step_finished",
    }  # fmt: skip
    assert {manifest.step for manifest in Remote.open(url).all()} == {"numbers", "shards", "words", "total"}
    assert not [text for text in [*run.said, *fetched.said] if "hunter2" in text]
    again = toy.run(push_to=Remote.open(url))
    assert not [text for text in again.said if text.startswith("pushed")]


@pytest.mark.parametrize("kind", ["ftp", "s3"])
def test_what_is_damaged_on_a_server_is_made_here_and_mended_there(toy, another, request, kind):
    url = request.getfixturevalue(kind)
    toy.run(push_to=Remote.open(url))
    opened = Remote.open(url)
    (shards,) = [manifest for manifest in opened.all() if manifest.step == "shards"]
    opened._files.pipe_file(f"{opened._place(f'shards-{shards.key[:16]}')}/{shards.instance}/shard-1.txt", b"nope")
    opened = Remote.open(url)
    run = another("second").run(until=("shards",), remote=opened, push_to=opened)
    assert run.did == {"numbers": "step_cached", "shards": "step_finished"}
    assert another("third").run(until=("shards",), remote=Remote.open(url)).did == {"shards": "step_cached"}


def test_a_server_that_does_not_let_us_in_is_told_without_the_password(ftp):
    with pytest.raises(MachineError, match=r"ftp://\*\*\*@127.0.0.1:\d+/team cannot be used") as told:
        Remote.open(ftp.replace("hunter2", "hunter3"))
    assert "hunter3" not in str(told.value)


def test_a_bucket_to_which_we_may_not_write_is_told(toy, s3, monkeypatch):
    run = toy.run(push_to=Remote.open("s3://nobody-s-bucket/store"))
    assert run.outcome.exit_code == 0
    (told,) = [text for text in run.said if "could not be pushed" in text]
    assert "s3://nobody-s-bucket/store" in told
