"""A tiny model on any family, texts for it, and what is run and compared in the checks of families."""

import torch

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from .families import FIRST_TEXT_ID, TOKENS, VOCAB, tiny_backbone_config


TOLERANCE = 1e-4


def tiny_config(family, **fields):
    fields = {"lstm_hidden_size": 5, "num_labels": 3, "pooler_dropout": 0.0} | fields
    return LstmPoolConfig(backbone_config=tiny_backbone_config(family), **fields)


def spread(module, norms=True):
    """Weights of trained size: at initialisation layers add next to nothing, and would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:  # tables of sines
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1 and not name.endswith(("A_log", "dt_bias")):
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            elif norms:
                parameter.add_(noise * 0.1)
    return module


def tiny_model(family, **fields):
    torch.manual_seed(0)
    return spread(LstmPoolForSequenceClassification(tiny_config(family, **fields))).eval()


def texts(family):
    """Three texts of different lengths, as rows of ids."""
    generator, tokens = torch.Generator().manual_seed(0), TOKENS.get(family, 13)
    ids = torch.randint(FIRST_TEXT_ID, VOCAB - 1, (3, tokens), generator=generator)
    return [ids[0], ids[1, : tokens - 4], ids[2, : tokens - 7]]


def batch(rows, pad_id=0, left=False, tokens=None):
    tokens = tokens or max(map(len, rows))
    ids, mask = torch.full((len(rows), tokens), pad_id), torch.zeros(len(rows), tokens, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(tokens - len(row), tokens) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def pad_id(model):
    found = getattr(model.config.get_text_config(), "pad_token_id", None)
    return 0 if found is None else found


def run(model, inputs, train=False, **kwargs):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.train(train)(**inputs, **kwargs)


def apart(found, wanted):
    """Largest difference, against the size of what is compared."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)} and {tuple(wanted.shape)}"
    assert found.isfinite().all() and wanted.isfinite().all(), "not finite"
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


def assert_close(what, found, wanted, tolerance=TOLERANCE):
    assert (difference := apart(found, wanted)) <= tolerance, f"{what} differs by {difference:.1g}"


def leave_at(model, inputs, layers):
    """Gives `model` exits by which row i leaves at `layers[i]`, with a confidence of 1, and at no layer below it.

    The head of each layer solves for logits of 20, 0 and 0 there, and of zeros, a confidence of 1/3, in other rows.
    """
    exits, states = model.add_exits(), run(model, inputs).layer_states
    for index, head in enumerate(exits.heads):
        wanted = torch.zeros(len(layers), 3)
        wanted[:, index % 3] = 20.0 * (torch.tensor(layers) == model.config.layers[index])
        with torch.no_grad():
            head.bias.zero_()
            head.weight.copy_((torch.linalg.pinv(states[:, index].double()) @ wanted.double()).T)
    return exits


def rows_per_layer(model):
    """A list to which each layer of the stack adds the shape (rows, tokens) of what it reads."""
    shapes = []

    def add(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        shapes.append(tuple(hidden.shape[:2]))

    for module in model.lstmpool.backbone.get_submodule(model.lstmpool.layer_stack):
        module.register_forward_pre_hook(add, with_kwargs=True)
    return shapes
