"""`speculators cache`: looking at the store and making room in it."""

import json
from pathlib import Path


def listed(toy_cli):
    return {row["step"]: row for row in json.loads(toy_cli("cache", "list", "--json").out)}


def test_list_and_show_tell_what_there_is(toy_cli):
    toy_cli("run", "toy")
    rows = listed(toy_cli)
    assert set(rows) == {"numbers", "shards", "words", "total"}
    assert rows["shards"]["artifact"] in toy_cli("cache", "list").out
    shown = json.loads(toy_cli("cache", "show", "shards").out)
    assert shown["files"]["shard-0.txt"]["size"] == 1
    assert Path(shown["path"]).is_dir()


def test_explain_says_in_what_two_artifacts_differ(toy_cli):
    toy_cli("run", "toy")
    toy_cli("run", "toy", "--set", "shards.factor=5")
    assert "config.shards.factor: default -> 5" in toy_cli("cache", "explain", "shards").out
    assert toy_cli("cache", "explain", "numbers").code == 2


def test_verify_finds_damage_and_removes_it_when_asked(toy_cli, tmp_path):
    toy_cli("run", "toy")
    assert toy_cli("cache", "verify").code == 0
    (file,) = (tmp_path / "store" / "artifacts").glob("shards-*/shard-0.txt")
    file.chmod(0o644)
    file.write_text("7")
    found = toy_cli("cache", "verify")
    assert found.code == 1
    assert "shard-0.txt has changed" in found.out
    assert toy_cli("cache", "verify", "--remove").code == 1
    assert "shards" not in listed(toy_cli)
    assert toy_cli("cache", "verify").code == 0


def test_prune_shows_first_and_removes_only_with_yes(toy_cli):
    toy_cli("run", "toy")
    assert toy_cli("cache", "prune").code == 2
    dry = toy_cli("cache", "prune", "shards", "words")
    assert "would be freed" in dry.out
    assert "shards" in listed(toy_cli)
    assert "removed 2" in toy_cli("cache", "prune", "shards", "words", "--yes").out
    assert set(listed(toy_cli)) == {"numbers", "total"}
    assert "nothing to remove" in toy_cli("cache", "prune", "--older-than", "30d").out
    assert "removed 2" in toy_cli("cache", "prune", "--to-size", "0MB", "--yes").out


def test_names_that_are_no_artifacts_are_bad_usage(toy_cli):
    for name in ("../x", "/etc", "nothing", "-"):
        assert toy_cli("cache", "show", "--", name).code == 2
    assert toy_cli("cache", "prune", "--to-size", "much").code == 2
    assert toy_cli("cache", "prune", "--older-than", "long").code == 2


def test_artifacts_are_pushed_listed_and_pulled_by_name(toy_cli, tmp_path):
    url = f"file://{tmp_path}/shared"
    toy_cli("run", "toy")
    (shards,) = (tmp_path / "store" / "artifacts").glob("shards-*")
    pushed = toy_cli("cache", "push", "words", shards.name, "--remote", url)
    assert pushed.code == 0, pushed.err
    assert f"{shards.name}: pushed" in pushed.out
    assert "there already" in toy_cli("cache", "push", "words", "--remote", url).out
    rows = json.loads(toy_cli("cache", "list", "--remote", url, "--json").out)
    assert {row["step"] for row in rows} == {"shards", "words"}
    assert shards.name in toy_cli("cache", "list", "--remote", url).out
    elsewhere = ("--store", str(tmp_path / "other"), "--remote", url)
    pulled = toy_cli("cache", "pull", shards.name[:10], "words", *elsewhere)
    assert pulled.code == 0, pulled.err
    assert {path.name for path in (tmp_path / "other" / "artifacts" / shards.name).iterdir()} >= {"shard-0.txt"}
    assert "2 artifacts" in toy_cli("cache", "list", "--store", str(tmp_path / "other")).out


def test_pushing_and_pulling_say_what_is_missing_or_damaged(toy_cli, tmp_path):
    url = f"file://{tmp_path}/shared"
    toy_cli("run", "toy")
    assert "--remote URL (or SPECULATORS_REMOTE) is missing" in toy_cli("cache", "push", "words").err
    assert "no artifact in file://" in toy_cli("cache", "pull", "words", "--remote", url).err
    toy_cli("cache", "push", "words", "--remote", url)
    (file,) = (tmp_path / "shared").rglob("words.txt")
    file.chmod(0o644)
    file.write_text("nope")
    pulled = toy_cli("cache", "pull", "words", "--remote", url, "--store", str(tmp_path / "other"))
    assert pulled.code == 1
    assert "words.txt has changed" in pulled.err
    (file,) = (tmp_path / "store" / "artifacts").glob("words-*/words.txt")
    file.chmod(0o644)
    file.write_text("nope")
    assert "is damaged here" in toy_cli("cache", "push", "words", "--remote", url).err
