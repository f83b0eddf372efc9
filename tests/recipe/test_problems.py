"""Recipes that the schema refuses, and the exact words in which it does."""

# Messages stand here as they are printed.
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Callable

import pytest

WHOLE = [
    pytest.param(
        "name: bad\n",
        """\
bad.yaml:1:1: error: `recipe` is missing
         such as recipe: 1
bad.yaml:1:1: error: `verifier` is missing
         such as verifier: {model: Qwen/Qwen3-8B}
bad.yaml:1:1: error: `algorithm` is missing
         such as algorithm: {type: eagle3}
bad.yaml:1:1: error: `data` is missing
         such as data: {sources: [{file: data/prompts.jsonl}]}
""",
        id="sections that are missing",
    ),
    pytest.param(
        """\
recipe: 1
name: Bad One
verifier: {dtype: fp16}
algorithm: {type: eagle3, layer: 2}
data: {sources: []}
train: {epochs: "3", lr: 1}
""",
        """\
bad.yaml:2:1: error: `name` is 'Bad One'
     2 | name: Bad One
       | ^ allowed: lower-case letters, digits, `.` and `-`, beginning with a letter or digit
bad.yaml:3:12: error: `verifier.dtype` is 'fp16'
     3 | verifier: {dtype: fp16}
       |            ^ fp16 is spelled float16 here; allowed: auto, float32, bfloat16, float16
bad.yaml:4:27: error: unknown key `layer` in `algorithm`
     4 | algorithm: {type: eagle3, layer: 2}
       |                           ^ did you mean `layers`?
bad.yaml:5:8: error: `data.sources` is empty
     5 | data: {sources: []}
       |        ^
bad.yaml:6:9: error: `train.epochs` is "3", expected integer
     6 | train: {epochs: "3", lr: 1}
       |         ^ write it without quotes
bad.yaml:6:22: error: unknown key `lr` in `train`
     6 | train: {epochs: "3", lr: 1}
       |                      ^ `lr` is `train.optimizer.learning_rate` here
""",
        id="everything at once, in order",
    ),
]
"""Files as they are."""

REFUSED = [
    pytest.param(
        "algorithm: {layers: 1}\n",
        """\
bad.yaml:6:1: error: `algorithm.type` is missing
     6 | algorithm: {layers: 1}
       | ^ such as type: eagle3
""",
        id="an algorithm without a type",
    ),
    pytest.param(
        "data: {max_length: 64}\n",
        """\
bad.yaml:5:1: error: `data.sources` is missing
     5 | data: {max_length: 64}
       | ^ such as sources: [{file: data/prompts.jsonl}, {synthesize: magpie, samples: 400}]
""",
        id="data without sources",
    ),
    pytest.param(
        "recipe: 2\n",
        """\
bad.yaml:6:1: error: `recipe` is 2, but this version of speculators reads recipe: 1
     6 | recipe: 2
       | ^ install a newer speculators
""",
        id="a recipe of a later version",
    ),
    pytest.param(
        "recipe: one\n",
        """\
bad.yaml:6:1: error: `recipe` is "one", but this version of speculators reads recipe: 1
     6 | recipe: one
       | ^ write recipe: 1
""",
        id="a recipe of no version",
    ),
    pytest.param(
        "name: My Recipe\n",
        """\
bad.yaml:6:1: error: `name` is 'My Recipe'
     6 | name: My Recipe
       | ^ allowed: lower-case letters, digits, `.` and `-`, beginning with a letter or digit
""",
        id="a name with blanks",
    ),
    pytest.param(
        "verifier: {random: {}, dtype: bf16}\n",
        """\
bad.yaml:6:24: error: `verifier.dtype` is 'bf16'
     6 | verifier: {random: {}, dtype: bf16}
       |                        ^ bf16 is spelled bfloat16 here; allowed: auto, float32, bfloat16, float16
""",
        id="a word another tool uses",
    ),
    pytest.param(
        "verifier: {random: {}, dtype: bfloat61}\n",
        """\
bad.yaml:6:24: error: `verifier.dtype` is 'bfloat61'
     6 | verifier: {random: {}, dtype: bfloat61}
       |                        ^ did you mean `bfloat16`? allowed: auto, float32, bfloat16, float16
""",
        id="a word with a typing error",
    ),
    pytest.param(
        "algorithm: {type: egle3}\n",
        """\
bad.yaml:6:13: error: `algorithm.type` is 'egle3'
     6 | algorithm: {type: egle3}
       |             ^ did you mean `eagle3`? allowed: eagle, eagle3, hass, peagle, dflash, dspark, dflash2, xpress, medusa, hydra, mlp_speculator, mtp, draft_model
""",
        id="an algorithm there is not",
    ),
    pytest.param(
        """\
algorithm:
  type: eagle3
  training_time_test: {steps: "7", decay: 0.8}
""",
        """\
bad.yaml:8:24: error: `algorithm.training_time_test.steps` is "7", expected integer
     8 |   training_time_test: {steps: "7", decay: 0.8}
       |                        ^ write it without quotes
""",
        id="a number in quotes",
    ),
    pytest.param(
        """\
algorithm:
  type: eagle3
  draft_vocabulary_size: 300
""",
        """\
bad.yaml:8:3: error: unknown key `draft_vocabulary_size` in `algorithm`
     8 |   draft_vocabulary_size: 300
       |   ^ did you mean `draft_vocab_size`?
""",
        id="a key that is nearly right",
    ),
    pytest.param(
        "trian: {epochs: 1}\n",
        """\
bad.yaml:7:1: error: unknown key `trian`
     7 | trian: {epochs: 1}
       | ^ did you mean `train`?
""",
        id="a section that is nearly right",
    ),
    pytest.param(
        """\
train:
  learning_rate: 1e-4
""",
        """\
bad.yaml:8:3: error: unknown key `learning_rate` in `train`
     8 |   learning_rate: 1e-4
       |   ^ `learning_rate` belongs to `train.optimizer` or `train.second_phase.optimizer`
""",
        id="a key in the wrong section",
    ),
    pytest.param(
        "train: {temperature: 1}\n",
        """\
bad.yaml:7:9: error: unknown key `temperature` in `train`
     7 | train: {temperature: 1}
       |         ^ `temperature` belongs to `data.sources[]` or `data.regenerate`
""",
        id="a key in the wrong section of two that have it",
    ),
    pytest.param(
        "train: {seed: 1}\n",
        """\
bad.yaml:7:9: error: unknown key `seed` in `train`
     7 | train: {seed: 1}
       |         ^ `seed` belongs to the top of the recipe or `verifier.random`
""",
        id="a key of the root further down",
    ),
    pytest.param(
        """\
train:
  optimizer: {lr: 1e-4}
""",
        """\
bad.yaml:8:15: error: unknown key `lr` in `train.optimizer`
     8 |   optimizer: {lr: 1e-4}
       |               ^ `lr` is `train.optimizer.learning_rate` here
""",
        id="a key another tool uses",
    ),
    pytest.param(
        """\
train:
  num_train_epochs: 3
""",
        """\
bad.yaml:8:3: error: unknown key `num_train_epochs` in `train`
     8 |   num_train_epochs: 3
       |   ^ `num_train_epochs` is `train.epochs` here
""",
        id="another key another tool uses",
    ),
    pytest.param(
        "algorithm: {type: eagle3, ttt_length: 7}\n",
        """\
bad.yaml:6:27: error: unknown key `ttt_length` in `algorithm`
     6 | algorithm: {type: eagle3, ttt_length: 7}
       |                           ^ `ttt_length` is `algorithm.training_time_test.steps` here
""",
        id="a key another trainer of drafts uses",
    ),
    pytest.param(
        """\
train:
  optimizer: {type: adamw, momentum: 0.9}
""",
        """\
bad.yaml:8:28: error: unknown key `momentum` in `train.optimizer`
     8 |   optimizer: {type: adamw, momentum: 0.9}
       |                            ^ `momentum` is an option of muon, this is adamw
""",
        id="an option of another optimizer",
    ),
    pytest.param(
        "train: {zzz: 1}\n",
        """\
bad.yaml:7:9: error: unknown key `zzz` in `train`
     7 | train: {zzz: 1}
       |         ^ allowed: epochs, tokens_per_step, optimizer, schedule, gradient_clip, gradient_clip_value, precision, initialize_from, second_phase, validation, checkpoint, execution, tracking
""",
        id="a key like nothing else",
    ),
    pytest.param(
        "verifier: Qwen/Qwen3-8B\n",
        """\
bad.yaml:6:1: error: `verifier` is "Qwen/Qwen3-8B", expected mapping
     6 | verifier: Qwen/Qwen3-8B
       | ^ write verifier: {model: Qwen/Qwen3-8B}
""",
        id="the verifier's name as its section",
    ),
    pytest.param(
        "train: 3\n",
        """\
bad.yaml:7:1: error: `train` is 3, expected mapping
     7 | train: 3
       | ^ its keys: epochs, tokens_per_step, optimizer, schedule, gradient_clip, gradient_clip_value, precision, initialize_from, second_phase, validation, checkpoint, execution, tracking
""",
        id="a number as a section",
    ),
    pytest.param(
        "train: {epochs: 0}\n",
        """\
bad.yaml:7:9: error: `train.epochs` is 0, must be at least 1
     7 | train: {epochs: 0}
       |         ^
""",
        id="an integer that is too small",
    ),
    pytest.param(
        "train: {epochs: 1.5}\n",
        """\
bad.yaml:7:9: error: `train.epochs` is 1.5, expected integer
     7 | train: {epochs: 1.5}
       |         ^
""",
        id="a fraction where an integer is meant",
    ),
    pytest.param(
        "train: {tokens_per_step: 65_536}\n",
        """\
bad.yaml:7:9: error: `train.tokens_per_step` is "65_536", expected integer
     7 | train: {tokens_per_step: 65_536}
       |         ^ write 65536
""",
        id="digits in groups",
    ),
    pytest.param(
        "verifier: {random: {}, trust_remote_code: yes}\n",
        """\
bad.yaml:6:24: error: `verifier.trust_remote_code` is "yes", expected boolean
     6 | verifier: {random: {}, trust_remote_code: yes}
       |                        ^ write true; YAML 1.2 reads yes as text
""",
        id="yes for true",
    ),
    pytest.param(
        "train: {epochs: null}\n",
        """\
bad.yaml:7:9: error: `train.epochs` is null, expected integer
     7 | train: {epochs: null}
       |         ^ leave it out for the default, 1
""",
        id="null where it means nothing",
    ),
    pytest.param(
        "description: 7\n",
        """\
bad.yaml:7:1: error: `description` is 7, expected text or null
     7 | description: 7
       | ^ put it in quotes
""",
        id="a number where text is meant",
    ),
    pytest.param(
        "train: {optimizer: {betas: [0.9]}}\n",
        """\
bad.yaml:7:21: error: `train.optimizer.betas` has 1 entry, expected exactly 2
     7 | train: {optimizer: {betas: [0.9]}}
       |                     ^
""",
        id="too few entries",
    ),
    pytest.param(
        "train: {optimizer: {betas: [0.9, 1.0]}}\n",
        """\
bad.yaml:7:34: error: `train.optimizer.betas[1]` is 1.0, must be less than 1
     7 | train: {optimizer: {betas: [0.9, 1.0]}}
       |                                  ^
""",
        id="an entry out of bounds",
    ),
    pytest.param(
        "algorithm: {type: eagle3, aux_layers: all}\n",
        """\
bad.yaml:6:27: error: `algorithm.aux_layers` is "all", expected list or auto
     6 | algorithm: {type: eagle3, aux_layers: all}
       |                           ^
""",
        id="a word that is not auto",
    ),
    pytest.param(
        "algorithm: {type: eagle3, aux_layers: [1, 2, 2]}\n",
        """\
bad.yaml:6:46: error: `algorithm.aux_layers` names 2 twice
     6 | algorithm: {type: eagle3, aux_layers: [1, 2, 2]}
       |                                              ^
""",
        id="an entry given twice",
    ),
    pytest.param(
        "algorithm: {type: eagle3, aux_layers: []}\n",
        """\
bad.yaml:6:27: error: `algorithm.aux_layers` is empty
     6 | algorithm: {type: eagle3, aux_layers: []}
       |                           ^
""",
        id="an empty list",
    ),
    pytest.param(
        "eval: {acceptance: {suites: holdout}}\n",
        """\
bad.yaml:7:21: error: `eval.acceptance.suites` is "holdout", expected list
     7 | eval: {acceptance: {suites: holdout}}
       |                     ^ write [holdout]
""",
        id="one entry without brackets",
    ),
    pytest.param(
        "algorithm: {type: eagle3, preset: papr}\n",
        """\
bad.yaml:6:27: error: `algorithm.preset` is 'papr'
     6 | algorithm: {type: eagle3, preset: papr}
       |                           ^ did you mean `paper`? allowed: paper, null
""",
        id="a preset that there is not",
    ),
    pytest.param(
        "algorithm: {type: eagl3, preset: paper}\n",
        """\
bad.yaml:6:13: error: `algorithm.type` is 'eagl3'
     6 | algorithm: {type: eagl3, preset: paper}
       |             ^ did you mean `eagle3`? allowed: eagle, eagle3, hass, peagle, dflash, dspark, dflash2, xpress, medusa, hydra, mlp_speculator, mtp, draft_model
""",
        id="a preset of a type that there is not",
    ),
    pytest.param(
        "algorithm: {type: eagle3, loss: {kl: -1}}\n",
        """\
bad.yaml:6:34: error: `algorithm.loss.kl` is -1, must be at least 0
     6 | algorithm: {type: eagle3, loss: {kl: -1}}
       |                                  ^
""",
        id="a weight below zero",
    ),
    pytest.param(
        "verifier: {model: 'wheel://a==1/b.gguf', sha256: abc}\n",
        """\
bad.yaml:6:42: error: `verifier.sha256` is 'abc'
     6 | verifier: {model: 'wheel://a==1/b.gguf', sha256: abc}
       |                                          ^ allowed: 64 hexadecimal digits
""",
        id="a digest that is too short",
    ),
    pytest.param(
        "verifier: {random: {vocab_size: 100}}\n",
        """\
bad.yaml:6:21: error: `verifier.random.vocab_size` is 100, must be at least 260
     6 | verifier: {random: {vocab_size: 100}}
       |                     ^
""",
        id="a vocabulary too small for bytes",
    ),
    pytest.param(
        "data: {sources: [{synthesize: magpie, samples: 4}], holdout: 1}\n",
        """\
bad.yaml:5:53: error: `data.holdout` is 1, must be less than 1
     5 | data: {sources: [{synthesize: magpie, samples: 4}], holdout: 1}
       |                                                     ^
""",
        id="nothing left to train on",
    ),
    pytest.param(
        "eval: {benchmark: {profile: {type: synchronous, levels: [1, 4]}}}\n",
        """\
bad.yaml:7:49: error: unknown key `levels` in `eval.benchmark.profile`
     7 | eval: {benchmark: {profile: {type: synchronous, levels: [1, 4]}}}
       |                                                 ^ `levels` is an option of concurrent, this is synchronous
""",
        id="several streams in a synchronous benchmark",
    ),
    pytest.param(
        "eval: {benchmark: {profile: {type: constant}}}\n",
        """\
bad.yaml:7:20: error: `eval.benchmark.profile.rates` is missing
     7 | eval: {benchmark: {profile: {type: constant}}}
       |                    ^ such as rates: [0.5, 1, 2]
""",
        id="a constant rate that nobody names",
    ),
    pytest.param(
        "eval: {benchmark: {profile: {type: sweep, points: 1}}}\n",
        """\
bad.yaml:7:43: error: `eval.benchmark.profile.points` is 1, must be at least 2
     7 | eval: {benchmark: {profile: {type: sweep, points: 1}}}
       |                                           ^
""",
        id="a sweep without its two ends",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{name: FP8, verifier: a/b}]}}\n",
        """\
bad.yaml:7:32: error: `eval.benchmark.variants[0].name` is 'FP8'
     7 | eval: {benchmark: {variants: [{name: FP8, verifier: a/b}]}}
       |                                ^ allowed: small letters, digits, `_` and `-`, a letter first
""",
        id="a variant whose name can name no step",
    ),
    pytest.param(
        "eval: {benchmark: {variants: [{}]}}\n",
        """\
bad.yaml:7:31: error: `eval.benchmark.variants[0].name` is missing
     7 | eval: {benchmark: {variants: [{}]}}
       |                               ^ such as name: dense
""",
        id="a variant without a name",
    ),
]
"""What stands in the place of the good sections of the same names, or below them all."""


@pytest.mark.parametrize(("text", "said"), WHOLE)
def test_says_what_to_write_in_a_whole_file(complaint: Callable[..., str], text: str, said: str) -> None:
    assert complaint(text, whole=True) == said


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_says_what_to_write(complaint: Callable[..., str], text: str, said: str) -> None:
    assert complaint(text) == said
