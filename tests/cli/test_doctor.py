"""`speculators doctor`: versions without imports, and never a secret."""

import json


def test_doctor_tells_what_is_there_and_never_a_secret(toy_cli, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    told = toy_cli("doctor", "--json")
    findings = {finding["what"]: finding for finding in json.loads(told.out)}
    assert findings["torch"]["fine"] is True
    assert findings["locks"]["fine"] is True
    assert findings["Hugging Face token"]["found"] == "set"
    assert "hf_secret" not in told.out + told.err


def test_a_missing_engine_ends_with_five(toy_cli, monkeypatch):
    monkeypatch.setattr("speculators.pipeline.machine.version_of", lambda package: None)
    told = toy_cli("doctor")
    assert told.code == 5
    assert "not fit for a run: torch, transformers" in told.err


def test_doctor_tells_which_remote_store_is_named_and_whether_its_package_is_here(toy_cli, lacking, monkeypatch):
    def told(url):
        monkeypatch.setenv("SPECULATORS_REMOTE", url)
        findings = json.loads(toy_cli("doctor", "--json").out)
        return next(one for one in findings if one["what"] == "remote store")

    assert told("memory://me:hunter2@team/store")["found"] == "memory://***@team/store"
    lacking("s3", "s3fs")
    lacking = told("s3://bucket/prefix")
    assert lacking["fine"] is False
    assert "speculators[s3]" in lacking["found"]
