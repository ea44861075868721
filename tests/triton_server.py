"""A real Triton from the wheel of nvidia-pytriton, in an environment of its own, and what asks it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

ROOT = Path(__file__).parent.parent
SERVER = "nvidia-pytriton==0.7.0"
# Its Python backend reads no bytes through numpy 2.
PACKAGES = ("numpy<2", "onnxruntime>=1.20", "pillow", "tokenizers", "tritonclient[grpc]")
_UNREACHABLE = ("dns error", "Failed to fetch", "client error", "no wheels with a matching")
_KINDS = {"b": "BOOL", "u": "UINT", "i": "INT", "f": "FP", "O": "BYTES"}
_DTYPES = {"BOOL": np.bool_, "FP32": np.float32}

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Environment:
    """A Python with the server, its client and the runtime's dependencies; `lavt_edge` is the checkout."""

    folder: Path
    libraries: str

    def run(self, code: str, *arguments: object) -> str:
        """What a program prints; a failure fails the test."""
        command = [self.folder / "bin" / "python", "-c", code, *map(str, arguments)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def make_environment(folder: Path) -> Environment:
    """Skips where there is no such server: another machine, an old C library, no package index, a static Python."""
    if platform.machine() != "x86_64":
        pytest.skip(f"{SERVER} is for x86-64")
    library = Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("INSTSONAME"))
    if ".so" not in library.name or not library.is_file():
        pytest.skip("this Python has no libpython.so, which Triton's Python backend loads")
    python, (major, minor) = folder / "bin" / "python", sys.version_info[:2]
    uv = [sys.executable, "-m", "uv", "--quiet", "--no-python-downloads"]
    for command in (
        ["venv", "--python", sys.executable, str(folder)],
        ["pip", "install", "--python", str(python), "--no-deps", SERVER],
        ["pip", "install", "--python", str(python), *PACKAGES],
    ):
        done = subprocess.run([*uv, *command], capture_output=True, text=True)
        if any(sign in done.stderr for sign in _UNREACHABLE):
            pytest.skip(f"{SERVER} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    packages = folder / "lib" / f"python{major}.{minor}" / "site-packages"
    checkout = folder / "checkout"
    checkout.mkdir()
    (checkout / "lavt_edge").symlink_to(ROOT)
    (packages / "checkout.pth").write_text(str(checkout))
    triton = packages / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / f"{major}.{minor}" / "triton_python_backend_stub"
    stub.chmod(0o755)
    shutil.copy(stub, triton / "backends" / "python")
    (folder / "triton").symlink_to(triton)
    return Environment(folder, f"{packages / 'nvidia_pytriton.libs'}:{library.parent}")


@dataclass(frozen=True)
class Answer:
    """What the server says: the status, the outputs of an inference, or else what it says in JSON or text."""

    status: int
    outputs: Arrays
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        assert self.status >= 400, self.body[:200]
        line = str(self.json["error"])
        assert line
        assert "\n" not in line.strip(), line
        return line


@dataclass(frozen=True)
class Triton:
    """A server that runs, and its ports."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    metrics: int
    log: Path

    def ask(
        self, method: str, path: str, body: bytes = b"", header: int | None = None, port: int | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http, timeout=120)
        try:
            headers = {} if header is None else {"Inference-Header-Content-Length": str(header)}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            length = answer.getheader("Inference-Header-Content-Length")
            outputs = {} if length is None else dict(_outputs(content, int(length)))
            return Answer(answer.status, outputs, content)
        finally:
            connection.close()

    def infer(self, inputs: Arrays, *, model: str = "lavt", version: int | None = None, **parts: Any) -> Answer:
        """One request, its tensors as bytes behind the JSON; `parts` are added to that."""
        contents = [_packed(array) for array in inputs.values()]
        described = [
            {
                "name": name,
                "shape": array.shape,
                "datatype": _datatype(array),
                "parameters": {"binary_data_size": len(content)},
            }
            for (name, array), content in zip(inputs.items(), contents, strict=True)
        ]
        head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}, **parts}).encode()
        path = f"/v2/models/{model}" + ("" if version is None else f"/versions/{version}")
        return self.ask("POST", f"{path}/infer", head + b"".join(contents), len(head))

    def load(self, model: str) -> Answer:
        return self.ask("POST", f"/v2/repository/models/{model}/load")


def _datatype(array: npt.NDArray[Any]) -> str:
    kind = _KINDS[array.dtype.kind]
    return kind if kind in ("BOOL", "BYTES") else f"{kind}{8 * array.dtype.itemsize}"


def _packed(array: npt.NDArray[Any]) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(item).to_bytes(4, "little") + item for item in array.flat)


def _outputs(content: bytes, head: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    start = head
    for output in json.loads(content[:head])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        flat: npt.NDArray[Any] = np.frombuffer(content[start : start + size], _DTYPES[output["datatype"]])
        yield output["name"], flat.reshape(output["shape"])
        start += size


def texts(*rows: list[str] | list[bytes]) -> npt.NDArray[Any]:
    """A tensor of bytes, (rows, items)."""
    encoded = [[item.encode() if isinstance(item, str) else item for item in row] for row in rows]
    return np.array(encoded, object).reshape(len(rows), -1)


@contextmanager
def serve(environment: Environment, repository: Path, log: Path, *models: str) -> Iterator[Triton]:
    """Starts it with these models loaded, on this machine alone; at the end Ctrl-C must end it with 0."""
    ports = _free_ports(3)
    command = [
        str(environment.folder / "triton" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={environment.folder / 'triton' / 'backends'}",
        *("--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"),
        *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        *("--model-control-mode=explicit", *(f"--load-model={model}" for model in models)),
    ]
    # Where the Python backend finds its packages: by the first python on the path, as in an activated environment.
    path = f"{environment.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={**os.environ, "PATH": path, "LD_LIBRARY_PATH": environment.libraries},
        )
    triton = Triton(process, ports[0], ports[1], ports[2], log)
    try:
        _wait_until_ready(triton)
        yield triton
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()[-3000:]
    except BaseException:
        print(log.read_text(errors="replace")[-5000:], file=sys.stderr)
        raise
    finally:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(triton: Triton) -> None:
    while True:
        assert triton.process.poll() is None, "the server ended"
        try:
            if triton.ask("GET", "/v2/health/ready").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
