"""The entry point of torch.hub: `torch.hub.load(FOLDER_OR_REPOSITORY, "rave", ...)`."""

from models.pretrained import load_enhancer as rave

__all__ = ["rave"]
dependencies = ["numpy", "PIL", "safetensors", "torch", "tqdm"]
