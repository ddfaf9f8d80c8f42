"""The old place of `model/adapters.py`, which cards of earlier releases name."""

from lstmpool.training.model.adapters import load_adapter, lora_config


__all__ = ["load_adapter", "lora_config"]
