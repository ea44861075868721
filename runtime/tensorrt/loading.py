"""From an engine file of a bundle to a backend that runs it: every check comes before anything is deserialised."""

from __future__ import annotations

from ..._base.callers import warn_caller
from ...errors import BackendError
from ..bundle import Bundle
from .backend import TensorRTBackend
from .cuda import Cuda
from .flavor import Flavor, find_flavor
from .record import (
    DISPLAY_NAMES,
    EngineRecord,
    PowerModeWarning,
    check_header,
    device_misfit,
    flavor_misfit,
    power_mode_misfit,
)

RUNTIME = __package__.rpartition(".")[0]


def read_engine(bundle: Bundle, record: EngineRecord) -> bytes:
    """The engine file, which is the one that was built: SHA-256, header, flavour and version are as recorded.

    Raises BundleError, one line with the command that rebuilds it.
    """
    data = bundle.engine_bytes(record.name, record.rebuild)
    check_header(data, record, bundle.root / record.name)
    return data


def load_engine(bundle: Bundle, record: EngineRecord, *, cuda_graphs: bool = True) -> TensorRTBackend:
    """Run an engine of the bundle on the first CUDA device. Warns of one that was built in another power mode.

    Raises:
        BundleError: the file is damaged or foreign.
        BackendError: it was built for another TensorRT or another GPU, or there is no TensorRT, CUDA device or memory.
    """
    data = read_engine(bundle, record)
    flavor = _flavor_for(record)
    misfit = flavor_misfit(record, flavor.name, flavor.version)
    if misfit:
        raise BackendError(misfit)
    cuda = Cuda()
    device = cuda.device()
    misfit = device_misfit(record, device)
    if misfit:
        raise BackendError(misfit)
    gated = power_mode_misfit(record, device)
    if gated:
        warn_caller(gated, PowerModeWarning, RUNTIME)
    return TensorRTBackend(data, record, flavor, cuda, cuda_graphs=cuda_graphs)


def _flavor_for(record: EngineRecord) -> Flavor:
    """The engine's flavour, or if that is missing the one that is here, to be named as the difference."""
    try:
        return find_flavor(record.flavor)
    except BackendError:
        try:
            return find_flavor()
        except BackendError as error:
            raise BackendError(f"{record.name} needs {DISPLAY_NAMES[record.flavor]}: {error}") from None
