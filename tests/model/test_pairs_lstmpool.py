"""Pairs of texts taken apart: which tokens each text gets, and that each is read as if it were alone."""

import json

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertModel,
    ByT5Tokenizer,
    CanineTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.fields_lstmpool import LAYER_POOLINGS
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel
from lstmpool.pairs_lstmpool import compare, padding_id, pair_template, take_apart

from ..conftest import FAMILIES, backbone_config, tiny_config, tiny_model, word_tokenizer
from . import families


BERT = {"prefix": [2], "middle": [3], "suffix": [3]}
ROBERTA = {"prefix": [2], "middle": [3, 3], "suffix": [3]}
T5 = {"prefix": [], "middle": [3], "suffix": [3]}
XLNET = {"prefix": [], "middle": [3], "suffix": [3, 2]}
LLAMA = {"prefix": [2], "middle": [2], "suffix": []}
TEMPLATES = {"bert": BERT, "roberta": ROBERTA, "t5": T5, "xlnet": XLNET, "llama": LLAMA}


def joined(template, pairs, pad_left=False, padding=77):
    """The pairs as a tokenizer with this template joins and pads them, and their mask."""
    rows = [[*template["prefix"], *a, *template["middle"], *b, *template["suffix"]] for a, b in pairs]
    width = max(map(len, rows)) + 2
    ids, mask = torch.full((len(rows), width), padding), torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        where = slice(width - len(row), width) if pad_left else slice(0, len(row))
        ids[place, where] = torch.tensor(row, dtype=torch.long)
        mask[place, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(template, text):
    return [*template["prefix"], *text, *template["suffix"]]


PAIRS = [([11, 12, 13], [21]), ([11], [21, 22, 23, 24]), ([14, 15], []), ([], [25, 26])]


# ----------------------------------------------------------------------------------------------------------- by tokens
def test_a_pair_by_hand():
    ids = torch.tensor([[2, 11, 12, 3, 21, 3, 0], [0, 2, 11, 3, 21, 22, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]])
    found, kept = take_apart(ids, mask, BERT, padding_id=0)
    assert found.tolist() == [[2, 11, 12, 3], [2, 11, 3, 0], [2, 21, 3, 0], [2, 21, 22, 3]]
    assert kept.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_text_gets_what_it_has_alone(name, pad_left):
    template = TEMPLATES[name]
    found, kept = take_apart(**joined(template, PAIRS, pad_left), template=template, padding_id=9)
    assert found.shape[1] == 4 + len(alone(template, []))  # the longest text has four tokens
    texts = [a for a, _ in PAIRS] + [b for _, b in PAIRS]
    for row, mask, text in zip(found, kept, texts, strict=True):
        assert row[mask == 1].tolist() == alone(template, text)
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padding is on the right
        assert (row[mask == 0] == 9).all()


def test_without_a_mask_every_token_counts():
    found, kept = take_apart(torch.tensor([[2, 11, 3, 3]]), None, BERT, padding_id=0)
    assert found.tolist() == [[2, 11, 3], [2, 3, 0]] and kept.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_the_first_middle_parts_and_a_beginning_is_none():
    # LLAMA's rows begin with the token that stands between the texts
    found, _ = take_apart(torch.tensor([[2, 11, 2, 21, 2, 22]]), None, LLAMA, padding_id=0)
    assert found.tolist() == [[2, 11, 0, 0], [2, 21, 2, 22]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_single_text_is_refused_by_its_row(name):
    template = TEMPLATES[name]
    pair, single = joined(template, PAIRS[:1]), alone(template, [11])
    ids = torch.cat([pair["input_ids"], torch.full_like(pair["input_ids"], 77)])
    mask = torch.cat([pair["attention_mask"], torch.zeros_like(pair["attention_mask"])])
    ids[1, : len(single)], mask[1, : len(single)] = torch.tensor(single), 1
    with pytest.raises(ValueError, match="expects two texts a row, found one in row 1 of 2.*text_pair=.*'joint'"):
        take_apart(ids, mask, template, padding_id=0)
    behind = [*single, *template["middle"], *template["suffix"]]  # where the mask ends, what parts texts does not
    mask = torch.tensor([[1] * len(single) + [0] * (len(behind) - len(single))])
    with pytest.raises(ValueError, match="found one in row 0 of 1"):
        take_apart(torch.tensor([behind]), mask, template, padding_id=0)
    with pytest.raises(ValueError, match="found one in row 0 of 2"):
        take_apart(torch.zeros(2, 0, dtype=torch.long), None, template, padding_id=0)


def test_the_comparison_by_hand():
    states = torch.tensor([[[1.0, -2.0]], [[3.0, 4.0]]])  # u and v of one pair, one layer, H = 2
    assert compare(states).tolist() == [[[1.0, -2.0, 3.0, 4.0, 2.0, 6.0, 3.0, -8.0]]]
    large = torch.tensor([[[300.0]], [[-300.0]]], dtype=torch.float16)  # whose product is beyond float16
    assert compare(large).tolist() == [[[300.0, -300.0, 600.0, -65504.0]]]


def test_the_token_for_padding_is_one_that_the_backbone_has():
    assert padding_id(backbone_config("roberta")) == 1
    assert padding_id(backbone_config("gpt2")) == padding_id(backbone_config("llama", pad_token_id=-1)) == 0
    assert padding_id(backbone_config("llama", pad_token_id=50)) == 0


# ------------------------------------------------------------------------------------------------------- the tokenizer
def tokenizer_of(single, pair):
    """A word-level tokenizer whose special tokens stand as these two forms say."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "<s>", "</s>", "xx", "yes", "no"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, i) for i, word in enumerate(words[:5])]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        (word_tokenizer(), BERT),
        (tokenizer_of("<s> $A </s>", "<s> $A </s> </s> $B </s>"), ROBERTA),
        (tokenizer_of("$A </s>", "$A </s> $B </s>"), T5),
        (tokenizer_of("$A </s> <s>", "$A </s> $B </s> <s>"), XLNET),
        (tokenizer_of("<s> $A", "<s> $A <s> $B"), LLAMA),
        (ByT5Tokenizer(), {"prefix": [], "middle": [1], "suffix": [1]}),  # these two are not of the fast kind
        (CanineTokenizer(), {"prefix": [57344], "middle": [57345], "suffix": [57345]}),
    ],
)
def test_what_a_tokenizer_puts_around_two_texts(tokenizer, template, side):
    tokenizer.padding_side = tokenizer.truncation_side = side
    assert pair_template(tokenizer) == template
    batch = tokenizer(["yes no no no", "no"], ["no", ""], padding=True, return_tensors="pt")
    found, kept = take_apart(batch["input_ids"], batch["attention_mask"], template, 0)
    for row, mask, text in zip(found, kept, ["yes no no no", "no", "no", ""], strict=True):
        assert row[mask == 1].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pair_that_was_cut_is_still_a_pair(side):
    tokenizer = word_tokenizer()
    tokenizer.truncation_side = side
    batch = tokenizer(
        ["the a my order"], ["late broken money back"], truncation=True, max_length=7, return_tensors="pt"
    )
    found, _ = take_apart(batch["input_ids"], batch["attention_mask"], pair_template(tokenizer), 0)
    kept = ["the a", "late broken"] if side == "right" else ["my order", "money back"]
    assert found.tolist() == tokenizer(kept)["input_ids"]


@pytest.mark.parametrize(
    ("single", "pair"),
    [
        ("$A", "$A $B"),  # as GPT-2's
        ("$A </s> xx", "$A $B </s> xx"),  # as mBART's
        ("$A </s>", "xx $A </s> $B </s>"),
        ("<s> $A </s>", "<s> $A </s> $B"),
        ("$A", "$B </s> $A"),
    ],
)
def test_a_tokenizer_that_does_not_part_texts_is_refused(single, pair):
    with pytest.raises(ValueError, match="cannot be taken apart. Use pair_encoding='joint'"):
        pair_template(tokenizer_of(single, pair))


def test_a_tokenizer_without_words_for_it_is_refused():
    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="none")))
    with pytest.raises(ValueError, match="cannot be taken apart"):
        pair_template(tokenizer)


# ------------------------------------------------------------------------------------------------------------- fields
@pytest.mark.parametrize(
    "template",
    [
        None,
        [],
        {},
        {"prefix": [2], "middle": [3]},
        {"prefix": [2], "middle": [], "suffix": [3]},
        {"prefix": 2, "middle": [3], "suffix": [3]},
        {"prefix": [2], "middle": ["[SEP]"], "suffix": [3]},
        {"prefix": [2], "middle": [True], "suffix": [3]},
        {"prefix": [-2], "middle": [3], "suffix": [3]},
        {"prefix": [2], "middle": [50], "suffix": [3]},  # of 50 ids the highest is 49
        {"prefix": [2], "middle": [3], "suffix": [3], "end": [3]},
    ],
)
def test_a_wrong_template_is_refused(template):
    with pytest.raises(
        ValueError, match=r"pair_template must be .*middle is not empty.*Use pair_template\(tokenizer\)"
    ):
        tiny_config(pair_encoding="apart", pair_template=template)


def test_the_new_fields_are_checked_saved_and_absent_where_they_say_nothing(tmp_path):
    with pytest.raises(ValueError, match="pair_encoding must be one of 'joint', 'apart'.*Did you mean 'apart'"):
        tiny_config(pair_encoding="appart")
    with pytest.raises(ValueError, match="linear_skip must be True or False, got 'yes'"):
        tiny_config(linear_skip="yes")
    new = {"linear_skip": True, "pair_encoding": "apart", "pair_template": BERT}
    config = tiny_config(**new)
    assert (config.hidden_size, config.state_size, tiny_config().state_size) == (16, 64, 16)
    for fields in (new, {}):
        tiny_config(**fields).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert {name: saved[name] for name in new if name in saved} == fields
        assert LstmPoolConfig.from_pretrained(tmp_path) == tiny_config(**fields)


# -------------------------------------------------------------------------------------------------------------- models
def two_models(family, template, config=tiny_config, **fields):
    """One that reads texts apart and one that reads a text as it is, with the same backbone."""
    torch.manual_seed(0)
    apart = LstmPoolModel(config(family, pair_encoding="apart", pair_template=template, **fields)).eval()
    plain = LstmPoolModel(config(family, **fields)).eval()
    plain.backbone.load_state_dict(apart.backbone.state_dict())
    return apart, plain


def states_alone(plain, template, texts):
    rows = [torch.tensor([alone(template, text)]) for text in texts]
    with torch.no_grad():
        return torch.cat([plain(row, attention_mask=torch.ones_like(row)).layer_states for row in rows])


def check_alone(family, template, pad_left, config=tiny_config):
    apart, plain = two_models(family, template, config)
    width = plain.config.hidden_size
    pairs = [pair for pair in PAIRS if all(map(len, pair))] if not template["prefix"] else PAIRS
    with torch.no_grad():
        states = apart(**joined(template, pairs, pad_left)).layer_states
    u, v, distance, product = states.split(width, dim=-1)
    torch.testing.assert_close(u, states_alone(plain, template, [a for a, _ in pairs]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(v, states_alone(plain, template, [b for _, b in pairs]), atol=1e-5, rtol=1e-5)
    assert torch.equal(distance, (u - v).abs()) and torch.equal(product, u * v)
    assert not torch.allclose(u[:2], v[:2], atol=1e-3)


@pytest.mark.parametrize("pad_left", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_text_is_read_as_if_it_were_alone(family, pad_left):
    check_alone(family, TEMPLATES.get(family, ROBERTA if family == "mpnet" else BERT), pad_left)


@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_text_is_read_as_if_it_were_alone_in_every_family(family):
    excused = families.EXEMPT.get(family, {})
    if family in families.LEFT_OUT or {"right", "states", "vector"} & excused.keys():
        pytest.skip("padding on the right changes its vectors, or it attends to nothing here")

    def config(family, **fields):
        backbone = families.tiny_backbone_config(family)
        return LstmPoolConfig(backbone_config=backbone, lstm_hidden_size=5, **fields)

    check_alone(family, BERT, pad_left=False, config=config)


@pytest.mark.parametrize("layer_pooling", LAYER_POOLINGS)
def test_the_other_text_leaves_a_texts_vectors_alone(layer_pooling):
    model = tiny_model(layer_pooling=layer_pooling, layer_norm=True, pair_encoding="apart", pair_template=BERT)
    texts = [([11, 12], [21]), ([11, 12], [31, 32, 33]), ([41], [21])]
    with torch.no_grad():
        outputs = model(**joined(BERT, texts))
    u, v = outputs.layer_states.split(16, dim=-1)[:2]
    torch.testing.assert_close(u[0], u[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(v[0], v[2], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(v[0], v[1], atol=1e-3)
    again = model(layer_states=outputs.layer_states)
    assert torch.equal(again.logits, outputs.logits) and outputs.logits.shape == (3, 3)


def test_what_else_is_returned_has_the_first_texts_and_then_the_second():
    apart, plain = two_models("bert", BERT)
    inputs = joined(BERT, PAIRS)
    with torch.no_grad():
        outputs = apart(**inputs, output_hidden_states=True)
        assert outputs.last_hidden_state.shape == (8, 6, 16) and len(outputs.hidden_states) == 5
        wanted = plain(torch.tensor([alone(BERT, [21, 22, 23, 24])])).last_hidden_state[0]
        torch.testing.assert_close(outputs.last_hidden_state[5], wanted, atol=1e-6, rtol=1e-5)
        typed = apart(**inputs, token_type_ids=torch.ones_like(inputs["input_ids"]))
    assert torch.equal(typed.layer_states, outputs.layer_states)  # each text is a first one


@pytest.mark.parametrize("name", ["position_ids", "inputs_embeds", "encoder_attention_mask"])
def test_what_cannot_be_parted_is_refused_by_its_name(name):
    inputs = joined(BERT, PAIRS)
    shape = (*inputs["input_ids"].shape, 16) if name == "inputs_embeds" else inputs["input_ids"].shape
    inputs[name] = torch.zeros(shape)
    if name == "inputs_embeds":
        del inputs["input_ids"]
    model = tiny_model(pair_encoding="apart", pair_template=BERT)
    with pytest.raises(ValueError, match=rf"got \['{name}'\], which cannot be parted"):
        model(**inputs)
    with pytest.raises(ValueError, match=r"\(B, 4, 64\), got \(2, 4, 16\)"):
        model(layer_states=torch.zeros(2, 4, 16))


def test_a_graph_gives_the_same():
    model = tiny_model(layer_pooling="weighted", pair_encoding="apart", pair_template=BERT, linear_skip=True)
    inputs = joined(BERT, PAIRS)
    with torch.no_grad():
        wanted = model(**inputs).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(**inputs).logits, wanted, atol=1e-6, rtol=1e-5)
        exported = torch.export.export(model, (), inputs, strict=False).module()
        torch.testing.assert_close(exported(**inputs)["logits"], wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_trains_with_checkpointing_as_without(dtype):
    model = tiny_model(pair_encoding="apart", pair_template=BERT, linear_skip=True).to(dtype).train()
    gradients = []
    for switch_on in (False, True):
        if switch_on:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**joined(BERT, PAIRS), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert all(gradient.isfinite().all() for gradient in gradients[0].values())


def test_from_backbone_asks_the_tokenizer_beside_it(tmp_path):
    BertModel(backbone_config()).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError, ImportError), match="tokenizer|protobuf"):  # by the library's version
        LstmPoolForSequenceClassification.from_backbone(str(tmp_path), pair_encoding="apart")
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    new = {"linear_skip": True, "pair_encoding": "apart", "num_labels": 2}
    model = LstmPoolForSequenceClassification.from_backbone(str(tmp_path), dtype="bfloat16", **new)
    assert model.config.pair_template == BERT
    assert model.linear_skip.weight.dtype == torch.bfloat16 and not model.linear_skip.weight.any()
    given = {"prefix": [2], "middle": [4], "suffix": [3]}
    model = LstmPoolForSequenceClassification.from_backbone(str(tmp_path), pair_template=given, **new)
    assert model.config.pair_template == given


def test_saved_and_loaded_it_answers_in_a_pipeline(tmp_path, tokenizer):
    model = tiny_model(pair_encoding="apart", pair_template=BERT, linear_skip=True)
    nn.init.normal_(model.linear_skip.weight)
    model.save_pretrained(tmp_path)
    pair = {"text": "the order", "text_pair": "late is broken"}
    with torch.no_grad():
        outputs = model(**tokenizer(**pair, return_tensors="pt"))
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded.linear_skip.weight, model.linear_skip.weight)
        states = AutoModel.from_pretrained(tmp_path)(**tokenizer(**pair, return_tensors="pt")).layer_states
    assert torch.equal(states, outputs.layer_states)
    classify = pipeline("text-classification", model=loaded, tokenizer=tokenizer)
    assert classify(pair)["score"] == pytest.approx(outputs.logits.softmax(-1).max().item(), abs=1e-6)
    with pytest.raises(ValueError, match="found one in row 0 of 1"):
        classify("the order")


@pytest.mark.parametrize("elsewhere", ["lstmpool.backbone", "lstmpool.pooler", "linear_skip"])
def test_its_parts_may_lie_on_several_devices(tmp_path, elsewhere):
    model = tiny_model(pair_encoding="apart", pair_template=BERT, linear_skip=True)
    nn.init.normal_(model.linear_skip.weight)
    model.save_pretrained(tmp_path)
    parts = dict.fromkeys(("lstmpool.backbone", "lstmpool.pooler", "classifier", "linear_skip"), "cpu")
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, device_map=parts | {elsewhere: "disk"}, offload_folder=str(tmp_path / "offload")
    )
    with torch.no_grad():
        assert torch.equal(loaded(**joined(BERT, PAIRS)).logits, model(**joined(BERT, PAIRS)).logits)


def test_the_order_of_a_pair_counts():
    model = tiny_model(pair_encoding="apart", pair_template=BERT)
    with torch.no_grad():
        one = model(**joined(BERT, [([11, 12], [21])])).logits
        other = model(**joined(BERT, [([21], [11, 12])])).logits
    assert not torch.allclose(one, other, atol=1e-6)


def test_it_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        config = tiny_config(pair_encoding="apart", pair_template=BERT, linear_skip=True)
        model = LstmPoolForSequenceClassification(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    ids, mask = take_apart(torch.zeros(2, 7, dtype=torch.long, device="meta"), None, BERT, 0)
    assert ids.shape == mask.shape == (4, 6)  # a text of four tokens, and the other empty
