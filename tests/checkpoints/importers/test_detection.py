"""What a checkpoint is, told from its config and its tensors, with the reasons; a doubtful one is asked about."""

from __future__ import annotations

import pytest
import torch

from speculators.checkpoints.convert import convert
from speculators.checkpoints.importers import candidates, find
from speculators.errors import UsageError


@pytest.mark.parametrize(
    ("layout", "options", "named"),
    [
        ("eagle3", {}, ["eagle3: its layer is named midlayer, both vocabulary maps are there", "specforge"]),
        ("eagle3", {"own_embeddings": True}, ["eagle3"]),
        (
            "modelopt",
            {},
            [
                "modelopt: its config has ModelOpt's eagle_config, there is d2t and no t2d, its layer",
            ],
        ),
        ("specforge", {}, ["specforge: its layer is named midlayer, there are no embeddings, its eagle_config lists"]),
        ("eagle3.1", {}, ["eagle3.1: each stream has a norm (fc_norm), its config says norm_output", "specforge"]),
    ],
)
def test_every_candidate_has_its_reasons(layout, options, named, make_draft, opened):
    found = [one.line for one in candidates(opened(make_draft(layout, **options)))]
    assert len(found) == len(named)
    assert all(line.startswith(start) for line, start in zip(found, named, strict=True))


def test_readings_that_make_the_same_draft_are_no_doubt(make_draft, opened, lender):
    assert find(opened(make_draft("eagle3")), lender.facts).candidate.importer.NAME == "eagle3"


def test_a_flag_that_two_sources_mean_differently_is_asked_about(make_draft, opened, lender):
    foreign = opened(make_draft("eagle3.1"))
    with pytest.raises(UsageError) as caught:
        find(foreign, lender.facts)
    assert str(caught.value).splitlines() == [
        "source can be read in several ways that make different drafts; say which with --format:",
        "  eagle3.1: each stream has a norm (fc_norm), "
        "its config says norm_output, which here feeds the normed output back",
        "  specforge: its layer is named midlayer, there are no embeddings, "
        "its config says norm_output, which here norms before the head",
    ]
    flags = {
        name: find(foreign, lender.facts, name).translation.draft["norm_output"] for name in ("eagle3.1", "specforge")
    }
    assert flags == {"eagle3.1": True, "specforge": False}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({"rnn_u.weight": (4, 8)}, "is a ReDrafter draft"),
        ({"something.weight": (4, 4)}, r"is none of the drafts that are known \(it holds something.weight\)"),
    ],
)
def test_what_is_not_converted_is_named_all_the_same(names, what, make_draft, opened, lender):
    draft = make_draft("eagle3")
    draft.tensors.clear()
    draft.tensors.update({name: torch.zeros(shape) for name, shape in names.items()})
    with pytest.raises(UsageError, match=rf"{what}.*Converted are: eagle3 \(EAGLE-3 \(SafeAILab\)\); eagle3.1"):
        find(opened(draft), lender.facts)


@pytest.mark.parametrize(
    ("layout", "config", "read"),
    [
        ("eagle3", {}, [2, 4, 6]),  # of 9 layers
        ("eagle3", {"eagle_aux_hidden_state_layer_ids": [1, 3, 8]}, [1, 3, 8]),
        ("modelopt", {}, [2, 4, 6]),
        ("specforge", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [7, 0, 4]}}, [1, 5, 8]),
    ],
)
def test_layers_are_those_that_streams_enter_whatever_the_source_calls_them(
    layout, config, read, make_draft, opened, lender
):
    """ModelOpt's and SpecForge's own default, [1, n // 2 - 1, n - 4], are the streams that EAGLE-3 has always read."""
    translation = find(opened(make_draft(layout, **config)), lender.facts).translation
    assert translation.draft["eagle_aux_hidden_state_layer_ids"] == read


def test_the_user_s_layers_are_taken_as_they_are(make_draft, opened, lender):
    converted = convert(opened(make_draft("modelopt")), lender, aux_layers=[1, 3, 9])
    assert converted.draft["eagle_aux_hidden_state_layer_ids"] == [1, 3, 9]


def test_the_context_is_the_longer_one_and_yarn_keeps_its_own(make_draft, opened, lender):
    yarn = {"rope_type": "yarn", "factor": 4.0}
    draft = make_draft("modelopt", rope_scaling=yarn, max_position_embeddings=64)
    layer = find(opened(draft), lender.facts).translation.draft["transformer_layer_config"]
    assert layer["max_position_embeddings"] == lender.facts.max_position_embeddings > 64
    assert layer["rope_parameters"] == {**yarn, "rope_theta": 500000.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("layout", ["eagle3", "modelopt", "specforge", "eagle3.1", "speculators"])
def test_a_checkpoint_that_names_this_format_is_taken_for_no_other(layout, make_draft, opened):
    found = candidates(opened(make_draft(layout, speculators_model_type="eagle3")))
    assert [one.importer.NAME for one in found] == ["speculators"]
