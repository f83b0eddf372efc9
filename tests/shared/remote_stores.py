"""What lies in a store and in a remote one, and forging it as somebody who may write there could."""

import json
from types import SimpleNamespace

from speculators.pipeline.digests import value_sha256
from speculators.pipeline.manifest import Manifest, instance_of


def states(plan):
    return {planned.name: planned.state for planned in plan.steps}


def stored(toy):
    return {path.name.rpartition("-")[0] for path in toy.store.artifacts.iterdir()}


def there(shared, step):
    (folder,) = (shared / "artifacts").glob(f"{step}-*")
    return folder


def payload_file(shared, step, name):
    (file,) = there(shared, step).glob(f"*/{name}")
    return file


def rewrite(path, text):
    path.chmod(0o644)
    path.write_text(text)


def described(shared, step, change):
    """Rewrite an artifact's manifest as somebody who may write there could."""
    place = there(shared, step) / "artifact.json"
    manifest = json.loads(place.read_text())
    change(manifest)
    rewrite(place, json.dumps(manifest))


def consistent(manifest):
    """Make a forged list of files look like a real one."""
    entries = Manifest.decode(json.dumps({**manifest, "files": {}}).encode())
    files = {path: SimpleNamespace(**entry) for path, entry in manifest["files"].items()}
    manifest["instance"] = instance_of(files)
    assert entries.key == value_sha256(manifest["hashed"])
