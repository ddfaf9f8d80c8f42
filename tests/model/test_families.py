"""Every backbone family that the library has a sequence-classification head for passes the same checks.

pytest tests/model/test_families.py                            # one family of each kind
pytest -m "slow or not slow" tests/model/test_families.py      # all of them
python -m tests.model.families_table                          # all of them, and the table tests/model/FAMILIES.md
"""

import re
import tempfile
import traceback
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.families_lstmpool import Families, is_causal
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.pooling_lstmpool import pool_tokens

from ..conftest import since
from .families import (
    EXEMPT,
    EXITS_EVERYWHERE,
    FAMILIES,
    FAST,
    FIRST_TEXT_ID,
    LEFT_OUT,
    SPECIAL,
    TOKENS,
    TOLERANCE,
    UNUSED,
    UNUSED_WHEN_CUT,
    apart,
    assert_close,
    batch,
    leave_at,
    pad_id,
    rows_per_layer,
    run,
    spread,
    texts,
    tiny_backbone_config,
    tiny_config,
    tiny_model,
)


def without_gradient(model, inputs):
    torch.manual_seed(1)
    loss = model.train()(**inputs, labels=torch.arange(len(inputs["input_ids"])) % 3).loss
    assert loss.isfinite(), "loss is not finite"
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values()), "gradient not finite"
    return sorted(name for name, gradient in gradients.items() if gradient is None)


def unused(family, lacking, cut=False):
    """Those of the parameters without a gradient that the table does not name."""
    patterns = [*UNUSED.get(family, {}), *(UNUSED_WHEN_CUT.get(family, {}) if cut else {})]
    return [name for name in lacking if not any(re.search(pattern, name) for pattern in patterns)]


def full_batch(family, model):
    """Three texts, the shorter ones padded on the right."""
    return batch(texts(family), pad_id(model))


# ---------------------------------------------------------------------------------------------------------- the checks
def check_trains(family):
    model = tiny_model(family)
    lacking = without_gradient(model, full_batch(family, model))
    unnamed = unused(family, lacking)
    assert not unnamed, f"{len(unnamed)} without gradient: {unnamed[:6]}"
    for pattern in UNUSED.get(family, {}):
        assert any(re.search(pattern, name) for name in lacking), f"{pattern} is used"


def check_states(family):
    for pooling in (None, "mean"):
        model = tiny_model(family, token_pooling=pooling)
        inputs, how = full_batch(family, model), model.config.token_readout
        for train in (False, True):
            if train:
                for module in model.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 0.2
            streamed = run(model, inputs, train).layer_states
            both = run(model, inputs, train, output_hidden_states=True)
            layers = model.config.layers
            assert len(both.hidden_states) == model.config.num_hidden_layers + 1, (
                f"{len(both.hidden_states)} hidden states, {model.config.num_hidden_layers} layers"
            )
            states = [pool_tokens(both.hidden_states[layer], inputs["attention_mask"], how) for layer in layers]
            states = torch.stack(states, 1)
            assert streamed.shape[1] == len(layers)
            for index, layer in enumerate(layers):
                for found in (both.layer_states, streamed):
                    assert torch.equal(found[:, index], states[:, index]), (
                        f"layer {layer} of {len(layers)} differs by {apart(found[:, index], states[:, index]):.1g}"
                        f" ({how}, {'train' if train else 'eval'})"
                    )


def padded_and_alone(family, left):
    for pooling in (None, "mean"):
        model, rows = tiny_model(family, token_pooling=pooling), texts(family)
        together = run(model, batch(rows, pad_id(model), left))
        for index, row in enumerate(rows):
            alone = run(model, batch([row]))
            what = f"row {index}, {model.config.token_pooling},"
            assert_close(what, together.layer_states[index], alone.layer_states[0])
            assert_close(what, together.logits[index], alone.logits[0])


def check_right(family):
    padded_and_alone(family, left=False)


def check_left(family):
    padded_and_alone(family, left=True)


def check_mates(family):
    model = tiny_model(family)
    inputs = full_batch(family, model)
    together = run(model, inputs).logits
    for index in range(len(together)):
        alone = run(model, {name: value[index : index + 1] for name, value in inputs.items()}).logits
        assert_close(f"row {index}", together[index], alone[0])
    ids = inputs["input_ids"].clone()
    ids[1:] = torch.where(ids[1:] >= FIRST_TEXT_ID, ids[1:] - FIRST_TEXT_ID + 20, ids[1:]).flip(0)
    ids[1:, 1:][ids[1:, 1:] >= FIRST_TEXT_ID] = 33
    assert_close("row 0", run(model, inputs | {"input_ids": ids}).logits[0], together[0])


def check_saved(family):
    model = tiny_model(family)
    inputs = full_batch(family, model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {sorted(info[kind])[:5]}"
    assert type(loaded) is type(model) and type(loaded.config) is type(model.config)
    assert type(loaded.config.backbone_config) is type(model.config.backbone_config)
    if not since("5.1"):  # 5.0.0 and 4.57.6 write into the backbone's config which dtype was loaded
        model.config.backbone_config.dtype = loaded.config.backbone_config.dtype
    assert loaded.config == model.config, "config differs"
    found, wanted = run(loaded, inputs).logits, run(model, inputs).logits
    assert torch.equal(found, wanted), f"logits differ by {apart(found, wanted):.1g}"


def bare_backbone(family):
    config = tiny_backbone_config(family)
    if family == "funnel":  # two classes have this config; without a name the library stops
        config.architectures = ["FunnelModel"]
    torch.manual_seed(0)
    return spread(AutoModel.from_config(config)).eval()


def check_weights(family):
    bare = bare_backbone(family)
    with tempfile.TemporaryDirectory() as folder:
        bare.save_pretrained(folder)
        fields = {"num_labels": 3, "lstm_hidden_size": 5}
        model, info = LstmPoolForSequenceClassification.from_backbone(folder, output_loading_info=True, **fields)
    built = model.lstmpool.backbone.state_dict()
    assert all(name.startswith(("lstmpool.pooler.", "classifier.")) for name in info["missing_keys"])
    whole = bare.get_encoder() if bare.config.is_encoder_decoder else bare
    parts = [module for module in whole.modules() if module.state_dict().keys() >= built.keys()]
    assert parts, f"{sorted(built.keys() - whole.state_dict().keys())[:4]} are not the backbone's"
    weights = parts[-1].state_dict()  # the whole, or its text model
    wrong = [name for name, value in built.items() if not torch.equal(value, weights[name])]
    assert not wrong, f"{len(wrong)} of {len(built)} weights differ: {wrong[:4]}"
    inputs = full_batch(family, model)
    kept = inputs["attention_mask"] != 0
    extra = {"global_attention_mask": (kept.cumsum(1) == 1) & kept} if family == "longformer" else {}
    torch.manual_seed(1)
    with torch.no_grad():
        wanted = whole(**inputs, **extra, output_hidden_states=True, return_dict=True).hidden_states
    found = run(model, inputs, output_hidden_states=True).hidden_states
    assert len(found) == len(wanted) or family == "funnel", f"{len(found)} and {len(wanted)} hidden states"
    for index, (one, other) in enumerate(zip(found, wanted, strict=False)):  # funnel: of the encoder alone
        if one.shape[1] >= kept.shape[1]:  # what stands at padding means nothing
            one, other = (state[:, : kept.shape[1]][kept] for state in (one, other))
        assert_close(f"hidden state {index}", one, other)


def below_the_top(family):
    """The full model, and models of the same weights that read fewer layers."""
    full = tiny_model(family)
    total = full.config.num_hidden_layers
    for layers in ([1, total - 1], [2], [1]):
        part = tiny_model(family, layers=layers)
        report = part.lstmpool.backbone.load_state_dict(full.lstmpool.backbone.state_dict(), strict=False)
        assert not report.missing_keys, f"missing {report.missing_keys[:4]}"
        yield full, part, layers, report.unexpected_keys


def check_subset(family):
    for full, part, layers, _ in below_the_top(family):
        inputs = full_batch(family, part)
        found, wanted = (run(model.lstmpool, inputs).layer_states for model in (part, full))
        for index, layer in enumerate(layers):
            assert_close(f"layer {layer} of {layers}", found[:, index], wanted[:, layer - 1], 0)


def check_cut(family):
    for _, part, layers, left_out in below_the_top(family):
        assert left_out, "the layers above are built"
        unnamed = unused(family, without_gradient(part, full_batch(family, part)), cut=True)
        assert not unnamed, f"layers={layers}: {len(unnamed)} without gradient: {unnamed[:4]}"


def sees_later_tokens(family):
    """Whether a change of the last token changes what an earlier one becomes."""
    model = tiny_model(family)
    inputs = batch([texts(family)[0]])
    before = run(model, inputs, output_hidden_states=True).hidden_states[-1]
    inputs["input_ids"][0, -1] = 31 if inputs["input_ids"][0, -1] != 31 else 32
    after = run(model, inputs, output_hidden_states=True).hidden_states[-1]
    return apart(after[:, :-1], before[:, :-1]) > TOLERANCE


def check_vector(family):
    model = tiny_model(family)
    sees, default = sees_later_tokens(family), model.config.token_pooling
    assert is_causal(model.config.backbone_config) is not sees, (
        f"a later token {'does' if sees else 'does not'} matter"
    )
    encoder = "mean" if model.config.backbone_config.is_encoder_decoder else "cls"
    assert default == (encoder if sees else "last"), f"token_pooling is {default}"


def ends_in_norm(family):
    """Whether every layer below the top leaves vectors of unit size while the norms are as initialised."""
    torch.manual_seed(0)
    model = spread(LstmPoolForSequenceClassification(tiny_config(family)), norms=False)
    states = run(model, batch([texts(family)[0]]), output_hidden_states=True).hidden_states[1:-1]
    return all(abs(state.square().mean() - 1) < 0.05 for state in states)


def check_scale(family):
    default, normed = tiny_config(family).layer_norm, ends_in_norm(family)
    assert default is not normed, f"layer_norm is {default}, but layers {'end' if normed else 'do not end'} in a norm"


def check_exits(family):
    """Rows leave a batch at layers 2, 1 and at the top, as in a run of all layers, and as alone with their padding."""
    assert family in Families.EARLY_EXIT, "read to the end"
    model, rows = tiny_model(family, token_pooling="mean"), texts(family)
    shapes, top = rows_per_layer(model), model.config.num_hidden_layers
    for left in (False, True):
        inputs = batch(rows, pad_id(model), left)
        leave_at(model, inputs, layers := [2, 1, top])
        whole = run(model, inputs)
        early = model.exits(whole.layer_states)
        shapes.clear()
        found = run(model, inputs, exit_threshold=0.9)
        assert found.exit_layers.tolist() == layers, f"rows left at {found.exit_layers.tolist()}, and not at {layers}"
        wide, narrow = inputs["input_ids"].shape[1], len(rows[2])
        assert shapes == [(3, wide), (2, wide), *[(1, narrow)] * (top - 2)], f"the layers read {shapes}"
        assert_close("a row", found.logits, torch.stack([early[0, 1], early[1, 0], whole.logits[2]]), 5e-6)
        for index, layer in enumerate(layers):
            shapes.clear()
            alone = run(model, {name: value[[index]] for name, value in inputs.items()}, exit_threshold=0.9)
            assert len(shapes) == layer, f"row {index} alone was read by {len(shapes)} layers, and not by {layer}"
            assert_close(f"row {index} alone", alone.logits[0], found.logits[index], 5e-6)


CHECKS = {
    "trains": (check_trains, "forward and backward finite, every parameter with a gradient"),
    "states": (check_states, "layer states are those of output_hidden_states, bit for bit, and as many"),
    "right": (check_right, "right padding changes nothing"),
    "left": (check_left, "left padding changes nothing"),
    "mates": (check_mates, "a text's logits do not depend on the texts beside it"),
    "saved": (check_saved, "save and load: equal logits, the same classes"),
    "weights": (check_weights, "from_backbone: exactly the backbone's weights, and its hidden states"),
    "subset": (check_subset, "layers below the top: the same states as in the full model"),
    "cut": (check_cut, "the layers above the highest that is read are not built"),
    "vector": (check_vector, "default token pooling fits: causal if and only if later tokens do not matter"),
    "scale": (check_scale, "default layer_norm fits: off if and only if every layer ends in a norm"),
    "exits": (
        check_exits,
        "rows that leave early change nothing for the others, with left and right padding, and each row is read by as "
        "many layers as `exit_layers` says; an excused family is read to the end",
    ),
}


def outcome(family, check):
    """The table's cell for a family that is not left out, and whether the table expects it."""
    reason = EXEMPT.get(family, {}).get(check)
    try:
        CHECKS[check][0](family)
    except Exception as error:
        if reason and isinstance(error, AssertionError):
            return reason, True
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"FAILS: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})", False
    return (f"FAILS: passes, but is excused: {reason}", False) if reason else ("yes", True)


def is_fast(family, check):
    """Whether the default run has this check: all of one family of each kind, and exits where rows leave by them."""
    leaves = family in Families.EARLY_EXIT if since("5.23") else family in EXITS_EVERYWHERE
    return family in FAST or (check == "exits" and leaves)


def cases():
    every = [(family, check) for family in FAMILIES if family not in LEFT_OUT for check in CHECKS]
    return [pytest.param(*case, marks=() if is_fast(*case) else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("family", "check"), cases())
def test_family(family, check):
    if family == "zamba2" and check in ("right", "left", "vector", "saved", "weights") and not since("5.0"):
        pytest.skip("there it cannot be saved, bare or not, and without CUDA kernels its tokens see some later ones")
    if family == "zamba2" and since("5.0") and not since("5.1"):
        pytest.skip("5.0.0 cannot build the bare backbone, unless its first layer is a hybrid one")
    cell, expected = outcome(family, check)
    assert expected, cell


@pytest.mark.parametrize("family", LEFT_OUT)
def test_a_family_that_is_left_out_is_refused(family):
    with pytest.raises(ValueError, match=family):
        LstmPoolConfig(backbone_config=tiny_backbone_config(family))


@pytest.mark.skipif(not since("5.23"), reason="the tables have families that are newer")
def test_the_tables_name_families_that_exist():
    for table in (EXEMPT, FAST, LEFT_OUT, SPECIAL, TOKENS, UNUSED, UNUSED_WHEN_CUT):
        assert table.keys() <= set(FAMILIES)
    assert len(FAMILIES) - len(LEFT_OUT) >= 120
    assert Families.EARLY_EXIT <= set(FAMILIES) and set(EXITS_EVERYWHERE) <= Families.EARLY_EXIT
