"""A saved folder loads anywhere: in a fresh, isolated interpreter, from an empty directory, with nothing but torch and
transformers, and nothing of this project, that can be imported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel

from ..conftest import CODE, since, tiny_config, tiny_model
from .families import leave_at
from .families import tiny_model as tiny_model_of


PREAMBLE = """
import sys

hidden = "lstmpool accelerate datasets evaluate sklearn scipy pandas pyarrow peft sentence_transformers hypothesis"
for name in hidden.split():
    sys.modules[name] = None  # cannot be imported

def no_network(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        raise RuntimeError(f"network access: {event} {args[1:]}")

if OFFLINE:
    sys.addaudithook(no_network)

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
torch.set_num_threads(1)
"""


def run_isolated(code, cwd, tmp_path, offline=True, check=True):
    """Runs `code` as a stranger would: `python -I`, an empty directory, an empty Hub cache, no standard input."""
    cwd.mkdir(exist_ok=True)
    environment = {"PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"OFFLINE = {offline}\n{PREAMBLE}\n{code}"],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture
def saved(tmp_path, tokenizer):
    model = tiny_model(id2label={0: "late", 1: "broken", 2: "other"})
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    inputs = tokenizer(["where is my order", "money back"], padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    torch.save({"logits": outputs.logits, "layer_states": outputs.layer_states}, tmp_path / "wanted.pt")
    return folder


LOAD = """
folder, wanted = FOLDER, torch.load(WANTED)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(["where is my order", "money back"], padding=True, return_tensors="pt")
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
assert type(config).__module__.startswith("transformers_modules."), type(config).__module__
with torch.no_grad():
    assert torch.equal(model(**inputs).logits, wanted["logits"])
    assert torch.allclose(base(**inputs).layer_states, wanted["layer_states"], atol=1e-6)
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
best = wanted["logits"][1].softmax(-1).max(-1)
found = classify("money back")[0]
assert found["label"] == ["late", "broken", "other"][int(best.indices)], found
assert abs(found["score"] - float(best.values)) < 1e-5
"""


def test_a_stranger_loads_it_with_all_network_access_off(saved, tmp_path):
    code = LOAD.replace("FOLDER", repr(str(saved))).replace("WANTED", repr(str(tmp_path / "wanted.pt")))
    run_isolated(code, tmp_path / "empty", tmp_path)


def test_the_project_really_cannot_be_imported_there(tmp_path):
    done = run_isolated("import lstmpool", tmp_path / "empty", tmp_path, check=False)
    assert "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr


@pytest.mark.parametrize("auto_class", ["AutoConfig", "AutoModel", "AutoModelForSequenceClassification"])
def test_without_trust_it_is_refused(saved, tmp_path, auto_class):
    code = f"{auto_class}.from_pretrained({str(saved)!r}, trust_remote_code=False)"
    done = run_isolated(code, tmp_path / "empty", tmp_path, check=False)
    assert done.returncode != 0 and "trust_remote_code=True" in done.stderr


def test_fine_tuned_and_saved_again_it_is_complete_by_itself(saved, tmp_path):
    # by a stranger: the folder must name its own files and not those that it was loaded from
    again = tmp_path / "again"
    code = f"""
model = AutoModelForSequenceClassification.from_pretrained({str(saved)!r}, trust_remote_code=True).train()
tokenizer = AutoTokenizer.from_pretrained({str(saved)!r})
inputs = tokenizer(["where is my order", "money back"], padding=True, return_tensors="pt")
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(**inputs, labels=torch.tensor([0, 2])).loss.backward()
optimizer.step()
model.eval().save_pretrained({str(again)!r})
tokenizer.save_pretrained({str(again)!r})
with torch.no_grad():
    outputs = model(**inputs)
torch.save({{"logits": outputs.logits, "layer_states": outputs.layer_states}}, {str(tmp_path / "wanted2.pt")!r})
"""
    run_isolated(code, tmp_path / "empty", tmp_path)
    shutil.rmtree(saved)
    shutil.rmtree(tmp_path / "hf")
    assert {"config.json", "model.safetensors", *CODE} <= {path.name for path in again.iterdir()}
    saved_map = json.loads((again / "config.json").read_text())["auto_map"]
    assert len(saved_map) == 3 and not any("--" in name for name in saved_map.values())
    code = LOAD.replace("FOLDER", repr(str(again))).replace("WANTED", repr(str(tmp_path / "wanted2.pt")))
    run_isolated(code, tmp_path / "empty2", tmp_path)


def test_a_base_model_is_complete_too(tmp_path):
    LstmPoolModel(tiny_config()).save_pretrained(tmp_path / "base")
    code = f"""
from_base = AutoModelForSequenceClassification.from_pretrained({str(tmp_path / "base")!r}, trust_remote_code=True)
assert from_base(torch.tensor([[5, 6]])).logits.shape == (1, 3)
"""
    run_isolated(code, tmp_path / "empty", tmp_path)


@pytest.mark.slow
def test_a_model_of_standardised_layers_is_complete_too(tmp_path, tokenizer):
    model = tiny_model(standardize_layers=True, id2label={0: "late", 1: "broken", 2: "other"})
    texts = tokenizer(["where is my order", "money back"], padding=True, return_tensors="pt")
    with torch.no_grad():
        model.lstmpool.pooler.standardization.fit(model(**texts).layer_states)
        outputs = model(**texts)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    torch.save({"logits": outputs.logits, "layer_states": outputs.layer_states}, tmp_path / "wanted.pt")
    code = LOAD.replace("FOLDER", repr(str(tmp_path / "model"))).replace("WANTED", repr(str(tmp_path / "wanted.pt")))
    code += """
half = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, dtype="bfloat16")
statistics = half.lstmpool.pooler.standardization
assert half.classifier.weight.dtype == torch.bfloat16 and statistics.mean.dtype == torch.float32
assert torch.equal(statistics.mean, model.lstmpool.pooler.standardization.mean)
"""
    run_isolated(code, tmp_path / "empty", tmp_path)


def test_texts_leave_a_model_with_exits_there_too(tmp_path, tokenizer):
    model = tiny_model_of("bert")
    inputs = tokenizer(["where is my order", "money back"], padding=True, return_tensors="pt")
    leave_at(model, dict(inputs), [1, 4])
    model.config.exit_threshold = 0.9
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.save(model(**inputs).logits, tmp_path / "wanted.pt")
    code = f"""
folder, wanted = {str(tmp_path / "model")!r}, torch.load({str(tmp_path / "wanted.pt")!r})
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer(["where is my order", "money back"], padding=True, return_tensors="pt")
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
rows = []
for layer in model.lstmpool.backbone.encoder.layer:
    layer.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
with torch.no_grad():
    found, bare = model(**inputs), base(**inputs)
    assert rows == [2, 1, 1, 1] and found.exit_layers.tolist() == [1, 4], (rows, found.exit_layers)
    assert torch.allclose(found.logits, wanted, atol=5e-6) and bare.layer_states.shape == (2, 4, 32)
rows.clear()
scores = pipeline("text-classification", model=model, tokenizer=tokenizer)("where is my order")
assert rows == [1] and scores[0]["score"] > 0.99, (rows, scores)
model.config.exit_threshold = None
assert model(**inputs).exit_layers is None
"""
    run_isolated(code, tmp_path / "empty", tmp_path)


@pytest.mark.slow
def test_a_model_of_pairs_apart_is_complete_too(tmp_path, tokenizer):
    from lstmpool.pairs_lstmpool import pair_template

    template = pair_template(tokenizer)
    model = tiny_model(pair_encoding="apart", pair_template=template, linear_skip=True)
    torch.nn.init.normal_(model.linear_skip.weight)
    model.save_pretrained(tmp_path / "pairs")
    tokenizer.save_pretrained(tmp_path / "pairs")
    with torch.no_grad():
        outputs = model(**tokenizer("where is my order", "money back", return_tensors="pt"))
    torch.save({"logits": outputs.logits, "layer_states": outputs.layer_states}, tmp_path / "wanted.pt")
    code = f"""
folder, wanted = {str(tmp_path / "pairs")!r}, torch.load({str(tmp_path / "wanted.pt")!r})
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("where is my order", "money back", return_tensors="pt")
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(model(**inputs).logits, wanted["logits"])
    assert torch.allclose(base(**inputs).layer_states, wanted["layer_states"], atol=1e-6)
classify = pipeline("text-classification", model=folder, trust_remote_code=True)
found = classify({{"text": "where is my order", "text_pair": "money back"}})
assert abs(found["score"] - float(wanted["logits"].softmax(-1).max())) < 1e-5, found
model.save_pretrained({str(tmp_path / "again")!r})
"""
    run_isolated(code, tmp_path / "empty", tmp_path)
    assert CODE <= {path.name for path in (tmp_path / "again").iterdir()}


LOCAL_CODE_IS_KEYED = "5.8"  # by its content, from about this version on
LOAD_ALL = """
found = []
for folder in FOLDERS:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    parts = [sys.modules[f"{type(model).__module__.rpartition('.')[0]}.{name}"] for name in NAMES]
    assert type(config) is type(model.config) is type(base.config)
    assert type(config).__module__.rpartition(".")[0] == type(model).__module__.rpartition(".")[0]
    found.append([getattr(part, "MARK", None) for part in parts])
print(found)
"""


def test_folders_of_one_name_run_each_its_own_code(saved, tmp_path):
    # each differs from the first in one file: in one process, and in a second that finds the first's copies
    if not since(LOCAL_CODE_IS_KEYED):
        pytest.skip("older versions keep one copy of the code for all folders of one name")
    names = sorted(name.removesuffix(".py") for name in CODE)
    folders, marks = [saved], [[None] * len(names)]
    for changed in names:
        folder = shutil.copytree(saved, tmp_path / f"changed {changed}" / saved.name)
        code = folder / f"{changed}.py"
        code.write_text(code.read_text() + "\nMARK = 'changed'\n")
        folders.append(folder)
        marks.append(["changed" if name == changed else None for name in names])
    for order in (1, -1):
        code = LOAD_ALL.replace("FOLDERS", repr([str(folder) for folder in folders[::order]]))
        done = run_isolated(code.replace("NAMES", repr(names)), tmp_path / "empty", tmp_path)
        assert done.stdout.splitlines()[-1] == repr(marks[::order])


def test_a_config_alone_carries_the_code_too(tmp_path):
    tiny_config().save_pretrained(tmp_path / "alone")
    assert CODE <= {path.name for path in (tmp_path / "alone").iterdir()}
    code = f"""
config = AutoConfig.from_pretrained({str(tmp_path / "alone")!r}, trust_remote_code=True)
assert config.layers == [1, 2, 3, 4]
config.save_pretrained({str(tmp_path / "again")!r})
"""
    run_isolated(code, tmp_path / "empty", tmp_path)
    assert CODE <= {path.name for path in (tmp_path / "again").iterdir()}
    for name in ("alone", "again"):
        auto_map = json.loads((tmp_path / name / "config.json").read_text())["auto_map"]
        assert auto_map["AutoConfig"] == "modeling_lstmpool.LstmPoolConfig"


def test_installed_the_local_code_is_used(saved):
    from transformers import AutoModelForSequenceClassification

    assert type(AutoModelForSequenceClassification.from_pretrained(saved)) is LstmPoolForSequenceClassification


def test_the_code_that_travels_is_known():
    assert CODE == {
        "capture_lstmpool.py",
        "configuration_lstmpool.py",
        "exits_lstmpool.py",
        "families_lstmpool.py",
        "fields_lstmpool.py",
        "loss_lstmpool.py",
        "modeling_lstmpool.py",
        "pairs_lstmpool.py",
        "pooling_lstmpool.py",
    }


@pytest.mark.parametrize("name", sorted(CODE))
def test_the_hub_files_import_nothing_but_torch_and_transformers(name):
    import ast
    from pathlib import Path

    tree = ast.parse((Path(__file__).parents[2] / name).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules |= {node.module for node in froms if node.level == 0}
    outside = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert outside <= {"torch", "transformers"}
    assert {f"{node.module}.py" for node in froms if node.level} <= CODE - {name}
    assert not any(part.startswith("_") for module in modules for part in module.split(".")[1:])


# ----------------------------------------------------------------------------------------- folders of earlier releases
DATA = Path(__file__).parents[1] / "data"
# `tests/data/saved_by_X` is what the training command of that release left; `saved_by_X.json` holds texts, and the
# logits that the release gave for them as one padded and truncated batch.
RELEASES = sorted(path.stem for path in DATA.glob("saved_by_*.zip"))
TOLERANCE = 1e-6  # versions of the libraries may take the same sums in another order


@pytest.fixture(params=RELEASES)
def saved_before(tmp_path, request):
    """A copy of the folder, since loading and tokenizing must not write into the tests; texts and their logits."""
    folder = tmp_path / request.param
    shutil.unpack_archive(DATA / f"{request.param}.zip", folder)
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


def test_the_installed_code_gives_the_same_logits(saved_before):
    folder, texts, wanted = saved_before
    torch.testing.assert_close(logits_of(folder, texts), wanted, atol=TOLERANCE, rtol=0)


def test_another_weight_gives_other_logits(saved_before):
    folder, texts, wanted = saved_before
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    weights[name][0] += 0.01
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert (logits_of(folder, texts) - wanted).abs().max() > 10 * TOLERANCE


def test_its_own_code_gives_the_same_logits(saved_before, tmp_path):
    folder, texts, wanted = saved_before
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


def test_saved_again_it_is_complete_and_the_same(saved_before, tmp_path):
    # with the code of this release, and the names that the weights have always had
    folder, texts, wanted = saved_before
    again = tmp_path / "again"
    LstmPoolForSequenceClassification.from_pretrained(folder).save_pretrained(again)
    AutoTokenizer.from_pretrained(folder).save_pretrained(again)
    assert load_file(again / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    torch.testing.assert_close(logits_of(again, texts), wanted, atol=TOLERANCE, rtol=0)
