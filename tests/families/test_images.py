"""Verifiers that read images give, for texts with them, what transformers' own processor and model give."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import (
    IMAGE,
    IMAGE_ID,
    TEMPLATE,
    VIDEO_ID,
    asked,
    draw,
    expanded,
    image_processor,
    shown,
    tokenizer,
    with_sight,
)
from PIL import Image
from transformers import Qwen3VLProcessor

from speculators.data.tokens import Reading, TokenDataset
from speculators.decoding.loop import Decoder
from speculators.decoding.request import Request
from speculators.engines.extraction import extract
from speculators.engines.states_wanted import states_wanted
from speculators.engines.transformers import VerifierModel
from speculators.engines.vllm import environment
from speculators.engines.vllm.environment import VllmEnvironment
from speculators.errors import MachineError, UsageError
from speculators.pipeline.step import Context
from speculators.recipe.load import load_recipe
from speculators.steps import acceptance, answers, checkpoint, hidden_states, prompts, tokens, train, vocabulary
from speculators.verifiers.images import ImageReader, check_reads_images
from speculators.verifiers.tokenizer import ChatTokenizer

ONLY = ("qwen3-vl", "qwen3-vl-moe", "qwen3.5")
LAYERS = (1, 2, 4)


class WithoutVideos(Qwen3VLProcessor):
    """transformers' processor without its part for videos, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


@pytest.fixture(scope="session")
def processor() -> Any:
    """transformers' own for the family."""
    words = tokenizer()
    words.image_token, words.image_token_id = IMAGE, IMAGE_ID
    return WithoutVideos(image_processor(), words, None, chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def seeing(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's checkpoint with what reading images needs beside the weights."""
    return with_sight(checkpoint, tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def reader(seeing: Path) -> ImageReader:
    return ImageReader(seeing)


@pytest.fixture(scope="session")
def verifier(seeing: Path) -> VerifierModel:
    return VerifierModel.load(seeing, "float32", aux_layers=LAYERS, reads_images=True)


def own_inputs(processor: Any, images: Sequence[Path]) -> Any:
    """What transformers' processor makes of the same conversation."""
    text = processor.tokenizer.apply_chat_template(shown(images), tokenize=False)
    return processor(text=[text], images=[Image.open(one) for one in images], return_tensors="pt")


def own_states(reference: Any, inputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and the streams entering each layer and the final norm, by transformers' own forward.

    What is added for images between two layers (deepstack) is in the stream that enters the second.
    """
    streams: list[torch.Tensor] = []
    decoder = reference.get_decoder()
    hooks = [
        module.register_forward_pre_hook(lambda module, args: streams.append(args[0]))
        for module in (*decoder.layers, decoder.norm)
    ]
    with torch.no_grad():
        out = reference(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return out.logits, streams


def close(found: torch.Tensor, expected: torch.Tensor, true: torch.Tensor) -> None:
    """As near to what float64 gives as transformers' own float32 is; linear layers enlarge what either rounds."""
    theirs = float((expected.double() - true).abs().max())
    torch.testing.assert_close(found.double(), true, rtol=1e-3, atol=max(3e-4, 4 * theirs))


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_ids_and_pixels_are_those_of_the_processor_and_images_are_never_learnt(
    seeing: Path, reader: ImageReader, processor: Any, pictures: list[Path], train_on: str
) -> None:
    ids, mask = expanded(seeing, reader, pictures, train_on=train_on)
    own = own_inputs(processor, pictures)
    assert ids == own["input_ids"][0].tolist()
    inputs = reader.inputs(pictures)
    assert torch.equal(inputs["pixel_values"], own["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], own["image_grid_thw"])
    assert torch.equal(reader.token_types(own["input_ids"]), own["mm_token_type_ids"])
    assert ids.count(IMAGE_ID) == 6 + 3 + 12
    assert not any(counts for number, counts in zip(ids, mask, strict=True) if number == IMAGE_ID)
    learnt = bytes(number for number, counts in zip(ids, mask, strict=True) if counts and number < 256).decode()
    assert learnt == "A ball.The same, larger." or train_on == "all"


def test_images_lie_upright_and_on_white_as_in_vllm(reader: ImageReader, tmp_path: Path) -> None:
    ramp = Image.linear_gradient("L").resize((96, 64))
    upright = Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.ROTATE_180), ramp)).crop((0, 0, 96, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.webp", lossless=True, exif=exif)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "lying.jpg", exif=exif)
    clear = Image.new("RGBA", (96, 64), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 48, 64))
    white = Image.new("RGB", (96, 64), "white")
    white.paste((0, 0, 255), (0, 0, 48, 64))
    clear.save(tmp_path / "clear.png")
    few = white.quantize(4)
    few.save(tmp_path / "few.png", transparency=few.getpixel((60, 5)))
    gray = Image.merge("LA", (Image.new("L", (96, 64)), Image.new("L", (96, 64), 51)))  # black, four fifths transparent
    gray.save(tmp_path / "gray.png")
    own = image_processor()
    for name, expected in (
        ("lying.webp", upright),
        ("clear.png", white),
        ("few.png", white),
        ("gray.png", Image.new("RGB", (96, 64), (204, 204, 204))),
    ):
        assert torch.equal(
            reader.inputs([tmp_path / name])["pixel_values"], own([expected], return_tensors="pt")["pixel_values"]
        ), name
    assert (
        reader.grids([tmp_path / "lying.jpg"]).tolist()
        == own([upright], return_tensors="pt")["image_grid_thw"].tolist()
    )


def test_positions_are_those_of_the_models_own_rule(
    reader: ImageReader, reference: Any, processor: Any, pictures: list[Path]
) -> None:
    own = own_inputs(processor, pictures)
    expected, deltas = reference.model.get_rope_index(
        own["input_ids"], mm_token_type_ids=own["mm_token_type_ids"], image_grid_thw=own["image_grid_thw"]
    )
    found = reader.positions(own["input_ids"], own["image_grid_thw"])
    assert torch.equal(found, expected)
    assert int(deltas) < 0, "a text with images is shorter in positions than in tokens"
    assert torch.equal(found[0, 0, -20:], found[1, 0, -20:])


def test_hidden_states_are_those_of_transformers(
    verifier: VerifierModel, reference: Any, processor: Any, pictures: list[Path]
) -> None:
    texts = [own_inputs(processor, pictures), own_inputs(processor, pictures[:1])]
    plain = torch.randint(3, 250, (1, 30), generator=torch.Generator().manual_seed(0))
    readings = [
        Reading(text["input_ids"][0], torch.ones(text["input_ids"].shape[1], dtype=torch.bool), images=tuple(images))
        for text, images in zip([*texts, {"input_ids": plain}], [pictures, pictures[:1], ()], strict=True)
    ]
    found = {states.number: states for states in extract(verifier, readings, batch_tokens=4096)}
    exact = copy.deepcopy(reference).double()
    exact.set_experts_implementation("eager")  # the others have no float64
    for number, text in enumerate([*texts, {"input_ids": plain}]):
        logits, streams = own_states(reference, text)
        _, true = own_states(exact, text)
        close(found[number].last, streams[4][0], true[4][0])
        for layer, aux in zip(LAYERS, found[number].aux.split(true[0].shape[-1], -1), strict=True):
            close(aux, streams[layer][0], true[layer][0])
        assert torch.equal(found[number].argmax.long(), logits[0].argmax(-1))
    blind = verifier.forward(texts[1]["input_ids"], None, torch.tensor([0]), None)
    assert not torch.allclose(found[1].last, blind.last[0], atol=1e-2), "the images would not be missed"


def written(verifier: VerifierModel, requests: Sequence[Request]) -> list[list[int]]:
    """The answers, decoded together."""
    decoder = Decoder(verifier, slots=len(requests), capacity=120)
    texts: dict[int, list[int]] = {decoder.admit(request): [] for request in requests}
    while not decoder.is_idle:
        for commit in decoder.step():
            texts[commit.slot] += commit.tokens
    return list(texts.values())


def test_answers_about_images_are_what_transformers_would_choose(
    verifier: VerifierModel, reference: Any, seeing: Path, reader: ImageReader, pictures: list[Path]
) -> None:
    plain = Request(ChatTokenizer.load(seeing).render([{"role": "user", "content": "Why?"}]), 10)
    requests = [asked(seeing, reader, pictures), plain, asked(seeing, reader, pictures[2:])]
    for request, answer in zip(requests, written(verifier, requests), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *answer]])
        seen = {"mm_token_type_ids": reader.token_types(ids), **reader.inputs(request.images)} if request.images else {}
        with torch.no_grad():
            logits = reference(input_ids=ids, use_cache=False, **seen).logits[0]
        logits[:, [IMAGE_ID, VIDEO_ID]] = -torch.inf
        assert logits.argmax(-1)[len(request.prompt_ids) - 1 : -1].tolist() == answer


def test_a_text_is_cut_before_an_image_that_does_not_fit(
    seeing: Path, reader: ImageReader, pictures: list[Path]
) -> None:
    ids, _ = expanded(seeing, reader, pictures)
    places = [place for place, number in enumerate(ids) if number == IMAGE_ID]
    assert reader.cut(ids, pictures, len(ids)) == (len(ids), 3)
    assert reader.cut(ids, pictures, places[8] + 1) == (places[8] + 1, 2)
    assert reader.cut(ids, pictures, places[8]) == (places[6], 1)
    assert reader.cut(ids, pictures, places[0] + 1) == (places[0], 0)


def test_what_was_expanded_is_found_again(seeing: Path, reader: ImageReader, pictures: list[Path]) -> None:
    ids, _ = ChatTokenizer.load(seeing).render_with_mask(shown(pictures))
    whole, _ = reader.expand(ids, [0] * len(ids), pictures)
    assert reader.collapse(whole, pictures) == ids


def test_a_template_that_hides_an_image_is_refused(seeing: Path, reader: ImageReader, pictures: list[Path]) -> None:
    with pytest.raises(UsageError, match="the chat template wrote 1 places for 2 images"):
        reader.expand([1, IMAGE_ID, 2], [0, 0, 1], pictures[:2])


SETS = [
    "algorithm.aux_layers=[1, 2, 3]",
    "algorithm.draft_vocab_size=128",
    "algorithm.training_time_test.steps=2",
    "data.hidden_states.dtype=float32",
    "data.regenerate.max_new_tokens=12",
    "data.max_length=200",
    "eval.acceptance.max_new_tokens=12",
    "eval.acceptance.speculative_tokens=2",
    "train.tokens_per_step=256",
    "train.epochs=2",
    "train.precision=float32",
]


@pytest.fixture
def rows(pictures: list[Path], tmp_path: Path) -> Path:
    """A data file with pictures beside it."""
    written = []
    for number, said in enumerate(("What is it?", "Which colour?", "How large?", "Why?", "And then?", "Who drew it?")):
        shutil.copy(pictures[number % 3], tmp_path / f"{number}.png")
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": said}]
        messages = [{"role": "user", "content": content if number < 5 else said}]
        written.append({"messages": messages, "split": "holdout" if number == 3 else "train"})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in written))
    return file


@pytest.fixture
def artifact(seeing: Path, tmp_path: Path) -> Path:
    """The checkpoint as a verifier artifact."""
    folder = tmp_path / "verifier"
    folder.mkdir()
    record = {"source": "tiny", "digest": "tree:0", "location": {"directory": str(seeing)}}
    (folder / "verifier.json").write_text(json.dumps(record))
    return folder


def loaded(rows: Path, *sets: str) -> SimpleNamespace:
    recipe = load_recipe("tiny", sets=[*SETS, f"data.sources=[{{file: {rows}}}]", *sets]).recipe
    return SimpleNamespace(**{name: getattr(recipe, name) for name in type(recipe).__struct_fields__}, whole=recipe)


def context(recipe: SimpleNamespace, output: Path, **inputs: Path) -> Context:
    output.mkdir()
    report = SimpleNamespace(progress=lambda *_: None, metric=lambda *_: None, message=print)
    return Context(config=recipe, inputs=inputs, output=output, report=report)


def test_images_are_refused_for_an_old_vllm_and_for_verifiers_that_do_not_see(
    checkpoint: Path, artifact: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = VllmEnvironment(tmp_path / "python", "0.31.2", "2", "5", cpu=False)
    monkeypatch.setattr(environment, "find_vllm", lambda: old)
    on_vllm = context(loaded(rows, "verifier.engine={type: vllm}"), tmp_path / "vllm", verifier=artifact)
    with pytest.raises(MachineError, match=r"vLLM 0.31.2 in .* takes none beside token ids; 0.32 does"):
        prompts.STEP.run(on_vllm)
    record = json.loads((artifact / "verifier.json").read_text())
    (artifact / "verifier.json").write_text(json.dumps({**record, "location": {"directory": str(checkpoint)}}))
    with pytest.raises(UsageError, match=r"has no settings for its image processor"):
        prompts.STEP.run(context(loaded(rows), tmp_path / "blind", verifier=artifact))
    with pytest.raises(UsageError, match=r"read for verifiers of the types qwen3_vl, .*; this one is llama"):
        check_reads_images("llama")


def test_a_greedy_answer_behind_a_cut_image_is_no_longer_in_the_document(
    artifact: Path, rows: Path, pictures: list[Path], seeing: Path, reader: ImageReader, tmp_path: Path
) -> None:
    answered = tmp_path / "answered"
    (answered / "images").mkdir(parents=True)
    for picture in pictures:
        shutil.copy(picture, answered / "images")
    whole, written = asked(seeing, reader, pictures).prompt_ids, []
    for identity, prompt in (("whole", whole), ("long", [*([65] * 60), *whole])):
        record = {"id": identity, "messages": shown(pictures[:2])[:1], "split": "train", "sample": 0}
        written.append({**record, "prompt_token_ids": list(prompt), "response_token_ids": [66, 67]})
    (answered / "answers-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    length = 60 + whole.index(IMAGE_ID) + 2
    assert length > len(whole) + 2, "the first document is whole"
    recipe = loaded(rows, "data.train_on=all", "data.regenerate.temperature=0", f"data.max_length={length}")
    step = tokens.steps(recipe.whole)[0]
    step.run(context(recipe, tmp_path / "tokens", verifier=artifact, answers=answered))
    documents = TokenDataset.open(tmp_path / "tokens")
    assert documents.lengths.tolist() == [len(whole) + 2, length - 2]
    assert documents.greedy_from.tolist() == [len(whole), length - 2]


def test_a_draft_learns_from_texts_with_images_and_speaks_for_its_verifier(
    artifact: Path, rows: Path, tmp_path: Path, reader: ImageReader
) -> None:
    recipe, verifier = loaded(rows), artifact

    def run(step: Any, **inputs: Path) -> Path:
        step.run(context(recipe, tmp_path / step.name, **inputs))
        return tmp_path / step.name

    asked = run(prompts.STEP, verifier=verifier)
    assert len(list((asked / "images").iterdir())) == 3, "each picture is kept once"
    answered = run(answers.steps(recipe.whole)[0], verifier=verifier, prompts=asked)
    words = run(tokens.steps(recipe.whole)[0], verifier=verifier, answers=answered)
    shutil.rmtree(answered / "images")  # each artifact has all that it needs

    documents = TokenDataset.open(words)
    assert sorted(map(len, documents.images.values())) == [1] * 5
    for number in range(len(documents)):
        ids, mask = documents.document(number)
        assert not mask[ids == IMAGE_ID].any()
        if number not in documents.images:
            assert torch.equal(documents.rotary_positions(number), torch.arange(len(ids)))
            continue
        inputs = reader.inputs(documents.images[number])
        assert torch.equal(
            documents.rotary_positions(number), reader.positions(ids[None], inputs["image_grid_thw"])[0, 0]
        )
    shifted = [documents.rotary_positions(number)[-1] < len(documents.document(number)[0]) - 1 for number in range(6)]
    assert sum(map(bool, shifted)) >= 3, "images that are higher or wider than one token change what comes after"

    with pytest.raises(UsageError, match=r"`algorithm.type: mtp` learns from text alone"):
        states_wanted(context(recipe, tmp_path / "other", verifier=verifier), documents, "mtp")

    known = run(vocabulary.STEP, tokens=words)
    states = run(hidden_states.steps(recipe.whole)[0], verifier=verifier, tokens=words)
    inputs = {"verifier": verifier, "tokens": words, "vocabulary": known, "hidden_states": states}
    trained = run(train.steps(recipe.whole)[0], **inputs)
    assert (trained / "metrics.jsonl").read_text()
    saved = run(checkpoint.steps(recipe.whole)[0], verifier=verifier, train=trained)
    layer = json.loads((saved / "config.json").read_text())["transformer_layer_config"]
    assert not any(name.startswith("mrope") for name in layer["rope_parameters"])
    measured = run(acceptance.steps(recipe.whole)[0], verifier=verifier, prompts=asked, checkpoint=saved)
    figures = json.loads((measured / "acceptance.json").read_text())["suites"]["holdout"]["T0.0"]
    assert figures["lossless"] is True
    assert figures["rounds"]
