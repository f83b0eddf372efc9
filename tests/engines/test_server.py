"""The server as its users meet it: the real openai client, raw HTTP for what that client would never send."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import openai
import pytest
import torch
import uvicorn

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.network import Eagle3Network
from speculators.checkpoints.save import VerifierName, speculators_config, write_checkpoint
from speculators.engines.prometheus import parse
from speculators.engines.served import ServeOptions, open_served
from speculators.engines.server import Served, make_app
from speculators.verifiers.random_model import write_random_model

SHAPE = SimpleNamespace(
    layers=4, hidden_size=64, intermediate_size=128, attention_heads=4, key_value_heads=2, vocab_size=300, seed=0
)
LONG = [{"role": "user", "content": "Tell me a long story about the sea."}]


@dataclass
class Running:
    """A server in a thread of this process, and its insides for looking at."""

    url: str
    served: Served
    client: openai.OpenAI

    def metrics(self) -> dict[str, list[float]]:
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            return parse(answer.read().decode())

    def post(self, path: str, body: bytes) -> tuple[int, dict]:
        request = urllib.request.Request(self.url + path, data=body, headers={"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def becomes_idle(self) -> bool:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if not (self.served.scheduler.running or self.served.scheduler.waiting):
                return True
            time.sleep(0.02)
        return False


@pytest.fixture(scope="module")
def verifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "verifier"
    write_random_model(SHAPE, directory)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, verifier):
    torch.manual_seed(1)
    config = Eagle3Config(
        hidden_size=64, intermediate_size=128, attention_heads=4, key_value_heads=2, head_dim=16,
        vocab_size=300, draft_vocab_size=300, aux_layers=(1, 2, 3), rms_norm_eps=1e-5, max_position_embeddings=2048,
        rope={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("models") / "draft"
    whole = speculators_config(
        config.to_config_json(), VerifierName(str(verifier), ("LlamaForCausalLM",)), 3, "float32"
    )
    write_checkpoint(directory, whole, Eagle3Network(config).state_dict())
    return directory


def run_server(served: Served):
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(served), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    while not server.started:
        time.sleep(0.01)
    yield Running(url, served, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0))
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def dense(verifier):
    yield from run_server(open_served(verifier, ServeOptions(model_name="m", dtype="float32", device="cpu", slots=4)))


@pytest.fixture(scope="module")
def drafting(checkpoint):
    yield from run_server(open_served(checkpoint, ServeOptions(model_name="m", dtype="float32", device="cpu", slots=4)))


def chat(server: Running, **options):
    defaults = {"model": "m", "messages": LONG, "temperature": 0, "max_tokens": 24}
    return server.client.chat.completions.create(**{**defaults, **options})


def test_the_model_is_listed(dense):
    assert [model.id for model in dense.client.models.list()] == ["m"]


def test_a_chat_answer_has_text_usage_and_a_reason(dense):
    answer = chat(dense, max_tokens=8, extra_body={"ignore_eos": True})
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_streamed_pieces_make_up_the_whole_answer(dense):
    whole = chat(dense).choices[0].message.content
    chunks = list(chat(dense, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage.completion_tokens == chat(dense).usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")


def test_greedy_answers_are_the_same_with_a_draft(dense, drafting):
    for prompt in ("a", "The sea, the sea!", "x" * 50):
        messages = [{"role": "user", "content": prompt}]
        options = {"messages": messages, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
        assert chat(drafting, **options).choices[0].message.content == chat(dense, **options).choices[0].message.content


def test_completions_take_texts_lists_and_token_ids(dense):
    def texts(prompt):
        answer = dense.client.completions.create(model="m", prompt=prompt, temperature=0, max_tokens=6)
        return [choice.text for choice in answer.choices]

    one, two = texts("abc"), texts("xyz")
    assert texts(["abc", "xyz"]) == one + two
    assert texts(list(b"abc")) == one, "ids 0..255 are the bytes of the tiny tokenizer"
    streamed = dense.client.completions.create(model="m", prompt="abc", temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == one[0]


def test_a_seed_makes_sampled_answers_the_same_beside_any_others(dense):
    alone = chat(dense, temperature=1.0, seed=7).choices[0].message.content
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(chat, dense, temperature=1.0, seed=seed) for seed in (1, 2, 7, 4, 5, 7)]
        answers = [other.result().choices[0].message.content for other in others]
    assert answers[2] == answers[5] == alone
    assert len(set(answers)) > 1


@pytest.mark.parametrize("streams", [False, True])
def test_nothing_at_or_after_a_stop_text_is_shown(dense, streams):
    whole = chat(dense, max_tokens=30, extra_body={"ignore_eos": True}).choices[0].message.content
    stop = whole[7:10]
    expected = whole[: whole.index(stop)]
    answer = chat(dense, max_tokens=30, stop=[stop, "never this"], stream=streams, extra_body={"ignore_eos": True})
    if streams:
        chunks = [chunk for chunk in answer if chunk.choices]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens < 30
    assert dense.becomes_idle(), "a stopped request frees its slot"


def test_a_client_that_goes_away_frees_its_slot(dense):
    for _ in range(5):  # more than there are slots
        stream = chat(dense, max_tokens=1900, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.response.close()
    assert dense.becomes_idle()
    with socket.create_connection(("127.0.0.1", int(dense.url.rsplit(":", 1)[1]))) as raw:
        body = json.dumps({"model": "m", "messages": LONG, "max_tokens": 1900, "ignore_eos": True}).encode()
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        while not dense.served.scheduler.running:
            time.sleep(0.01)
    assert dense.becomes_idle(), "also when the answer is not streamed"


def test_many_clients_at_once_are_all_answered_as_if_alone(drafting):
    prompts = ["a", "bb" * 20, "hello", "what?", "z" * 77, "one two", "q", "end"]

    def ask(prompt):
        return chat(drafting, messages=[{"role": "user", "content": prompt}]).choices[0].message.content

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, prompts)) == alone


def test_the_counters_agree_with_each_other_and_with_usage(drafting):
    before = drafting.metrics()
    answer = chat(drafting, max_tokens=50, extra_body={"ignore_eos": True})
    after = drafting.metrics()

    def grown(name):
        return [end - start for start, end in zip(before[name], after[name], strict=True)]

    assert grown("generation_tokens_total") == [answer.usage.completion_tokens]
    assert grown("prompt_tokens_total") == [answer.usage.prompt_tokens]
    (drafts,), (accepted,) = grown("spec_decode_num_drafts_total"), grown("spec_decode_num_accepted_tokens_total")
    # A round commits what was accepted and one more. The first token comes before; the last may need no proposal.
    assert drafts + accepted in (48, 49)
    positions = grown("spec_decode_num_accepted_tokens_per_pos_total")
    assert sum(positions) == accepted
    assert positions == sorted(positions, reverse=True)
    assert accepted <= sum(grown("spec_decode_num_draft_tokens_total")) <= 3 * drafts


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/chat/completions", b"{", 400, "the body is not JSON"),
        ("/v1/chat/completions", b"[]", 400, "the body must be a JSON object"),
        ("/v1/chat/completions", b"{}", 400, "`messages` must be a list with at least one message"),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}]}', 400, "`messages[0].content` must be a text"),
        ("/v1/chat/completions", b'{"messages": [], "model": "gpt"}', 404, "this server has `m`"),
        ("/v1/completions", b'{"prompt": []}', 400, "`prompt` must be a text, a list of token ids"),
        ("/v1/completions", b'{"prompt": [300]}', 400, "`prompt` holds a token id outside 0..299"),
        ("/v1/completions", b'{"prompt": "a", "n": 2}', 400, "`n` must be 1"),
        ("/v1/completions", b'{"prompt": "a", "logprobs": 1}', 400, "`logprobs` is not supported"),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": 0}', 400, "`max_tokens` is 0; it must be an integer of at"),
        ("/v1/completions", b'{"prompt": "a", "max_tokens": 9999}', 400, "the context holds 2048 tokens"),
        (
            "/v1/completions",
            b'{"prompt": "a", "temperature": "hot"}',
            400,
            "`temperature` is 'hot'; it must be a number",
        ),
        ("/v1/completions", b'{"prompt": "a", "top_p": 0}', 400, "`top_p` is 0; it must be a number above 0"),
        ("/v1/completions", b'{"prompt": "a", "stream": 1}', 400, "`stream` is 1; it must be true or false"),
        ("/v1/completions", b'{"prompt": "a", "stop": 3}', 400, "`stop` must be a text or a list"),
        ("/v1/nothing", b"{}", 404, "/v1/nothing: Not Found"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_words(dense, path, body, status, says):
    code, answer = dense.post(path, body)
    assert code == status
    assert says in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}
