"""Layer states are taken while the backbone runs: the same numbers, no memory kept, in every way a model is run."""

import copy
import gc
import pickle
import threading

import pytest
import torch
from transformers import BertModel

from lstmpool import capture_lstmpool
from lstmpool.capture_lstmpool import find_stack, layer_lists
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel
from lstmpool.pooling_lstmpool import pool_tokens

from ..conftest import FAMILIES, backbone_config, random_inputs, since, tiny_config, tiny_model


# backbones with gradient checkpointing; those without say so (test_library.py)
CHECKPOINTED = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama", "t5"]
STREAMED = [family for family in FAMILIES if family not in ("albert", "xlnet")]


def from_hidden_states(base, inputs):
    """What the base model gives by `output_hidden_states=True`, layer by layer after the run."""
    streams, base.capture.streams = base.capture.streams, False
    try:
        outputs = base(**inputs)
    finally:
        base.capture.streams = streams
    return outputs


def skip_a_top_state_before_the_norm(family):
    if family == "modernbert" and not since("5.1"):
        pytest.skip("5.0.0 and 4.57.6 give its last hidden state before the final norm, unlike all others")


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("token_pooling", ["mean", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_states_are_the_hidden_states_bit_for_bit(family, token_pooling, train):
    skip_a_top_state_before_the_norm(family)
    model = tiny_model(family, token_pooling=token_pooling).train(train)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    base, inputs = model.lstmpool, random_inputs(lengths=[7, 3, 5])
    torch.manual_seed(1)
    streamed = base(**inputs)
    torch.manual_seed(1)
    collected = from_hidden_states(base, inputs)
    assert base.capture.streams is (family in STREAMED)
    assert streamed.layer_states.shape == (3, 4, 16)
    assert torch.equal(streamed.layer_states, collected.layer_states)
    assert torch.equal(streamed.pooler_output, collected.pooler_output)


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layers", [None, [1, 3]])
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("family", CHECKPOINTED)
def test_gradient_checkpointing_gives_the_same_gradients(family, use_reentrant, layers):
    if (family, use_reentrant) == ("deberta-v2", True):
        pytest.skip("the bare backbone raises: its layers share a tensor that a reentrant checkpoint frees")
    if layers is None:
        skip_a_top_state_before_the_norm(family)
    model, inputs = tiny_model(family, token_pooling="mean", layers=layers).train(), random_inputs(lengths=[7, 3, 5])
    plain = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    outputs = model(**inputs, output_hidden_states=True)
    for index, layer in enumerate(model.config.layers):
        collected = pool_tokens(outputs.hidden_states[layer], inputs["attention_mask"], "mean")
        assert torch.equal(outputs.layer_states[:, index], collected)
    checkpointed = gradients(model, inputs)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_gradient_checkpointing_reads_every_layer():
    # a state taken inside a reentrant checkpoint has no gradient: the layers below the top would not learn from it
    model = tiny_model().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model(**random_inputs()).layer_states[:, 0, 0].sum().backward()
    layers = model.lstmpool.backbone.encoder.layer
    assert layers[0].output.dense.weight.grad.abs().sum() > 0
    assert layers[1].output.dense.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("layers", [None, [2], [1, 3]])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_one_backward_no_parameter_lacks_a_gradient(family, layers):
    model = tiny_model(family, layers=layers).train()
    model(**random_inputs(lengths=[7, 3, 5]), labels=torch.tensor([0, 1, 2])).loss.backward()
    lacking = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    if family == "xlnet":  # the query of its two-stream pretraining and its segments, which plain text does not use
        lacking = {n for n in lacking if not n.endswith(("mask_emb", "seg_embed", "r_s_bias"))}
    if family in ("albert", "xlnet") and layers:  # not cut: the layers above run, and are not read
        lacking = {n for n in lacking if ".layer." not in n}
    assert lacking == set()


# --------------------------------------------------------------------------------------------------------- compilation
def reset():
    torch._dynamo.reset()


@pytest.mark.parametrize("called_first", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_compiled_backbone_gives_the_same_states(family, called_first):
    reset()
    model, inputs = tiny_model(family), random_inputs(lengths=[7, 3, 5])
    with torch.no_grad():
        wanted = model(**inputs)
        model.lstmpool.backbone.compile(backend="aot_eager")
        if called_first:  # without a capture: what was compiled then must not be used for a run with one
            model.lstmpool.backbone(**inputs)
        found = model(**inputs)
    torch.testing.assert_close(found.layer_states, wanted.layer_states, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-6, rtol=1e-6)


def test_the_compiled_backbone_is_one_graph():
    reset()
    model, inputs = tiny_model(), random_inputs()
    with torch.no_grad():
        wanted = model(**inputs)
        model.lstmpool.backbone.compile(backend="aot_eager", fullgraph=True)
        assert torch.allclose(model(**inputs).layer_states, wanted.layer_states, atol=1e-6)


def test_a_compiled_model_is_one_graph_that_no_row_leaves():
    reset()
    model, inputs = tiny_model(early_exit=True, layer_pooling="max"), random_inputs(lengths=[7, 3, 5])
    with torch.no_grad():
        wanted = model(**inputs).logits
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs, exit_threshold=0)
    torch.testing.assert_close(found.logits, wanted, atol=1e-6, rtol=1e-6)
    assert found.exit_layers.tolist() == [4, 4, 4]


def test_a_compiled_model_trains_as_the_plain_one():
    reset()
    model, inputs = tiny_model().train(), random_inputs(lengths=[7, 3, 5])
    plain = gradients(model, inputs)
    model.compile(backend="aot_eager")
    for name, gradient in gradients(model, inputs).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5, msg=name)


def test_compiling_around_a_checkpointed_model_agrees():
    reset()
    model, inputs = tiny_model().train(), random_inputs(lengths=[7, 3, 5])
    plain = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.compile(backend="aot_eager")
    for name, gradient in gradients(model, inputs).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5, msg=name)


# ------------------------------------------------------------------------------------------------- threads, exceptions
def test_threads_do_not_see_each_others_states():
    model = tiny_model()
    inputs = [random_inputs(2, 5 + i, seed=i) for i in range(8)]
    with torch.no_grad():
        wanted = [model(**one).layer_states for one in inputs]
    wrong, start = [], threading.Barrier(len(inputs))

    def run(index):
        start.wait()
        for _ in range(20):
            with torch.no_grad():
                found = model(**inputs[index]).layer_states
            if found.shape != wanted[index].shape or not torch.allclose(found, wanted[index], atol=1e-6):
                wrong.append(index)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_nothing_is_left_after_an_exception():
    model, inputs = tiny_model(), random_inputs()
    wanted = model(**inputs).logits
    forward = model.lstmpool.backbone.encoder.layer[2].forward

    def fail(*args, **kwargs):
        raise RuntimeError("a layer failed")

    model.lstmpool.backbone.encoder.layer[2].forward = fail
    with pytest.raises(RuntimeError, match="a layer failed"):
        model(**inputs)
    assert getattr(capture_lstmpool._this_thread, "taken", None) is None
    model.lstmpool.backbone.encoder.layer[2].forward = forward
    assert torch.equal(model(**inputs).logits, wanted)


def test_the_bare_backbone_can_be_called_and_captures_nothing():
    model = tiny_model()
    model.lstmpool.backbone(**random_inputs())
    assert getattr(capture_lstmpool._this_thread, "taken", None) is None


def test_a_model_inside_a_layer_of_another_has_its_own_capture():
    outer, inner, inputs = tiny_model(), tiny_model("electra"), random_inputs()
    wanted, wanted_inner, seen = outer(**inputs).layer_states, inner(**inputs).layer_states, []
    layer = outer.lstmpool.backbone.encoder.layer[1]
    layer.register_forward_pre_hook(lambda *args: seen.append(inner(**inputs).layer_states))
    assert torch.equal(outer(**inputs).layer_states, wanted)
    assert torch.equal(seen[0], wanted_inner)


def test_layers_that_were_not_called_are_an_error_and_not_a_copy():
    model = tiny_model()
    model.lstmpool.backbone.encoder.layer = torch.nn.ModuleList(model.lstmpool.backbone.encoder.layer[:1])
    with pytest.raises(RuntimeError, match="without calling the layers"):
        model(**random_inputs())


def test_layerdrop_in_training_repeats_the_layer_below():
    model = LstmPoolForSequenceClassification(tiny_config("bert")).train()
    layers = model.lstmpool.backbone.encoder.layer
    skipped = torch.nn.ModuleList([layers[0], layers[2], layers[3]])  # as LayerDrop leaves out the second
    model.lstmpool.backbone.encoder.layer = skipped
    states = model(**random_inputs()).layer_states
    assert torch.equal(states[:, 0], states[:, 1])
    assert not torch.equal(states[:, 1], states[:, 2])


def test_a_copied_and_a_pickled_model_still_capture():
    model, inputs = tiny_model(), random_inputs()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**inputs).layer_states, model(**inputs).layer_states)


# -------------------------------------------------------------------------------------------------------------- stacks
def assert_same_by_hidden_states(model, inputs):
    """Layer states, logits and, to 1e-9, every gradient are those of a run that returns all hidden states."""
    model = model.double()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    runs = []
    for streams in (True, False):
        model.lstmpool.capture.streams = streams
        outputs = model(**inputs, labels=torch.tensor([0, 1, 2]))
        gradients = torch.autograd.grad(outputs.loss, list(parameters.values()), allow_unused=True)
        found = dict(zip(parameters, gradients, strict=True))
        runs.append((outputs, found))
    (streamed, gradients), (whole, wanted) = runs
    assert torch.equal(streamed.layer_states, whole.layer_states) and torch.equal(streamed.logits, whole.logits)
    for name in parameters:
        assert (gradients[name] is None) == (wanted[name] is None), name
        if wanted[name] is not None:  # a sum over the layers, in another order
            torch.testing.assert_close(gradients[name], wanted[name], atol=1e-9, rtol=1e-9, msg=name)


def test_a_layer_that_stands_twice_in_the_stack_gives_the_states_of_both_places():
    torch.manual_seed(0)
    backbone, inputs = BertModel(backbone_config()), random_inputs(lengths=[7, 3, 5])
    backbone.encoder.layer[2] = backbone.encoder.layer[1]
    model = LstmPoolForSequenceClassification(tiny_config(), backbone=backbone).eval()
    assert model.lstmpool.layer_stack is None
    outputs = model(**inputs, output_hidden_states=True)
    wanted = torch.stack([hidden[:, 0] for hidden in outputs.hidden_states[1:]], dim=1)
    assert torch.equal(outputs.layer_states, wanted) and torch.equal(model(**inputs).layer_states, wanted)


def test_two_lists_of_the_same_length_are_no_stack():
    torch.manual_seed(0)
    backbone = BertModel(backbone_config())
    backbone.encoder.beside = torch.nn.ModuleList(torch.nn.Identity() for _ in backbone.encoder.layer)
    assert layer_lists(backbone, 4) == ["encoder.layer", "encoder.beside"]
    assert find_stack(backbone, 4) is None and find_stack(backbone, 3) is None
    del backbone.encoder.beside[0]
    assert find_stack(backbone, 4) == "encoder.layer" and find_stack(backbone, 3) == "encoder.beside"
    model = LstmPoolForSequenceClassification(tiny_config(), backbone=backbone)
    assert model.lstmpool.layer_stack == "encoder.layer" and model.lstmpool.capture.streams


def test_a_config_that_is_changed_after_the_model_was_made():
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    model.config.token_pooling = "mean"
    assert_same_by_hidden_states(model, inputs)
    hidden = model(**inputs, output_hidden_states=True).hidden_states[1]
    found = model(**inputs).layer_states[1, 0]
    torch.testing.assert_close(found, hidden[1, :3].mean(0), atol=1e-6, rtol=0)  # a text of 3 tokens


def test_a_convolution_over_all_tokens():
    config = tiny_config("deberta-v2", layers=[1])  # the layer that it is added to
    config.backbone_config.conv_kernel_size = 3
    model = LstmPoolForSequenceClassification(config).eval()
    assert_same_by_hidden_states(model, random_inputs(lengths=[7, 3, 5]))


def test_one_token_texts_and_rows_of_padding():
    assert_same_by_hidden_states(tiny_model(), random_inputs(3, 1))
    assert_same_by_hidden_states(tiny_model(attn_implementation="eager"), random_inputs(lengths=[7, 0, 3]))


# -------------------------------------------------------------------------------------------------------------- memory
def test_inference_keeps_no_layer():
    """Tensors of the size of a layer's (B, T, H) that are alive when the last layer begins."""
    model, inputs, alive = tiny_model(), random_inputs(2, 40), []
    size = 2 * 40 * 16 * 4

    def count(*args):
        gc.collect()
        storages = {
            tensor.untyped_storage().data_ptr()
            for tensor in gc.get_objects()
            if type(tensor) is torch.Tensor and tensor.untyped_storage().nbytes() == size
        }
        alive.append(len(storages))

    for layer in model.lstmpool.backbone.encoder.layer:
        layer.register_forward_pre_hook(count)
    with torch.no_grad():
        model(**inputs)
        streamed = alive.copy()
        alive.clear()
        from_hidden_states(model.lstmpool, inputs)
    assert streamed[1] == streamed[2] == streamed[3]
    assert [after - before for before, after in zip(alive, alive[1:], strict=False)] == [1, 1, 1]  # the naive way


def test_base_and_classifier_return_the_same_states():
    model = tiny_model()
    base = LstmPoolModel(model.config)
    base.load_state_dict(model.lstmpool.state_dict())
    assert torch.equal(base.eval()(**random_inputs()).layer_states, model(**random_inputs()).layer_states)
