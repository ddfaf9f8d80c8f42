"""A folder saved with one version of transformers loads with another, as a stranger would, and gives the same logits.

    python -m tests.model.exchange save FOLDER               in the one environment, where lstmpool is installed
    python -I /.../tests/model/exchange.py check FOLDER      in the other, from an empty directory

`nox -s exchange` runs both, each way between the oldest and the newest version.
"""

import os
import sys
import tempfile
from pathlib import Path


TOLERANCE = 1e-6  # not zero: versions may take the same sums in another order; a wrong weight or layer shows far above


def save(folder: Path) -> None:
    import torch
    import transformers

    from ..conftest import FAMILIES, random_inputs, tiny_model
    from .families import leave_at, run
    from .families import tiny_model as tiny_model_of

    inputs = random_inputs(lengths=[7, 3, 5])
    for family in FAMILIES:
        model = tiny_model(family, layers=[1, 2, 4])
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():  # weights that no initialisation would give
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            outputs = model(**inputs)
        save_with(folder / family, model, inputs, {"logits": outputs.logits, "layer_states": outputs.layer_states})
    model = tiny_model_of("bert")
    leave_at(model, inputs, [1, 4, 2])
    model.config.exit_threshold = 0.9
    outputs = run(model, inputs)
    wanted = {"logits": outputs.logits, "exit_layers": outputs.exit_layers}
    save_with(folder / "bert-with-exits", model, inputs, wanted)
    print(f"saved {len(FAMILIES) + 1} models with transformers {transformers.__version__}")


def save_with(folder: Path, model, inputs: dict, wanted: dict) -> None:
    """Saves a model, and what it gives for `inputs`."""
    import torch

    model.save_pretrained(folder)
    torch.save({"inputs": inputs, "wanted": wanted}, folder / "wanted.pt")


def check(folder: Path) -> None:
    sys.modules["lstmpool"] = None  # cannot be imported: the folder's own code has to serve
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": tempfile.mkdtemp()}
    import torch
    import transformers

    families = sorted(path.name for path in folder.iterdir())
    largest = 0.0
    for family in families:
        saved = torch.load(folder / family / "wanted.pt")
        auto = transformers.AutoModelForSequenceClassification
        model, report = auto.from_pretrained(folder / family, trust_remote_code=True, output_loading_info=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        with torch.no_grad():
            outputs = model(**saved["inputs"])
        for name, wanted in saved["wanted"].items():
            apart = (outputs[name] - wanted).abs().max().item()
            assert apart <= TOLERANCE, f"{family}: {name} differ by {apart:.1g}"
            largest = max(largest, apart)
    assert families, f"nothing was saved in {folder}"
    print(
        f"{len(families)} models saved with another version load with transformers {transformers.__version__}: "
        f"logits and layer states differ by {largest:.1g} at most"
    )


if __name__ == "__main__":
    {"save": save, "check": check}[sys.argv[1]](Path(sys.argv[2]))
