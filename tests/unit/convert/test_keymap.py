"""Tables of rows: what they do with keys, what they reject, and that they read backwards."""

import pickle

import pytest
import torch

from audioldm2.convert import PARTS, keymap
from audioldm2.convert.keymap import Row, nest, plan, pointwise, reverse, transpose
from audioldm2.errors import WeightsError
from tests.support import checkpoints


def targets(keys: list[str], rows: list[Row]) -> dict[str, str | None]:
    return {move.source: move.target for move in plan(keys, rows)}


def plan_error(keys: list[str], rows: list[Row]) -> str:
    with pytest.raises(WeightsError) as caught:
        plan(keys, rows, "unet/model.safetensors")
    return str(caught.value)


# ---- what a row does


def test_row_moves_everything_below_a_module():
    rows = [Row("norm1", "norm_in"), Row("scale", "scale")]
    assert targets(["norm1.weight", "norm1.bias", "scale"], rows) == {
        "norm1.weight": "norm_in.weight",
        "norm1.bias": "norm_in.bias",
        "scale": "scale",
    }


def test_row_matches_whole_names_only():
    assert "'norm10.weight', not part of this architecture" in plan_error(
        ["norm10.weight", "norm1.weight"], [Row("norm1", "norm_in")]
    )


def test_star_carries_numbers_over_in_order():
    rows = [Row("down.*.attn.*.to_q", "levels.*.roles.*.query")]
    assert targets(["down.3.attn.12.to_q.weight"], rows) == {
        "down.3.attn.12.to_q.weight": "levels.3.roles.12.query.weight"
    }


def test_star_matches_numbers_only():
    assert "'h.first.weight'" in plan_error(["h.0.weight", "h.first.weight"], [Row("h.*", "blocks.*")])


@pytest.mark.parametrize("turn", [1, -1], ids=["general row first", "general row last"])
def test_most_specific_row_wins_in_any_order(turn: int):
    rows = [
        Row("layers.*", "blocks.*"),
        Row("layers.*.norm", "blocks.*.attn_norm"),
        Row("layers.7.norm", "last.norm"),
        Row("layers.*.norm.steps", None),
    ][::turn]
    keys = ["layers.0.ff.bias", "layers.0.norm.bias", "layers.7.norm.bias", "layers.0.norm.steps"]
    assert list(targets(keys, rows).values()) == [
        "blocks.0.ff.bias",
        "blocks.0.attn_norm.bias",
        "last.norm.bias",
        None,
    ]


def test_nest_moves_rows_below_a_module():
    inner = [Row("q", "query"), Row("index", None, note="follows from the window", optional=True)]
    assert nest("a.*", "b.*", inner) == [
        Row("a.*.q", "b.*.query"),
        Row("a.*.index", None, note="follows from the window", optional=True),
    ]
    assert nest("audio_model", "", inner)[0] == Row("audio_model.q", "query")


def test_row_without_target_drops():
    moves = plan(["wte.weight", "wpe.weight"], [Row("wte", None), Row("wpe", "position_embedding")])
    state = {"wte.weight": torch.ones(1), "wpe.weight": torch.zeros(1)}
    assert keymap.convert(state, moves) == {"position_embedding.weight": state["wpe.weight"]}


def test_optional_row_may_match_nothing():
    rows = [Row("a", "x"), Row("position_ids", None, optional=True)]
    assert targets(["a.weight"], rows) == {"a.weight": "x.weight"}


def test_one_source_may_have_several_targets():
    first = keymap.Transform("first half", lambda w: w[:2], lambda w: w)
    second = keymap.Transform("second half", lambda w: w[2:], lambda w: w)
    moves = plan(["kv.weight"], [Row("kv", "key", first), Row("kv", "value", second)])
    weight = torch.arange(8.0).view(4, 2)
    found = keymap.convert({"kv.weight": weight}, moves)
    assert torch.equal(found["key.weight"], weight[:2])
    assert torch.equal(found["value.weight"], weight[2:])


def test_conversion_returns_views():
    moves = plan(["a.weight", "b.weight"], [Row("a", "x"), Row("b", "y", transpose)])
    state = {"a.weight": torch.randn(3), "b.weight": torch.randn(3, 4)}
    found = keymap.convert(state, moves)
    assert found["x.weight"].data_ptr() == state["a.weight"].data_ptr()
    assert found["y.weight"].data_ptr() == state["b.weight"].data_ptr()


# ---- errors


def test_rejects_key_without_row():
    message = plan_error([f"class_embedding.{i}.weight" for i in range(5)] + ["a"], [Row("a", "x")])
    assert message == (
        "unet/model.safetensors holds 'class_embedding.0.weight', 'class_embedding.1.weight', "
        "'class_embedding.2.weight' and 2 more, not part of this architecture. "
        "Is this another kind of checkpoint, or does its config.json belong to another one?"
    )


def test_rejects_required_row_without_key():
    message = plan_error(["a"], [Row("a", "x"), Row("conv_in", "conv_in"), Row("h.*", "blocks.*")])
    assert message == (
        "unet/model.safetensors lacks 'conv_in', 'h.*'. "
        "Is the file complete, and does its config.json belong to it?"
    )


def test_rejects_two_sources_for_one_target():
    message = plan_error(["to_q.weight", "query.weight"], [Row("to_q", "query"), Row("query", "query")])
    assert message == (
        "unet/model.safetensors: two tensors would become 'query.weight': 'to_q.weight' and 'query.weight'. "
        "Remove the wrong one."
    )


def test_dropped_keys_may_be_many():
    rows = [Row("a", None), Row("b", None)]
    assert targets(["a", "b"], rows) == {"a": None, "b": None}


# ---- rows read backwards


@pytest.mark.parametrize("name", checkpoints.networks())
def test_rows_backwards_and_forwards_restore_every_bit(name: str):
    """For every network, with transposed (GPT-2) and pointwise (UNet, VAE) weights."""
    config = checkpoints.networks()[name]
    state = checkpoints.random_state(name, config)
    theirs = checkpoints.to_diffusers(name, config, state)
    rows = [row for row in PARTS[name].rows(config) if row.target is not None]  # CLAP's other half is absent
    again = keymap.convert(theirs, plan(theirs, rows))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_transforms_have_inverses():
    for transform, shapes in ((transpose, [(3, 5), (4,)]), (pointwise, [(3, 5), (4,)])):
        for shape in shapes:
            ours = torch.randn(shape)
            assert torch.equal(transform.forward(transform.backward(ours)), ours)
    assert transpose.forward(torch.randn(3, 5)).shape == (5, 3)
    assert pointwise.forward(torch.randn(3, 5, 1, 1)).shape == (3, 5)
    assert pointwise.forward(torch.randn(3, 5, 1)).shape == (3, 5)
    assert pointwise.forward(torch.randn(3, 5)).shape == (3, 5)


def test_reverse_writes_the_first_of_several_names():
    rows = [Row("to_q", "query", pointwise), Row("query", "query", pointwise), Row("position_ids", None)]
    (back,) = reverse(rows)
    assert (back.source, back.target) == ("query", "to_q")
    assert back.transform.forward(torch.randn(2, 2)).shape == (2, 2, 1, 1)


def test_every_row_and_transform_can_be_pickled():
    """An open checkpoint holds them, and so does a model loaded from it."""
    for name, config in checkpoints.networks().items():
        rows = PARTS[name].rows(config)
        assert pickle.loads(pickle.dumps(rows)) == rows
