"""Files: weights as safetensors, and training checkpoints that resume exactly. Written atomically, never unpickled."""

from gpunet.io.checkpoint import load_checkpoint, save_checkpoint
from gpunet.io.safetensors import load, load_metadata, save

__all__ = ["load", "load_checkpoint", "load_metadata", "save", "save_checkpoint"]
