"""Rows leave a batch at exits that are made by hand: which rows, at which layer, and with which logits."""

import threading
from unittest import mock

import pytest
import torch
from torch import tensor
from transformers import AutoModel, BertModel, Trainer, TrainingArguments, pipeline

from lstmpool import capture_lstmpool, exits_lstmpool
from lstmpool.exits_lstmpool import Departures, confidence
from lstmpool.fields_lstmpool import MULTI, SINGLE
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import random_inputs
from .families import EXITS_EVERYWHERE, leave_at, rows_per_layer, run, tiny_backbone_config, tiny_model
from .test_trainer import Rows


LEAVE = [3, 1, 4, 2, 1]  # rows leave at these layers of 4
TEMPLATE = {"prefix": [2], "middle": [3], "suffix": [3]}


def with_exits(family="bert", inputs=None, leave=LEAVE, **fields):
    """A model whose rows `inputs` leave at the layers `leave`, and these inputs: of one length, unless given."""
    model = tiny_model(family, **fields)
    inputs = random_inputs(len(leave), 7) if inputs is None else inputs
    leave_at(model, inputs, leave)
    return model, inputs


def assert_close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=5e-6, rtol=1e-6)


def by_hand(model, inputs, layers=LEAVE):
    """The logits of rows that leave at `layers`: of the exits there, or of the model at its highest layer."""
    whole = run(model, inputs)
    early = model.exits(whole.layer_states)  # (B, L - 1, C)
    top = model.config.layers[-1]
    places = [model.config.layers.index(layer) for layer in layers]
    rows = range(len(layers))
    return torch.stack([whole.logits[i] if layers[i] == top else early[i, places[i]] for i in rows])


# ----------------------------------------------------------------------------------------------------------- the rule
def test_confidence_by_hand():
    logits = tensor([[0.0, 0.0], [0.0, 1.0986123]])  # of which the second has odds of 1 to 3
    torch.testing.assert_close(confidence(logits, SINGLE), tensor([0.5, 0.75]))
    torch.testing.assert_close(confidence(-logits, SINGLE), tensor([0.5, 0.75]))
    logits = tensor([[-1.0986123, 5.0], [1.0986123, 0.0], [-2.0, -3.0]])  # sure of no, of yes; the least sure counts
    torch.testing.assert_close(confidence(logits, MULTI), tensor([0.75, 0.5, 0.8807971]))
    assert not confidence(tensor([[float("nan"), 9.0]]), SINGLE) >= 0
    assert not confidence(tensor([[float("nan"), 9.0]]), MULTI) >= 0


def test_rows_leave_at_every_depth_and_come_back_in_order():
    model, inputs = with_exits()
    wanted, shapes = by_hand(model, inputs), rows_per_layer(model)
    found = run(model, inputs, exit_threshold=0.9)
    assert found.exit_layers.tolist() == LEAVE
    assert shapes == [(5, 7), (3, 7), (2, 7), (1, 7)]  # two leave at layer 1, and one each at 2 and 3
    assert_close(found.logits, wanted)
    assert found.layer_states is None


@pytest.mark.parametrize("family", EXITS_EVERYWHERE)
def test_in_rows_of_one_length_not_a_bit_differs(family):
    model, inputs = with_exits(family)
    departures = Departures(model.exits, model.config, 0.9)
    found = run(model.lstmpool, inputs, departures=departures).layer_states
    assert torch.equal(found, run(model, inputs).layer_states[[2]])  # the row that reaches the top


@pytest.mark.parametrize("left", [False, True])
def test_columns_that_only_rows_needed_that_have_left_go_too(left):
    inputs = random_inputs(5, 9, lengths=[4, 9, 3, 5, 8], pad_left=left)
    model, inputs = with_exits(inputs=inputs, token_pooling="mean")
    wanted, shapes = by_hand(model, inputs), rows_per_layer(model)
    found = run(model, inputs, exit_threshold=0.9)
    assert found.exit_layers.tolist() == LEAVE
    assert shapes == [(5, 9), (3, 5), (2, 4), (1, 3)]
    assert_close(found.logits, wanted)


def test_at_a_threshold_of_0_all_leave_at_the_lowest_layer_and_no_other_is_called():
    model, inputs = with_exits()
    lowest, shapes = model.exits(run(model, inputs).layer_states)[:, 0], rows_per_layer(model)
    found = run(model, inputs, exit_threshold=0)
    assert_close(found.logits, lowest)
    assert found.exit_layers.tolist() == [1] * 5
    assert shapes == [(5, 7)]
    assert capture_lstmpool._this_thread.taken is None


def test_above_1_no_row_leaves_and_nothing_differs():
    model, inputs = with_exits()
    whole, shapes = run(model, inputs), rows_per_layer(model)
    found = run(model, inputs, exit_threshold=1.5)
    assert torch.equal(found.logits, whole.logits) and found.exit_layers.tolist() == [4] * 5
    assert shapes == [(5, 7)] * 4
    assert whole.exit_layers is None and found.layer_states is None


def test_of_layers_that_are_named_only_these_have_exits_and_all_are_trimmed():
    model, inputs = with_exits(inputs=random_inputs(lengths=[7, 3, 5]), leave=[2, 4, 2], layers=[2, 4])
    wanted, shapes = by_hand(model, inputs, [2, 4, 2]), rows_per_layer(model)
    found = run(model, inputs, exit_threshold=0.9)
    assert found.exit_layers.tolist() == [2, 4, 2]
    assert shapes == [(3, 7), (3, 7), (1, 3), (1, 3)]
    assert_close(found.logits, wanted)


def test_the_head_reads_the_lower_layers_of_the_rows_that_reach_it():
    model, inputs = with_exits(linear_skip=True, layer_pooling="concat")
    torch.nn.init.normal_(model.linear_skip.weight)
    assert_close(run(model, inputs, exit_threshold=0.9).logits, by_hand(model, inputs))


def test_several_labels_leave_when_the_least_sure_decision_is_sure_enough():
    model, inputs = with_exits(problem_type=MULTI)  # where a row is to leave, one of three labels has a logit of 20
    assert run(model, inputs, exit_threshold=0.9).exit_layers.tolist() == [4] * 5
    for head in model.exits.heads:
        with torch.no_grad():
            head.weight.copy_(head.weight.sum(0).expand(3, -1))  # now all three have
    found = run(model, inputs, exit_threshold=0.9)
    assert found.exit_layers.tolist() == LEAVE
    assert_close(found.logits, by_hand(model, inputs))


def test_the_two_texts_of_a_pair_leave_together():
    inputs = random_inputs(5, 9, lengths=[9, 7, 9, 6, 8])
    ids, mask = inputs["input_ids"].clamp(min=5), inputs["attention_mask"]
    ids = ids.masked_fill(mask == 0, 0)
    ids[:, 0], ids[:, 3] = 2, 3
    last = mask.sum(1) - 1
    ids[torch.arange(5), last] = 3
    inputs = {"input_ids": ids, "attention_mask": mask}
    model, inputs = with_exits(inputs=inputs, pair_encoding="apart", pair_template=TEMPLATE)
    wanted, shapes = by_hand(model, inputs), rows_per_layer(model)
    found = run(model, inputs, exit_threshold=0.9)
    assert found.exit_layers.tolist() == LEAVE
    assert [rows for rows, _ in shapes] == [10, 6, 4, 2]
    assert_close(found.logits, wanted)


def test_a_row_that_is_not_a_number_never_leaves_and_spoils_no_other():
    model, inputs = with_exits()
    wanted = by_hand(model, inputs)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    embeds[1] = float("nan")
    found = run(model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}, exit_threshold=0.9)
    assert found.exit_layers.tolist() == [3, 4, 4, 2, 1]
    assert found.logits[1].isnan().all()
    others = [0, 2, 3, 4]
    torch.testing.assert_close(found.logits[others], wanted[others], atol=5e-6, rtol=0)


def test_what_stands_in_a_row_that_has_left_changes_nothing():
    model, inputs = with_exits()
    wanted = run(model, inputs, exit_threshold=0.9).logits

    def poison(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[1, 1:], hidden[4, 1:] = float("nan"), float("nan")  # they leave here, by their first token

    model.lstmpool.backbone.encoder.layer[0].register_forward_hook(poison)
    found = run(model, inputs, exit_threshold=0.9)
    assert found.exit_layers.tolist() == LEAVE and torch.equal(found.logits, wanted)


def test_rows_of_padding_alone():
    model, _ = with_exits()
    inputs = random_inputs(lengths=[0, 7, 0])
    whole = run(model, inputs)
    for threshold in (0, 0.34, 0.5, 1.5):
        found = run(model, inputs, exit_threshold=threshold)
        every = torch.cat([model.exits(whole.layer_states), whole.logits[:, None]], 1)  # (B, L, C)
        assert_close(found.logits, every[torch.arange(3), found.exit_layers - 1])


# -------------------------------------------------------------------------------------------------- around the model
def test_labels_give_the_loss_of_the_logits_that_come_back():
    model, inputs = with_exits()
    labels = tensor([0, 1, 2, 0, -100])
    found = run(model, inputs, labels=labels, exit_threshold=0.9)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(by_hand(model, inputs), labels))
    loss, logits, layers = run(model, inputs, labels=labels, exit_threshold=0.9, return_dict=False)
    assert torch.equal(loss, found.loss) and torch.equal(logits, found.logits) and layers.tolist() == LEAVE


def test_the_config_holds_the_threshold_and_an_argument_comes_before_it():
    model, inputs = with_exits()
    model.config.exit_threshold = 0.9
    assert run(model, inputs).exit_layers.tolist() == LEAVE
    assert run(model, inputs, exit_threshold=0).exit_layers.tolist() == [1] * 5
    assert run(model, inputs, exit_threshold=1).exit_layers.tolist() == LEAVE  # just as sure is enough
    model.config.exit_threshold = None
    assert run(model, inputs).exit_layers is None and run(model, inputs).layer_states.shape == (5, 4, 32)


def test_given_layer_states_were_computed_to_the_end():
    model, inputs = with_exits()
    whole = run(model, inputs)
    with mock.patch.object(exits_lstmpool, "_say_once") as said:
        found = run(model, {"layer_states": whole.layer_states}, exit_threshold=0)
    assert torch.equal(found.logits, whole.logits) and found.exit_layers.tolist() == [4] * 5
    assert not said.called


def test_trainer_predicts_an_array(tmp_path):
    rows = Rows()
    inputs = {name: rows.columns[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    model, _ = with_exits(inputs=inputs, leave=[1, 4] * 4)
    model.config.exit_threshold = 0.9
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=3)
    predictions = Trainer(model, arguments).predict(rows).predictions
    assert predictions.shape == (8, 3)
    torch.testing.assert_close(torch.from_numpy(predictions), run(model, inputs).logits, atol=5e-6, rtol=0)


def test_pipeline_uses_the_saved_threshold(tmp_path, tokenizer):
    texts = ["where is my order", "money back"]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    model, _ = with_exits(inputs=inputs, leave=[1, 4])
    model.config.exit_threshold = 0.9
    model.save_pretrained(tmp_path)
    loaded = LstmPoolForSequenceClassification.from_pretrained(tmp_path)
    found, shapes = run(loaded, inputs), rows_per_layer(loaded)
    assert found.exit_layers.tolist() == [1, 4]
    torch.testing.assert_close(found.logits, run(model, inputs).logits)
    scores = pipeline("text-classification", model=loaded, tokenizer=tokenizer)(texts, top_k=None)
    wanted = found.logits.softmax(-1).amax(-1)
    assert len(shapes) == 5  # the first text was read by one layer, the second by four
    torch.testing.assert_close(tensor([each[0]["score"] for each in scores]), wanted, atol=1e-5, rtol=0)


def test_two_models_in_two_threads():
    runs = [with_exits("bert"), with_exits("mpnet", leave=[4, 2, 1, 1, 3])]
    wanted = [run(*one, exit_threshold=0.9) for one in runs]
    wrong, start = [], threading.Barrier(2)

    def many(index):
        model, inputs = runs[index]
        start.wait()
        for _ in range(20):
            with torch.no_grad():
                found = model(**inputs, exit_threshold=0.9)
            same = torch.equal(found.exit_layers, wanted[index].exit_layers)
            if not same or not torch.allclose(found.logits, wanted[index].logits, atol=5e-6):
                wrong.append(index)

    threads = [threading.Thread(target=many, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_model_of_which_all_rows_leave_inside_a_layer_of_another():
    (outer, inputs), (inner, others) = with_exits(), with_exits("electra")
    wanted, seen = run(outer, inputs, exit_threshold=0.9).logits, []
    layer = outer.lstmpool.backbone.encoder.layer[1]
    layer.register_forward_pre_hook(lambda *args: seen.append(run(inner, others, exit_threshold=0)))
    assert torch.equal(run(outer, inputs, exit_threshold=0.9).logits, wanted)
    assert seen[0].exit_layers.tolist() == [1] * 5


# --------------------------------------------------------------------------------------------------- read to the end
def compiled(model):
    model.lstmpool.backbone.encoder.layer[0].compile(backend="eager")


def in_chunks(model):
    model.lstmpool.backbone.config.chunk_size_feed_forward = 1


def flash(model):
    model.lstmpool.backbone.config._attn_implementation = "flash_attention_2"


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (None, {"train": True}, "training mode"),
        (None, {"output_hidden_states": True}, "asked for"),
        (None, {"output_attentions": True}, "asked for"),
        (compiled, {}, "compiled"),
        (lambda model: model.lstmpool.compile(backend="eager"), {}, "compiled"),
        (in_chunks, {}, "chunk_size_feed_forward"),
    ],
)
def test_where_rows_cannot_leave_all_are_read_to_the_end_and_it_is_said(change, options, reason):
    model, inputs = with_exits(attn_implementation="eager")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wanted = run(model, inputs)
    if change is not None:
        change(model)
    with mock.patch.object(exits_lstmpool.logger, "warning_once") as warned:
        found = run(model, inputs, exit_threshold=0, **options)
    assert reason in warned.call_args[0][0]
    assert found.exit_layers.tolist() == [4] * 5
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.layer_states, wanted.layer_states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["albert", "gpt2", "xlnet"])
def test_other_families_are_read_to_the_end(family):
    model, inputs = tiny_model(family, early_exit=True), random_inputs(lengths=[7, 3, 5])
    with mock.patch.object(exits_lstmpool.logger, "warning_once") as warned:
        found = run(model, inputs, exit_threshold=0)
    assert f"the family {family}" in warned.call_args[0][0]
    assert torch.equal(found.logits, run(model, inputs).logits) and found.exit_layers.tolist() == [4] * 3


def test_several_processes_and_the_meta_device():
    model, inputs = with_exits()
    with mock.patch("torch.distributed.is_initialized", return_value=True):
        with mock.patch("torch.distributed.get_world_size", return_value=2):
            assert run(model, inputs, exit_threshold=0).exit_layers.tolist() == [4] * 5
        with mock.patch("torch.distributed.get_world_size", return_value=1):
            assert run(model, inputs, exit_threshold=0).exit_layers.tolist() == [1] * 5
    flash(model)
    assert exits_lstmpool.departures_of(model, 0, inputs["input_ids"], {}) is None
    model.lstmpool.backbone.config._attn_implementation = "sdpa"
    assert exits_lstmpool.departures_of(model, 0, inputs["input_ids"].to("meta"), {}) is None
    assert exits_lstmpool.departures_of(model, 0, inputs["input_ids"], {}) is not None


def test_an_input_of_the_layers_that_is_not_known_has_all_read_to_the_end():
    model, inputs = with_exits()
    wanted = run(model, inputs)
    with mock.patch.dict(exits_lstmpool._AXES, clear=True):
        with mock.patch.object(exits_lstmpool.logger, "warning_once") as warned:
            found = run(model, inputs, exit_threshold=0.9)
    assert "take ['hidden_states'" in warned.call_args[0][0]
    assert torch.equal(found.logits, wanted.logits) and found.exit_layers.tolist() == [4] * 5
    assert run(model, inputs, exit_threshold=0.9).exit_layers.tolist() == LEAVE


# --------------------------------------------------------------------------------------------- config, weights, dtypes
def test_a_threshold_that_cannot_be_is_refused():
    model, inputs = with_exits()
    for wrong in (True, "0.9", -1, float("nan")):
        with pytest.raises(ValueError, match="a confidence from 0 to 1"):
            model(**inputs, exit_threshold=wrong)
    model.remove_exits()
    assert model.exits is None and "early_exit" not in model.config.to_diff_dict()
    with pytest.raises(ValueError, match="exit_threshold=0.9 needs a model with exits"):
        model(**inputs, exit_threshold=0.9)
    one = tiny_model("bert", layers=[2])
    with pytest.raises(ValueError, match="two layers or more"):
        one.add_exits()
    assert one.exits is None and one.config.early_exit is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_standardization_stays_in_float32(dtype, tmp_path):
    model, inputs = with_exits()
    model.exits.standardization.mean.fill_(100.25)  # of which bfloat16 has 100
    model.save_pretrained(tmp_path)
    loaded = LstmPoolForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    for each in (loaded, model.to(dtype)):
        assert each.exits.heads[0].weight.dtype == dtype
        assert each.exits.standardization.mean.dtype == torch.float32
        assert (each.exits.standardization.mean == 100.25).all()
        found = run(each, inputs, exit_threshold=0)
        assert found.logits.dtype == dtype and found.exit_layers.tolist() == [1] * 5


def test_from_backbone_and_the_base_model(tmp_path):
    BertModel(tiny_backbone_config("bert")).save_pretrained(tmp_path / "backbone")
    model, report = LstmPoolForSequenceClassification.from_backbone(
        tmp_path / "backbone", early_exit=True, num_labels=3, dtype=torch.bfloat16, output_loading_info=True
    )
    new = {key for key in report["missing_keys"] if key.startswith("exits.")}
    assert new == {f"exits.{key}" for key in model.exits.state_dict()} and len(new) == 8
    assert model.exits.heads[0].weight.dtype == torch.bfloat16
    assert model.exits.standardization.mean.dtype == torch.float32
    assert run(model, random_inputs(), exit_threshold=0).exit_layers.tolist() == [1] * 3
    model.save_pretrained(tmp_path / "model")
    base, report = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert base(**random_inputs()).layer_states.shape == (3, 4, 32)


def test_exits_that_a_folder_lacks_are_made_and_not_raw_memory(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    model, report = LstmPoolForSequenceClassification.from_pretrained(
        tmp_path, early_exit=True, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {f"exits.{key}" for key in model.exits.state_dict()}
    assert (model.exits.standardization.scale == 1).all() and not model.exits.standardization.mean.any()
    for head in model.exits.heads:
        assert not head.bias.any() and 0 < head.weight.abs().max() < 1
