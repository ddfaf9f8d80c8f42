"""What a backbone can read of what a tokenizer makes: ids, positions, segments, and the token of padding."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerFast

from lstmpool import train_trainer
from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolModel
from lstmpool.training.errors import InputError
from lstmpool.training.model.token_limits import TokenLimits

from ...conftest import tiny_config
from ...model.families import FAST, tiny_backbone_config
from ...training_fixtures import SPECIAL, WORDS, save_backbone, sentences, write_csv


LIMITS = TokenLimits(ids=10, positions=4, segments=2)


class Padding:
    """What the check reads of a tokenizer."""

    model_max_length = 514

    def __init__(self, pad_token_id=0):
        self.pad_token_id = pad_token_id

    def convert_ids_to_tokens(self, token):
        return f"word {token}"


def check(ids, limits=LIMITS, pad_token_id=0, **columns):
    limits.check(Dataset.from_dict({"input_ids": ids} | columns), Padding(pad_token_id), "train rows")


def test_what_the_backbone_knows_is_read():
    check([[0, 9, 1, 2], [3]], token_type_ids=[[0, 1, 1, 1], [0]])
    check([[]])
    check([[], [1]])
    check([[10**6] * 5000], TokenLimits(None, None, None), token_type_ids=[[7]])


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"train rows: .*gives the id 10 \('word 10'\).* 0 to 9: .*Save the tokenizer", {"ids": [[1, 2], [10, 3]]}),
        (r"gives the id -1 .* 0 to 9", {"ids": [[1, -1]]}),
        (r"pads with the id 10 .* 0 to 9", {"ids": [[1, 2], [3]], "pad_token_id": 10}),
        (r"up to 4 tokens, found one of 5, .*cuts at 514\. Give --max_seq_length 4", {"ids": [[1], [1, 2, 3, 4, 5]]}),
        (r"up to 2 \(token_type_ids\).* 0 to 1.*--text_column_delimiter", {"ids": [[1]], "token_type_ids": [[2]]}),
        (r"no unk_token", {"ids": [[1, None]]}),
    ],
)
def test_what_it_does_not_know_is_refused(message, options):
    with pytest.raises(InputError, match=message):
        check(**options)


def test_a_token_of_padding_that_no_batch_needs_may_be_unknown():
    check([[1, 2], [3, 4]], pad_token_id=10)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", TokenLimits(50, 512, 2)),
        ("roberta", TokenLimits(50, 510, 2)),  # its 512 begin after that of padding, 1
        ("mpnet", TokenLimits(50, 510, None)),
        ("gpt2", TokenLimits(50, 1024, None)),
        ("llama", TokenLimits(50, None, None)),
        ("t5", TokenLimits(50, None, None)),
    ],
)
def test_the_limits_of_a_family(family, expected):
    assert TokenLimits.of_config(tiny_config(family)) == expected


@pytest.mark.parametrize("family", [*FAST, "lilt", "ctrl", "mra"])
def test_the_limits_are_those_at_which_the_backbone_stops(family):
    """A text of as many tokens as the check allows is read. Where it allows one more, so does the backbone."""
    config = LstmPoolConfig(backbone_config=tiny_backbone_config(family), lstm_hidden_size=4)
    limits, model = TokenLimits.of_config(config), LstmPoolModel(config).eval()
    assert limits == TokenLimits.of(model)
    run = partial(_run, model)
    assert run(limits.ids - 1, 5) and not run(limits.ids, 5)
    assert run(25, limits.positions or 200)
    assert limits.positions is None or not run(25, limits.positions + 1)


def _run(model, token, length):
    """Whether the model reads a text of so many tokens."""
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), token), attention_mask=torch.ones(1, length, dtype=torch.long))
    except (IndexError, RuntimeError):
        return False
    return True


def test_code_of_ones_own_is_not_run_without_its_weights():
    class OwnConfig(BertConfig):
        pass

    config = tiny_config()
    config.backbone_config = OwnConfig(**config.backbone_config.to_diff_dict())
    assert TokenLimits.of_config(config) is None
    model = LstmPoolModel(tiny_config())
    model.backbone.set_input_embeddings(nn.Embedding(64, 16))  # more rows than its config says
    assert TokenLimits.of(model).ids == 64


# --------------------------------------------------------------------------------------------------------- the command
def train(folder, capsys, *flags):
    """The status and the error of a command that trains on a few texts."""
    columns = {"text": sentences(20), "label": ["a", "b"] * 10}
    rows = write_csv(folder / "rows.csv", columns)
    words = [
        "--backbone",
        str(folder),
        "--train_file",
        str(rows),
        "--output_dir",
        str(folder / "out"),
        "--max_steps",
        "1",
    ]
    capsys.readouterr()
    status = train_trainer.main([*words, "--max_steps", "1", *flags])
    return status, capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused_before_weights_are_read(tmp_path, capsys):
    folder = save_backbone(tmp_path)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS[:-1], "other", WORDS[-1]])}
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
    (folder / "model.safetensors").unlink()  # nobody has missed them yet
    status, error = train(folder, capsys)
    assert status == 2
    assert error.startswith(f"error: --backbone {folder.name}, train rows: the tokenizer gives the id 21 ('moon')")
    assert error.count("\n") == 1
    assert not (folder / "out" / "config.json").exists()


def test_a_tokenizer_that_knows_no_unknown_word_is_refused(tmp_path, capsys):
    folder = save_backbone(tmp_path)
    words = {word: i for i, word in enumerate([*SPECIAL, *WORDS[:-1]])}
    backend = Tokenizer(models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", model_max_length=32).save_pretrained(folder)
    status, error = train(folder, capsys)
    assert status == 2 and error.count("\n") == 1
    assert "train rows: the tokenizer cannot read them: WordLevel error: Missing [UNK] token" in error


def test_more_tokens_than_positions_are_refused_and_the_remedy_helps(tmp_path, capsys):
    folder = save_backbone(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=21, max_position_embeddings=4, **sizes)).save_pretrained(folder)
    status, error = train(folder, capsys)
    assert status == 2 and "reads texts of up to 4 tokens, found one of 5" in error
    assert train(folder, capsys, "--max_seq_length", "4")[0] == 0


def test_a_finished_model_cuts_longer_texts_than_it_was_trained_on_where_its_positions_end(tmp_path, capsys):
    folder = save_backbone(tmp_path)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    BertTokenizer(vocab=vocabulary, model_max_length=514).save_pretrained(folder)  # the backbone has 32 positions
    assert train(folder, capsys)[0] == 0
    assert AutoTokenizer.from_pretrained(folder / "out").model_max_length == 32
