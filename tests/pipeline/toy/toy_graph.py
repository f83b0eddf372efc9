"""A graph of five toy steps for the pipeline's tests; workers import it by the name that stands in the plan.

    numbers -> shards -> total -> report        words -> total

`barrier` lets a test stop a worker at a known place: the worker says that it is there and looks for leave to go on.
"""

import os
import time
from pathlib import Path

from speculators.errors import MachineError
from speculators.pipeline.assembly import Assembly, Gate
from speculators.pipeline.digests import file_sha256
from speculators.pipeline.step import Context, Estimate, Step

DEFAULTS = {
    "numbers": {"count": 3, "start": 0, "noise": False},
    "shards": {"factor": 2, "fail": "", "forgotten": 0},
    "total": {"noise": False},
    "words": {"file": None},
    "threads": 1,
    "disk": 0,
    "gate": None,
    "seen": None,
}
OPERATIONAL = {"threads", "disk", "gate", "seen"}


class View:
    """Shows the declared paths only."""

    def __init__(self, data, reads, above=""):
        self._data, self._reads, self._above = data, reads, above

    def __getattr__(self, name):
        path = f"{self._above}{name}"
        if any(path == read or path.startswith(f"{read}.") for read in self._reads):
            value = self._data[name]
            return View(value, self._reads, f"{path}.") if isinstance(value, dict) else value
        if any(read.startswith(f"{path}.") for read in self._reads):
            return View(self._data[name], self._reads, f"{path}.")
        raise AttributeError(f"{path} is not among the declared reads {self._reads}")


def barrier(name):
    place = Path(os.environ.get("TOY_BARRIERS", "/nowhere")) / name
    if place.exists():
        place.with_suffix(".here").touch()
        while not place.with_suffix(".go").exists():
            time.sleep(0.01)


def make_numbers(context: Context) -> None:
    numbers = context.config.numbers
    (context.output / "numbers.txt").write_text(
        "\n".join(map(str, range(numbers.start, numbers.start + numbers.count)))
    )
    if numbers.noise:
        (context.output / "noise.txt").write_text(os.urandom(4).hex())
    context.report.message(f"wrote {numbers.count} numbers")
    print("numbers were here")


def make_words(context: Context) -> None:
    file = context.config.words.file
    barrier("words")
    (context.output / "words.txt").write_text(Path(file).read_text() if file else "none")
    (context.output / "deep").mkdir(exist_ok=True)
    (context.output / "deep" / "more.txt").write_text("more")


def words_external(config):
    return {"file": file_sha256(Path(config.words.file))} if config.words.file else {}


def make_shards(context: Context) -> None:
    """One file a number; those that are there already are not made again, and the log says which were."""
    config = context.config.shards
    numbers = (context.inputs["numbers"] / "numbers.txt").read_text().split()
    if (noise := context.inputs["numbers"] / "noise.txt").exists():
        (context.output / "noise.txt").write_text(noise.read_text())
    for index, number in enumerate(numbers):
        place = context.output / f"shard-{index}.txt"
        if not place.exists():
            print(f"made {place.name}", flush=True)
            place.with_name(".scratch").write_text("half")
            place.with_name(".scratch").rename(place)
            place.write_text(str(int(number) * config.factor))
        context.report.progress(index + 1, len(numbers), "numbers")
        barrier(f"shard-{index}")
    if config.fail == "error":
        raise ValueError("the shards did not come out")
    if config.fail == "machine":
        raise MachineError("no engine here")
    if config.fail == "undeclared":
        _ = context.config.numbers.count
    if config.fail == "link":
        (context.output / "link").symlink_to("/etc/hostname")
    if config.fail == "nothing":
        for place in context.output.iterdir():
            place.unlink()


def make_total(context: Context) -> None:
    total = sum(int(shard.read_text()) for shard in context.inputs["shards"].glob("shard-*.txt"))
    noise = os.urandom(4).hex() if context.config.total.noise else ""
    (context.output / "total.txt").write_text(f"{total}{noise}")
    context.report.metric(1, {"total": total, "odd": float("nan")})


def make_report(context: Context) -> None:
    lines = [f"{name}: {sorted(path.name for path in place.iterdir())}" for name, place in context.inputs.items()]
    (context.output / "report.html").write_text("\n".join(lines))


def shards_estimate(scope):
    return Estimate(disk=scope.config.disk, memory=1, seconds=1.0)


STEPS = (
    Step("numbers", 1, ("numbers",), make_numbers),
    Step(
        "shards",
        1,
        ("shards.factor", "shards.fail", "disk"),
        make_shards,
        ("numbers",),
        estimate=shards_estimate,
        spares_disk="`--set shards.factor=1` makes fewer",
    ),
    Step("words", 1, ("words",), make_words, external=words_external, light=True),
    Step("total", 1, ("total",), make_total, ("shards", "words")),
    Step("report", 1, (), make_report, ("total",), cached=False),
)


def filled(data):
    return {
        name: {**default, **data.get(name, {})} if isinstance(default, dict) else data.get(name, default)
        for name, default in DEFAULTS.items()
    } | {"name": data.get("name", "toy")}


def semantic(data, reads):
    found = {}
    for read in reads:
        first, _, second = read.partition(".")
        if first in OPERATIONAL:
            continue
        values = {second: data[first][second]} if second else data[first]
        for key, value in values.items():
            if value != DEFAULTS[first][key] and not (first == "shards" and key == "fail"):
                found.setdefault(first, {})[key] = value
    return found


def reassemble(data):
    data = filled(data)

    def gates(folder):
        if data["gate"] is None:
            return ()
        total = int((folder / "steps" / "total" / "total.txt").read_text())
        return (Gate(f"total >= {data['gate']}", total, total >= data["gate"]),)

    def results(folder):
        (folder / "results.json").write_text("{}")

    return Assembly(
        name=data["name"],
        data=data,
        steps=STEPS,
        reassemble="toy_graph:reassemble",
        semantic=lambda reads: semantic(data, reads),
        view=lambda reads: View(data, reads),
        gates=gates,
        results=results,
    )
