"""Tiny random backbones and whatever else the tests share. Nothing here needs a network or a data set."""

import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the library is imported
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # one of several processes, each with caches of its own
    home = os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")
    os.environ["HF_HOME"] = str(Path(home, "tests", worker))
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification


CODE = {path.name for path in Path(__file__).parents[1].glob("*_lstmpool.py")}  # what travels with every model
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "intermediate_size": 24,
}
TINY = {
    "bert": SIZES,
    "roberta": SIZES | {"pad_token_id": 1},
    "electra": SIZES | {"embedding_size": 8},
    "distilbert": {"vocab_size": 50, "dim": 16, "n_heads": 2, "n_layers": 4, "hidden_dim": 24},
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"},
    "mpnet": SIZES | {"pad_token_id": 1},
    "albert": SIZES | {"embedding_size": 8, "num_hidden_groups": 1},
    "modernbert": SIZES
    | {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_head": 2, "n_layer": 4, "bos_token_id": 1, "eos_token_id": 1},
    "llama": SIZES | {"num_key_value_heads": 2, "pad_token_id": 0},
    "t5": {"vocab_size": 50, "d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 4, "d_ff": 24},
    "xlnet": {"vocab_size": 50, "d_model": 16, "n_head": 2, "n_layer": 4, "d_inner": 24},
}
FAMILIES = list(TINY)


def since(version):
    """Whether the installed transformers is at least this `version`: backbones of older ones differ."""
    return Version(transformers.__version__) >= Version(version)


def backbone_config(family="bert", **overrides):
    """A config with 4 layers, H = 16, without dropout."""
    config = CONFIG_MAPPING[family](**(TINY[family] | overrides))
    for name in list(vars(config)):
        if "drop" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config


def tiny_config(family="bert", **fields):
    """A config with 4 layers, H = 16, 5 LSTM units per direction and 3 labels, without dropout."""
    fields = {"lstm_hidden_size": 5, "pooler_dropout": 0.0, "num_labels": 3} | fields
    return LstmPoolConfig(backbone_config=backbone_config(family), **fields)


def tiny_model(family="bert", **fields):
    """The model of `tiny_config`, in eval mode, with the same random weights in every call."""
    torch.manual_seed(0)
    return LstmPoolForSequenceClassification(tiny_config(family, **fields)).eval()


def random_inputs(batch=3, tokens=7, seed=0, lengths=None, pad_id=0, pad_left=False):
    """Token ids (batch, tokens) from 5 up, and their mask. Each row is padded from its length on."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 50, (batch, tokens), generator=generator)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    for row, length in enumerate(lengths or []):
        padding = slice(0, tokens - length) if pad_left else slice(length, tokens)
        input_ids[row, padding] = pad_id
        mask[row, padding] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


WORDS = "the a my order parcel late broken money back please when where is and not of to it you we".split()


def word_tokenizer():
    """A word-level tokenizer in BERT's form: [CLS] a [SEP] b [SEP], with token types. Its ids are below 50."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, model_max_length=32, **names)


@pytest.fixture
def tokenizer():
    return word_tokenizer()
