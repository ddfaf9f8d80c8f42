"""A folder that an earlier release saved loads to the same logits: with the installed code, and with its own.

`tests/data/saved_by_X` is what the training command of that release left; `saved_by_X.json` holds texts, and the
logits that the release gave for them as one padded and truncated batch.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from .test_remote_code import run_isolated


DATA = Path(__file__).parents[1] / "data"
RELEASES = sorted(path.name for path in DATA.glob("saved_by_*") if path.is_dir())
TOLERANCE = 1e-6  # versions of the libraries may take the same sums in another order


@pytest.fixture(params=RELEASES)
def saved(tmp_path, request):
    """A copy of the folder, since loading and tokenizing must not write into the tests; texts and their logits."""
    folder = shutil.copytree(DATA / request.param, tmp_path / request.param)
    wanted = json.loads((DATA / f"{request.param}.json").read_text(encoding="utf-8"))
    return folder, wanted["texts"], torch.tensor(wanted["logits"])


def logits_of(folder, texts):
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert type(model) is LstmPoolForSequenceClassification
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return model(**batch).logits


def test_there_is_one():
    assert "saved_by_0_1_0" in RELEASES


def test_the_installed_code_gives_the_same_logits(saved):
    folder, texts, wanted = saved
    torch.testing.assert_close(logits_of(folder, texts), wanted, atol=TOLERANCE, rtol=0)


def test_another_weight_gives_other_logits(saved):
    folder, texts, wanted = saved
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    weights[name][0] += 0.01
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert (logits_of(folder, texts) - wanted).abs().max() > 10 * TOLERANCE


def test_its_own_code_gives_the_same_logits(saved, tmp_path):
    folder, texts, wanted = saved
    torch.save({"texts": texts, "logits": wanted}, tmp_path / "wanted.pt")
    code = f"""
folder, wanted = {str(folder)!r}, torch.load({str(tmp_path / "wanted.pt")!r})
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
with torch.no_grad():
    found = model(**tokenizer(wanted["texts"], padding=True, truncation=True, return_tensors="pt")).logits
torch.testing.assert_close(found, wanted["logits"], atol={TOLERANCE}, rtol=0)
"""
    run_isolated(code, tmp_path / "empty", tmp_path)


def test_saved_again_it_is_complete_and_the_same(saved, tmp_path):
    # with the code of this release, and the names that the weights have always had
    folder, texts, wanted = saved
    again = tmp_path / "again"
    LstmPoolForSequenceClassification.from_pretrained(folder).save_pretrained(again)
    AutoTokenizer.from_pretrained(folder).save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    torch.testing.assert_close(logits_of(again, texts), wanted, atol=TOLERANCE, rtol=0)
