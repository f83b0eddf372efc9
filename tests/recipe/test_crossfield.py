"""Recipes whose fields do not fit each other or the verifier, and the exact words."""

# Messages stand here as they are printed.
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

import pytest

REFUSED = [
    pytest.param(
        "verifier: {dtype: float32}\n",
        """\
bad.yaml:6:1: error: `verifier` names no model
     6 | verifier: {dtype: float32}
       | ^ set `verifier.model` or `verifier.random`
""",
        id="no model",
    ),
    pytest.param(
        "verifier: {random: {}, model: Qwen/Qwen3-8B}\n",
        """\
bad.yaml:6:12: error: `verifier` has both `model` and `random`
     6 | verifier: {random: {}, model: Qwen/Qwen3-8B}
       |            ^ remove one of them; a value from a base recipe is taken back with null
""",
        id="two models",
    ),
    pytest.param(
        "verifier: {model: 'wheel://a==1/b.gguf'}\n",
        """\
bad.yaml:6:12: error: `verifier.sha256` is missing
     6 | verifier: {model: 'wheel://a==1/b.gguf'}
       |            ^ a file out of a wheel is pinned by its digest
""",
        id="a wheel without a digest",
    ),
    pytest.param(
        "verifier: {model: 'wheel://a/b.gguf'}\n",
        """\
bad.yaml:6:12: error: `verifier.model` is 'wheel://a/b.gguf'
     6 | verifier: {model: 'wheel://a/b.gguf'}
       |            ^ write wheel://DISTRIBUTION==VERSION/PATH/INSIDE.gguf
""",
        id="a wheel without a version",
    ),
    pytest.param(
        "verifier: {model: 'https://example.org/model'}\n",
        """\
bad.yaml:6:12: error: `verifier.model` is 'https://example.org/model'
     6 | verifier: {model: 'https://example.org/model'}
       |            ^ allowed: a hub id, a directory, a .gguf file, wheel://...
""",
        id="a model from anywhere",
    ),
    pytest.param(
        """\
verifier:
  model: a/b
  sha256: 0123abcd0123abcd0123abcd0123abcd0123abcd0123abcd0123abcd0123abcd
""",
        """\
bad.yaml:8:3: error: `verifier.sha256` pins a GGUF file, and there is none
     8 |   sha256: 0123abcd0123abcd0123abcd0123abcd0123abcd0123abcd0123abcd0123abcd
       |   ^ a hub model is pinned by `verifier.revision`
""",
        id="a digest for a hub model",
    ),
    pytest.param(
        "verifier: {random: {}, revision: main}\n",
        """\
bad.yaml:6:24: error: `verifier.revision` is for models of the hub
     6 | verifier: {random: {}, revision: main}
       |                        ^ a GGUF file is pinned by `verifier.sha256`
""",
        id="a revision for random weights",
    ),
    pytest.param(
        "verifier: {model: ./no.gguf}\n",
        """\
bad.yaml:6:12: error: there is no ./no.gguf
     6 | verifier: {model: ./no.gguf}
       |            ^ looked for FOLDER/no.gguf
""",
        id="a file that is not there",
    ),
    pytest.param(
        "verifier: {model: a/b, trust_remote_code: true}\n",
        """\
bad.yaml:6:24: error: `verifier.trust_remote_code` needs a pinned `verifier.revision`
     6 | verifier: {model: a/b, trust_remote_code: true}
       |                        ^ name the commit whose code you have read
""",
        id="code of a model at no fixed commit",
    ),
    pytest.param(
        "verifier: {random: {hidden_size: 60}}\n",
        """\
bad.yaml:6:21: error: `verifier.random.hidden_size` is 60, no even multiple of the 4 attention heads
     6 | verifier: {random: {hidden_size: 60}}
       |                     ^ such as 64
""",
        id="heads that do not fit",
    ),
    pytest.param(
        "verifier: {random: {key_value_heads: 3}}\n",
        """\
bad.yaml:6:21: error: `verifier.random.key_value_heads` is 3, which does not divide the 4 attention heads
     6 | verifier: {random: {key_value_heads: 3}}
       |                     ^
""",
        id="key-value heads that do not fit",
    ),
    pytest.param(
        "data: {sources: [{samples: 4}]}\n",
        """\
bad.yaml:5:18: error: `data.sources[0]` names no source
     5 | data: {sources: [{samples: 4}]}
       |                  ^ set one of `file`, `dataset` and `synthesize`
""",
        id="a source of nothing",
    ),
    pytest.param(
        "data: {sources: [{synthesize: magpie, samples: 4, dataset: a/b}]}\n",
        """\
bad.yaml:5:18: error: `data.sources[0]` has both `dataset` and `synthesize`
     5 | data: {sources: [{synthesize: magpie, samples: 4, dataset: a/b}]}
       |                  ^ make two sources of them
""",
        id="a source of two things",
    ),
    pytest.param(
        "data: {sources: [{synthesize: magpie}]}\n",
        """\
bad.yaml:5:18: error: `data.sources[0]` does not say how many prompts to synthesise
     5 | data: {sources: [{synthesize: magpie}]}
       |                  ^ add `samples`, such as samples: 400
""",
        id="endless synthesis",
    ),
    pytest.param(
        "data: {sources: [{synthesize: magpie, samples: 4, split: train}]}\n",
        """\
bad.yaml:5:51: error: `split` is for data sets, and `data.sources[0]` is none
     5 | data: {sources: [{synthesize: magpie, samples: 4, split: train}]}
       |                                                   ^ remove it
""",
        id="a split of no data set",
    ),
    pytest.param(
        "data: {sources: [{file: traffic.jsonl}]}\n",
        """\
bad.yaml:5:19: error: there is no file traffic.jsonl
     5 | data: {sources: [{file: traffic.jsonl}]}
       |                   ^ looked for FOLDER/traffic.jsonl
""",
        id="a file of prompts that is not there",
    ),
    pytest.param(
        "data: {sources: [{synthesize: magpie, samples: 4}], regenerate: null}\n",
        """\
bad.yaml:5:18: error: a synthesised prompt has no answer, and `data.regenerate` is null
     5 | data: {sources: [{synthesize: magpie, samples: 4}], regenerate: null}
       |                  ^ let the verifier answer: remove `regenerate: null`
""",
        id="prompts without answers",
    ),
    pytest.param(
        """\
data:
  sources: [{synthesize: magpie, samples: 4}]
  regenerate: {temperature: 0, samples_per_prompt: 4}
""",
        """\
bad.yaml:7:32: error: `data.regenerate.samples_per_prompt` is 4, but greedy answers are all alike
     7 |   regenerate: {temperature: 0, samples_per_prompt: 4}
       |                                ^ set `data.regenerate.temperature` above 0
""",
        id="many greedy answers",
    ),
    pytest.param(
        """\
data:
  sources: [{synthesize: magpie, samples: 4}]
  regenerate: {max_new_tokens: 256}
  max_length: 256
""",
        """\
bad.yaml:7:16: error: `data.regenerate.max_new_tokens` is 256, which leaves no room for prompts in `data.max_length`, 256
     7 |   regenerate: {max_new_tokens: 256}
       |                ^
""",
        id="answers as long as documents",
    ),
    pytest.param(
        "data: {sources: [{synthesize: magpie, samples: 4}], max_length: 4096}\n",
        """\
bad.yaml:5:53: error: `data.max_length` is 4096, but the random verifier reads at most 2048 tokens
     5 | data: {sources: [{synthesize: magpie, samples: 4}], max_length: 4096}
       |                                                     ^
""",
        id="documents longer than the verifier reads",
    ),
    pytest.param(
        "algorithm: {type: eagle3, aux_layers: [3, 2, 1]}\n",
        """\
bad.yaml:6:27: error: `algorithm.aux_layers` must ascend
     6 | algorithm: {type: eagle3, aux_layers: [3, 2, 1]}
       |                           ^ write [1, 2, 3]
""",
        id="layers out of order",
    ),
    pytest.param(
        "algorithm: {type: eagle3, aux_layers: [1, 2, 40], draft_vocab_size: 300}\n",
        """\
bad.yaml:6:46: error: `algorithm.aux_layers[2]` is 40, but the random verifier has 4 layers (0..4)
     6 | algorithm: {type: eagle3, aux_layers: [1, 2, 40], draft_vocab_size: 300}
       |                                              ^
""",
        id="a layer that does not exist",
    ),
    pytest.param(
        "algorithm: {type: eagle3, draft_vocab_size: 300}\n",
        """\
bad.yaml:6:1: error: `algorithm.aux_layers` is auto, but the random verifier has only 4 layers
     6 | algorithm: {type: eagle3, draft_vocab_size: 300}
       | ^ name them, 0 to 4
""",
        id="a choice of layers that there are too few for",
    ),
    pytest.param(
        "algorithm: {type: eagle3, aux_layers: [1, 2, 3]}\n",
        """\
bad.yaml:6:1: error: `algorithm.draft_vocab_size` is 32000, but the random verifier has 512 tokens
     6 | algorithm: {type: eagle3, aux_layers: [1, 2, 3]}
       | ^ null takes the verifier's whole vocabulary
""",
        id="a draft vocabulary larger than the verifier's",
    ),
    pytest.param(
        "algorithm: {type: eagle3, loss: {kl: 0}}\n",
        """\
bad.yaml:6:27: error: every weight of `algorithm.loss` is 0, so nothing would be learnt
     6 | algorithm: {type: eagle3, loss: {kl: 0}}
       |                           ^ such as loss: {kl: 1.0}
""",
        id="no loss at all",
    ),
    pytest.param(
        "algorithm: {type: eagle3, loss: {tv: 1}}\n",
        """\
bad.yaml:6:34: error: `algorithm.loss.tv` needs the verifier's own probabilities, but the teacher is renormalized
     6 | algorithm: {type: eagle3, loss: {tv: 1}}
       |                                  ^ set `algorithm.teacher` to unrenormalized
""",
        id="a loss that needs another teacher",
    ),
    pytest.param(
        "algorithm: {type: eagle3, normalization: {before_fc: true, per_aux_layer: true}}\n",
        """\
bad.yaml:6:27: error: `before_fc` and `per_aux_layer` are two ways to norm the same states
     6 | algorithm: {type: eagle3, normalization: {before_fc: true, per_aux_layer: true}}
       |                           ^ set one of them to false
""",
        id="two norms for the same states",
    ),
    pytest.param(
        "eval: {acceptance: {suites: [heldout]}}\n",
        """\
bad.yaml:7:30: error: there is no suite 'heldout'
     7 | eval: {acceptance: {suites: [heldout]}}
       |                              ^ did you mean `holdout`? allowed: holdout
""",
        id="a suite that does not exist",
    ),
    pytest.param(
        "eval: {acceptance: {speculative_tokens: auto}, benchmark: null}\n",
        """\
bad.yaml:7:21: error: `eval.acceptance.speculative_tokens` is auto, which is measured under the load of `eval.benchmark`
     7 | eval: {acceptance: {speculative_tokens: auto}, benchmark: null}
       |                     ^ add `eval.benchmark`, or write a number
""",
        id="the best number of speculative tokens without a load to find it under",
    ),
    pytest.param(
        "eval: {acceptance: {max_new_tokens: 5000}, benchmark: {max_tokens: 5000}}\n",
        """\
bad.yaml:7:21: error: `eval.acceptance.max_new_tokens` is 5000, but the random verifier reads at most 2048
     7 | eval: {acceptance: {max_new_tokens: 5000}, benchmark: {max_tokens: 5000}}
       |                     ^
bad.yaml:7:56: error: `eval.benchmark.max_tokens` is 5000, but the random verifier reads at most 2048
     7 | eval: {acceptance: {max_new_tokens: 5000}, benchmark: {max_tokens: 5000}}
       |                                                        ^
""",
        id="answers longer than the verifier reads",
    ),
    pytest.param(
        """\
data:
  sources: [{synthesize: magpie, samples: 4}]
  hidden_states: {mode: online, buffer_tokens: 4096}
""",
        """\
bad.yaml:7:33: error: `data.hidden_states.buffer_tokens` is 4096, and a batch may have 8192 tokens (`train.tokens_per_step`)
     7 |   hidden_states: {mode: online, buffer_tokens: 4096}
       |                                 ^ write 16384 or more, so that one batch is made while another is trained on
""",
        id="a buffer without room for a batch",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: dense}, {name: dense, draft: false}]}}\n",
        """\
bad.yaml:7:47: error: `eval.benchmark.variants` names 'dense' twice
     7 | eval: {benchmark: {variants: [{name: dense}, {name: dense, draft: false}]}}
       |                                               ^ give each variant a name of its own
""",
        id="a variant given twice",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: fp8}]}}\n",
        """\
bad.yaml:7:32: error: `eval.benchmark.variants[0]` is 'fp8' and has no `verifier`
     7 | eval: {benchmark: {variants: [{name: fp8}]}}
       |                                ^ allowed without one: dense, speculator
""",
        id="a variant of nothing",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: dense, verifier: a/b}]}}\n",
        """\
bad.yaml:7:45: error: `dense` serves the recipe's own verifier, and `eval.benchmark.variants[0]` has a `verifier`
     7 | eval: {benchmark: {variants: [{name: dense, verifier: a/b}]}}
       |                                             ^ give the variant another name, such as fp8
""",
        id="another verifier under the name of the recipe's own",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: speculator, revision: main}]}}\n",
        """\
bad.yaml:7:50: error: `speculator` serves the recipe's own verifier, and `eval.benchmark.variants[0]` has a `revision`
     7 | eval: {benchmark: {variants: [{name: speculator, revision: main}]}}
       |                                                  ^ give the variant another name, such as fp8
""",
        id="another revision under the name of the recipe's own",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: speculator, draft: false}]}}\n",
        """\
bad.yaml:7:50: error: `speculator` is the verifier with the draft
     7 | eval: {benchmark: {variants: [{name: speculator, draft: false}]}}
       |                                                  ^ remove it; the verifier alone is the variant `dense`
""",
        id="a speculator without a draft",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: q4, verifier: 'wheel://a==1/b.gguf'}]}}\n",
        """\
bad.yaml:7:42: error: `verifier` of `eval.benchmark.variants[0]` is 'wheel://a==1/b.gguf'
     7 | eval: {benchmark: {variants: [{name: q4, verifier: 'wheel://a==1/b.gguf'}]}}
       |                                          ^ allowed: a hub id, a directory with a Hugging Face checkpoint
""",
        id="a variant out of a wheel",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: q4, verifier: /, revision: main}]}}\n",
        """\
bad.yaml:7:55: error: `revision` of `eval.benchmark.variants[0]` is for models of the hub, and its verifier is a directory
     7 | eval: {benchmark: {variants: [{name: q4, verifier: /, revision: main}]}}
       |                                                       ^ remove it
""",
        id="a revision of a directory",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: int8, verifier: ./int8}]}}\n",
        """\
bad.yaml:7:44: error: there is no ./int8
     7 | eval: {benchmark: {variants: [{name: int8, verifier: ./int8}]}}
       |                                            ^ looked for FOLDER/int8
""",
        id="a variant's directory that is not there",
    ),
    pytest.param(
        """\
eval:
  benchmark: {variants: [{name: speculator}, {name: fp8, verifier: a/b}]}
  gates: [benchmark.fp8.output_tokens_per_second > 1, benchmark.int8.output_tokens_per_second > 1]
""",
        """\
bad.yaml:9:55: error: the gate asks for benchmark.int8.output_tokens_per_second, which this recipe does not measure
     9 |   gates: [benchmark.fp8.output_tokens_per_second > 1, benchmark.int8.output_tokens_per_second > 1]
       |                                                       ^ benchmark has: fp8, speculator
""",
        id="a gate on a variant that is not served",
    ),
    pytest.param(
        """\
eval:
  gates:
    - acceptance.holdout.acceptance_length
""",
        """\
bad.yaml:9:7: error: no gate: 'acceptance.holdout.acceptance_length', column 37: a gate needs one comparison, <, <=, >, >=, == or !=
     9 |     - acceptance.holdout.acceptance_length
       |       ^ such as acceptance.holdout.acceptance_length >= 1.35
""",
        id="a gate that compares nothing",
    ),
    pytest.param(
        "eval: {acceptance: null, gates: [acceptance.holdout.rounds > 1]}\n",
        """\
bad.yaml:7:34: error: the gate asks for acceptance.holdout.rounds, which this recipe does not measure
     7 | eval: {acceptance: null, gates: [acceptance.holdout.rounds > 1]}
       |                                  ^ acceptance has: nothing
""",
        id="a gate on what is not measured",
    ),
    pytest.param(
        "algorithm: {type: dflash, aux_layers: [1], block_size: 4}\neval: {acceptance: {speculative_tokens: 4}}\n",
        """\
bad.yaml:7:21: error: `eval.acceptance.speculative_tokens` is 4, but a round of this dflash draft proposes 3
     7 | eval: {acceptance: {speculative_tokens: 4}}
       |                     ^ at most 3
""",
        id="rounds longer than a block",
    ),
    pytest.param(
        "algorithm: {type: dflash, aux_layers: [1], weights: {type: dpace}, loss: {kl: 1}}\n",
        """\
bad.yaml:6:44: error: `algorithm.weights` of the type dpace weigh a cross-entropy, and `algorithm.loss` is another
     6 | algorithm: {type: dflash, aux_layers: [1], weights: {type: dpace}, loss: {kl: 1}}
       |                                            ^ write loss: {ce: 1.0}, or weights: {type: exponential}
""",
        id="dpace on another loss",
    ),
    pytest.param(
        "algorithm: {type: peagle, aux_layers: [1], draft_vocab_size: 100, mask_token_id: 512}\n",
        """\
bad.yaml:6:67: error: `algorithm.mask_token_id` is 512, but the random verifier has 512 tokens
     6 | algorithm: {type: peagle, aux_layers: [1], draft_vocab_size: 100, mask_token_id: 512}
       |                                                                   ^ null takes the last one
""",
        id="a mask token that the verifier does not have",
    ),
    pytest.param(
        "algorithm: {type: dflash, layers: 2, aux_layers: [1], sliding_window: {layers: [0, 2]}}\n",
        """\
bad.yaml:6:72: error: `algorithm.sliding_window.layers` has 2, and the draft has 2
     6 | algorithm: {type: dflash, layers: 2, aux_layers: [1], sliding_window: {layers: [0, 2]}}
       |                                                                        ^ layers are counted from 0, so at most 1; all: every one
""",
        id="a window of a layer that the draft does not have",
    ),
    pytest.param(
        """\
eval:
  acceptance:
    tree: {depth: 6, nodes: 4}
algorithm: {type: peagle, aux_layers: [1, 2, 3], draft_vocab_size: 300}
""",
        """\
bad.yaml:8:5: error: `eval.acceptance.tree` asks for trees, and a draft of type peagle makes none
     8 |     tree: {depth: 6, nodes: 4}
       |     ^ remove it
bad.yaml:8:22: error: `eval.acceptance.tree` has 6 levels and only 4 nodes
     8 |     tree: {depth: 6, nodes: 4}
       |                      ^ write 6 or more
""",
        id="trees of a draft that makes none",
    ),
    pytest.param(
        """\
eval:
  acceptance:
    speculative_tokens: 2
    tree: {type: static, paths: [[0], [1, 0], [0, 0], [0, 0, 0]]}
algorithm: {type: medusa, heads: 2}
""",
        """\
bad.yaml:9:26: error: `eval.acceptance.tree` has 3 levels, but a round of this draft proposes 2 tokens
     9 |     tree: {type: static, paths: [[0], [1, 0], [0, 0], [0, 0, 0]]}
       |                          ^ at most 2
bad.yaml:9:39: error: `eval.acceptance.tree` has the path [1, 0], and not [1], which leads there
     9 |     tree: {type: static, paths: [[0], [1, 0], [0, 0], [0, 0, 0]]}
       |                                       ^ name it too
""",
        id="a static tree too deep, and with a hole",
    ),
    pytest.param(
        """\
eval:
  acceptance:
    speculative_tokens: 4
    least_confidence: 0.5
    tree: {depth: 4, nodes: 4}
algorithm: {type: eagle3, aux_layers: [1, 2, 3], draft_vocab_size: 300}
""",
        """\
bad.yaml:9:5: error: `eval.acceptance.least_confidence` asks how sure the draft is, and this eagle3 draft foretells no acceptance
     9 |     least_confidence: 0.5
       |     ^ remove it; a draft of the type dspark with a confidence head does
bad.yaml:9:5: error: `eval.acceptance.least_confidence` ends chains early, and `eval.acceptance.tree` asks for trees
     9 |     least_confidence: 0.5
       |     ^ remove one
""",
        id="confidence of a draft that foretells nothing, and in trees",
    ),
    pytest.param(
        "algorithm: {type: hass, loss: {soft_ce: 0, top_k: 0}}\n",
        """\
bad.yaml:6:25: error: `algorithm.loss` compares no distributions, so nothing would be learnt about tokens
     6 | algorithm: {type: hass, loss: {soft_ce: 0, top_k: 0}}
       |                         ^ such as loss: {smooth_l1: 1.0, soft_ce: 0.1}
""",
        id="features without tokens",
    ),
    pytest.param(
        "algorithm: {type: eagle3}\ntrain:\n  second_phase: {loss: {soft_ce: 1.0}}\n",
        """\
bad.yaml:8:25: error: `train.second_phase.loss.soft_ce` changes a loss that eagle3 does not have
     8 |   second_phase: {loss: {soft_ce: 1.0}}
       |                         ^ it has: kl, rkl, jsd, ce, tv, nla, lk, top_k, ce_target
""",
        id="a second phase with a loss of another algorithm",
    ),
    pytest.param(
        "algorithm: {type: eagle3}\ntrain:\n  second_phase: {loss: {kl: 0}}\n",
        """\
bad.yaml:8:18: error: in the second phase, every weight of `algorithm.loss` is 0, so nothing would be learnt
     8 |   second_phase: {loss: {kl: 0}}
       |                  ^ such as loss: {kl: 1.0}
""",
        id="a second phase that learns nothing",
    ),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_says_what_does_not_fit(complaint: Callable[..., str], text: str, said: str) -> None:
    assert complaint(text) == said
