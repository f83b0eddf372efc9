"""The report page: complete without asking anybody, safe against any text, honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest

from speculators.errors import UsageError
from speculators.reporting.folder import RunFolder
from speculators.reporting.page import build_page, cards, curves, headline, samples, write_report
from speculators.reporting.results import collect

VOID = {"meta", "link", "br", "hr", "img", "input", "source"}


class Reader(HTMLParser):
    """Collects what a browser would act on, and checks that every element that is opened is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n\t]+", " ", " ".join(self.words))


@pytest.fixture
def page(make_run):
    run = make_run()
    return build_page(run).html, collect(run)


def test_the_page_is_balanced_html_with_unique_ids(page):
    reader = Reader(page[0])
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert page[0].startswith("<!doctype html>")


def test_the_page_asks_nobody_for_anything(page):
    reader = Reader(page[0])
    fetching = {"src", "srcset", "poster", "data", "action", "background", "xlink:href"}
    assert not [attribute for attribute in reader.attributes if attribute[1] in fetching and attribute[2][:1] != "#"]
    links = [value for tag, name, value in reader.attributes if tag == "link" and name == "href"]
    assert links == ["data:,"]
    assert not [attribute for attribute in reader.attributes if attribute[0] in {"script", "iframe", "img", "object"}]
    assert "@import" not in page[0]
    assert set(re.findall(r"url\(([^)]*)\)", page[0])) <= set(re.findall(r"url\((#[^)]*)\)", page[0]))
    assert not re.search(r"https?://", page[0])


def test_links_inside_charts_find_their_target(page):
    ids = set(re.findall(r'\bid="([^"]+)"', page[0]))
    targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page[0])
    assert targets
    assert {first or second for first, second in targets} <= ids


def test_links_go_to_files_of_the_run_folder(make_run):
    run = make_run()
    links = [value for tag, name, value in Reader(build_page(run).html).attributes if tag == "a" and name == "href"]
    assert links == ["steps/benchmark-dense/guidellm.html", "steps/benchmark-speculator/guidellm.html"]
    assert all((run / link).is_file() for link in links)


def test_each_point_of_each_variant_has_its_link_and_its_table(make_run):
    run = make_run(profile="sweep", others={"int8": 55.5})
    reader = Reader(build_page(run).html)
    links = [value for tag, name, value in reader.attributes if tag == "a" and name == "href"]
    folders = ("01-synchronous", "02-throughput", "03-constant")
    variants = ("dense", "speculator", "int8")
    assert links == [f"steps/benchmark-{v}/{folder}/guidellm.html" for v in variants for folder in folders]
    assert all((run / link).is_file() for link in links)
    assert "int8 at 1 stream , full load , 0.832 requests per second ." in reader.text
    assert "Benchmark at 1 stream Figure What it is dense speculator int8" in reader.text
    assert "Benchmark at full load Figure" in reader.text
    assert "Benchmark at a constant rate, 0.598 requests per second and 0.704 requests per second" in reader.text
    assert (
        "Acceptance length, served Tokens per pass of the verifier, counted by the server. – 1.600 1.600" in reader.text
    )


def test_figures_on_the_page_are_those_of_the_results(page):
    text, results = Reader(page[0]).text, page[1]
    assert f"Acceptance length {results['acceptance']['holdout']['acceptance_length']:.2f} 64 held-out prompts" in text
    assert f"{results['benchmark']['speculator']['output_tokens_per_second']:.1f} tokens per second" in text
    assert f"{results['speedup']:.2f}×" in text
    assert "1.623 1.417" in text
    assert "43.6\u00a0% 33.1\u00a0%" in text
    assert "39.84 46.91" in text
    assert "24.10\u00a0ms 20.20\u00a0ms" in text
    assert "371\u202f204" in text


def test_the_headline_says_what_was_gained_and_what_was_lost(make_run):
    results = collect(make_run())
    assert headline(results) == (
        "With this draft, each pass of the verifier commits 1.62 tokens on held-out prompts, and at 1 stream the "
        "server writes 1.18 times as many tokens per second as without it."
    )
    assert "at 1 stream the server writes 10% fewer tokens per second" in headline(results | {"speedup": 0.9})


def test_charts_lie_beside_the_page_as_png(make_run, tmp_path):
    place = write_report(make_run())
    assert place.name == "report.html"
    pictures = {path.name: path.read_bytes()[:8] for path in place.parent.glob("*.png")}
    names = ("loss", "accuracy", "walk", "acceptance", "benchmark")
    names += ("load-throughput", "load-latency", "load-acceptance")
    assert set(pictures) == {f"{name}.png" for name in names}
    assert set(pictures.values()) == {b"\x89PNG\r\n\x1a\n"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert write_report(place.parent, elsewhere) == elsewhere / "report.html"


def test_the_same_run_gives_the_same_page(make_run):
    run = make_run()
    first, second = build_page(run), build_page(run)
    assert first.html == second.html
    assert [chart.png for chart in first.charts] == [chart.png for chart in second.charts]


HOSTILE = "</p><script>alert('x')</script><img src=x onerror=alert(1)>&amp;{{ 7*7 }}\u202e"


def test_hostile_text_stays_text_wherever_it_comes_from(make_run):
    run = make_run(prompt=HOSTILE, recipe=f"name: '{HOSTILE}'  # {HOSTILE}\n", failed=None)
    plan = run / "plan.json"
    plan.write_text(plan.read_text().replace("The whole pipeline", HOSTILE.replace('"', "")), encoding="utf-8")
    html = build_page(run).html
    reader = Reader(html)
    assert not {tag for tag, _, _ in reader.attributes} & {"script", "img"}
    assert "<script" not in html
    assert not any(name.startswith("on") for _, name, _ in reader.attributes)
    assert reader.text.count("<script>alert('x')</script>") >= 4
    assert "{{ 7*7 }}" in reader.text


@pytest.mark.parametrize(
    "without",
    [
        ("benchmark-dense", "benchmark-speculator"),
        ("acceptance",),
        ("benchmark-dense",),
        ("train", "checkpoint", "acceptance", "benchmark-dense", "benchmark-speculator"),
        ("acceptance", "benchmark-dense", "benchmark-speculator", "train"),
    ],
)
def test_missing_parts_leave_a_sound_page(make_run, without):
    html = build_page(make_run(without=without)).html
    text = Reader(html).text
    assert ("How fast it is served" in text) == ("benchmark-speculator" not in without)
    assert ("How much of the draft is accepted" in text) == ("acceptance" not in without)
    assert ("Held-out answers" in text) == ("acceptance" not in without)
    assert "None" not in text
    assert "Undefined" not in text
    assert "nan" not in text.split()


def test_a_run_whose_states_were_made_while_training_has_no_box_for_them(make_run):
    run = make_run(without=("hidden_states",))
    plan = json.loads((run / "plan.json").read_text())
    plan["steps"] = [step for step in plan["steps"] if step["name"] != "hidden_states"]
    for step in plan["steps"]:
        step["inputs"] = [name for name in step["inputs"] if name != "hidden_states"]
    (run / "plan.json").write_text(json.dumps(plan))
    result = run / "steps/train/result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "data_wait": 0.25}))
    assert "hidden_states" not in collect(run)["steps"]
    text = Reader(build_page(run).html).text
    assert "hidden" not in text
    assert "Share of the training time in which the next batch was not yet there." in text
    assert "0.250" in text


def test_a_failed_run_has_a_page_that_says_what_failed(make_run):
    run = make_run(failed="train")
    reader = Reader(build_page(run).html)
    assert "The step train failed" in reader.text
    assert "loss is not a number at step 12 <nan>" in reader.text
    assert "This run failed; the page shows how far it came." in reader.text
    assert collect(run)["status"] == "failed"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        build_page(tmp_path)


def test_a_walk_estimate_is_never_shown_as_a_measurement(make_run):
    results = collect(make_run(without=("acceptance",)))
    assert [card.label for card in cards(results)][-1] == "Walk estimate"
    assert "Acceptance length" not in [card.label for card in cards(results)]


def test_samples_mark_what_was_drafted_and_lose_no_character(make_run):
    run = RunFolder.open(make_run())
    stored = run.json("acceptance", "acceptance.json")["samples"]
    for sample, original in zip(samples(run), stored, strict=True):
        assert "".join(before + text for before, text, _ in sample.pieces) == "".join(
            piece["text"] for piece in original["pieces"]
        )
        assert [accepted for _, _, accepted in sample.pieces] == [piece["accepted"] for piece in original["pieces"]]


def test_curves_tell_training_from_held_out():
    found = curves(
        [
            {"at": 1, "loss": 3.0, "accuracy_1": 0.1},
            {"at": 2, "holdout_loss": 2.5, "holdout_accuracy_2": 0.2, "holdout_accuracy_1": 0.3},
            {"at": 2, "holdout_walk_estimate": 1.4, "holdout_walk_1": 0.4},
        ]
    )
    assert found.loss == [(1.0, 3.0)]
    assert found.holdout_loss == [(2.0, 2.5)]
    assert found.accuracy == {"1": [(1.0, 0.1)]}
    assert found.holdout_accuracy == {"1": [(2.0, 0.3)], "2": [(2.0, 0.2)]}
    assert found.walk == [(2.0, 1.4)]


def test_positions_no_round_came_to_are_dashes(make_run):
    run = make_run()
    place = run / "steps" / "acceptance" / "acceptance.json"
    place.write_text(place.read_text().replace("0.318, 0.262", "0.0, null"), encoding="utf-8")
    text = Reader(build_page(run).html).text
    assert "Acceptance at position 3 Accepted share of those" in text
    assert "–" in text.split("Acceptance at position 3")[1].split("19.0")[0]


def test_drafts_that_end_early_show_what_they_proposed(make_run):
    run = make_run()
    assert "Proposed tokens" not in Reader(build_page(run).html).text
    place = run / "steps" / "acceptance" / "acceptance.json"
    told = json.loads(place.read_text(encoding="utf-8"))
    next(iter(told["suites"]["holdout"].values())).update(least_confidence=0.3, proposed_length=2.345)
    place.write_text(json.dumps(told), encoding="utf-8")
    text = Reader(build_page(run).html).text
    assert "Proposed tokens Tokens proposed per round, on average, where drafts end early. 2.3" in text


def test_a_diverged_training_still_has_curves():
    found = curves([{"at": 1, "loss": 3.0}, {"at": 2, "loss": float("nan")}, {"at": 3, "loss": None}])
    assert found.loss == [(1.0, 3.0)]


def test_unequal_answers_are_not_called_lossless(make_run):
    results = collect(make_run())
    assert cards(results)[0].note == "64 held-out prompts, temperature 0, lossless"
    results["acceptance"]["holdout"] |= {"lossless": False, "equal_prompts": 63}
    assert cards(results)[0].note.endswith("temperature 0, 63 answers equal to plain greedy decoding")


@pytest.mark.parametrize(
    ("accepted", "length"),
    [([False], None), ([False, True, True, False, False], 2.0), ([False, True, False, True], 1.5), ([], None)],
)
def test_a_sample_s_length_counts_rounds_as_the_measurement_does(make_run, accepted, length):
    run = make_run()
    pieces = [{"text": "a", "accepted": one} for one in accepted]
    (run / "steps/acceptance/acceptance.json").write_text(json.dumps({"samples": [{"prompt": "p", "pieces": pieces}]}))
    assert samples(RunFolder.open(run))[0].length == length
