"""What libraries say about themselves, kept out of the user's output."""

import logging
import warnings


def quieten_libraries() -> None:
    """Silences advice and deprecations that the user of a pinned stack can do nothing about; errors remain."""
    for name in ("torchrec", "pytorch_lightning", "torch.fx._symbolic_trace", "torch.distributed.checkpoint"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in ("Please use DTensor", ".*TypedStorage is deprecated"):
        warnings.filterwarnings("ignore", message)
    for module in ("pytorch_lightning", "lightning_fabric", "torchrec", "torch.distributed"):
        warnings.filterwarnings("ignore", module=module)
