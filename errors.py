"""The errors a user of lavt-edge can meet. Each message is one line: what was wrong, and what to do."""


class LavtError(Exception):
    """Base of every error that lavt-edge raises for bad input; commands print its message and exit with 1."""


class CheckpointError(LavtError):
    """A checkpoint that is unreadable, unsafe, incomplete or of another model."""


class BundleError(LavtError):
    """A bundle, or a file in it, that is missing, damaged, foreign or of an unknown format version."""


class ImageError(LavtError):
    """An image that cannot be read or has no pixels."""


class PromptError(LavtError):
    """A sentence that cannot be segmented for, such as an empty one."""


class DatasetError(LavtError):
    """A data set on disk that is missing, damaged or of another layout."""


class ExportError(LavtError):
    """An export that could not be made, or failed its check against PyTorch."""


class BackendError(LavtError):
    """An inference backend that is missing or cannot run the model."""
