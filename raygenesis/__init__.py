"""raygenesis: self-supervised pretraining of medical-image encoders by Semantic Genesis, on Ray."""

from raygenesis import _ray_environment as _ray_environment  # before anything imports ray
from raygenesis._version import __version__
from raygenesis.pretraining.weights import load_encoder, load_network, load_unet

__all__ = ["__version__", "load_encoder", "load_network", "load_unet"]
