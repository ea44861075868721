"""Bundles with a file or a manifest that is not as it was written, and disks that do not take what is written."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lavt_edge import cli
from lavt_edge.errors import BackendError, BundleError, LavtError, PromptError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.runtime.tensorrt.record import engine_record
from lavt_edge.runtime.tokenizer import SPECIAL_TOKENS, build_tokenizer
from lavt_edge.runtime.update import update_bundle
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH, write_bundle
from lavt_edge.tests.stress.cases import Case, Kind, Rng, attempt, damaged, damaged_json
from lavt_edge.tests.stress.images import sound_files
from PIL import Image

IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MANIFEST = "lavt.json"
ENGINE = {
    "role": "segmenter",
    "precision": "fp16",
    "flavor": "tensorrt",
    "version": "10.3.0",
    "gpu": "Orin",
    "compute_capability": "8.7",
    "targets": [],
    "max_batch": 1,
    "version_compatible": False,
    "hardware_compatible": False,
    "verified": True,
    "onnx_file": "segmenter.onnx",
    "onnx_sha256": "0" * 64,
}


def small_bundle(folder: Path, seed: int = 0) -> Path:
    """A bundle whose files, external weights and an engine among them, are read in milliseconds."""
    write_bundle(folder, batch=None, seed=seed, external=True)
    words = [*SPECIAL_TOKENS, "the", "red", "circle", "##s", *(chr(ord("a") + i) for i in range(26 - seed))]
    build_tokenizer(words).save(str(folder / "tokenizer.json"))
    (folder / "segmenter.fp16.engine").write_bytes(b"ftrt" + bytes(100))
    manifest = json.loads((folder / MANIFEST).read_text())
    engine = {**ENGINE, "onnx_sha256": manifest["files"]["segmenter.onnx"]["sha256"]}
    manifest["engines"] = {"segmenter.fp16.engine": engine}
    manifest["precisions"] = {"fp16": {"data": {"samples": 8}, "islands": {}}}
    manifest["files"]["segmenter.fp16.engine"] = {"role": "engine", "precision": "fp16"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    for name in ("tokenizer.json", "segmenter.fp16.engine"):
        _list(folder, name)
    return folder


def _list(bundle: Path, name: str) -> None:
    """Makes the manifest say of a file what the file is."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    entry = file_entry(bundle / name, "any")
    manifest["files"][name] |= {"sha256": entry.sha256, "bytes": entry.bytes}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def use(bundle: Path) -> None:
    """All that reads a bundle without a GPU; whatever it answers is a mask or one line."""
    answer = attempt(lambda: Segmenter.load(bundle, device="cpu", threads=1), LavtError)
    if isinstance(answer, Segmenter):
        with answer as segmenter:
            assert repr(segmenter)
            result = attempt(lambda: segmenter.segment(IMAGE, "the red circle"), LavtError)
            assert isinstance(result, (BackendError, BundleError, PromptError)) or result.mask.shape == (HEIGHT, WIDTH)
    else:
        assert isinstance(answer, (BundleError, BackendError))
    opened = attempt(lambda: open_bundle(bundle), BundleError)
    if not isinstance(opened, LavtError):
        manifest = opened.manifest
        for name in manifest.files:
            attempt(lambda name=name: engine_record(bundle, manifest, name), BundleError)  # type: ignore[misc]
            attempt(lambda name=name: opened.engine_bytes(name, "again"), BundleError)  # type: ignore[misc]
        assert not isinstance(attempt(manifest.to_json, BundleError), LavtError)


@contextmanager
def _copied(pristine: Path, folder: Path) -> Iterator[Path]:
    """A copy that shares its files; what changes one must put another in its place."""
    bundle = folder / "copy"
    shutil.copytree(pristine, bundle, copy_function=os.link)
    try:
        yield bundle
    finally:
        for path in bundle.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(bundle)


def _put(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def files(folder: Path) -> Case:
    """One file, the manifest among them, missing, damaged, of another bundle, a link, a folder, a pipe."""
    pristine, other = small_bundle(folder / "pristine"), small_bundle(folder / "other", seed=1)
    names = sorted(path.name for path in pristine.iterdir())

    def put_link(path: Path, rng: Rng) -> None:
        path.unlink()
        targets = (
            pristine / path.name,
            path.name,
            "nowhere",
            "..",
            "/dev/zero",
            f"../pristine/{path.name}",
            "tokenizer.json",
        )
        path.symlink_to(targets[int(rng.integers(len(targets)))])

    def case(rng: Rng) -> None:
        with _copied(pristine, folder) as bundle:
            path = bundle / names[int(rng.integers(len(names)))]
            match int(rng.integers(8)):
                case 0:
                    path.unlink()
                case 1 | 2:
                    _put(path, damaged(path.read_bytes(), rng, (other / path.name).read_bytes()))
                case 3:
                    _put(path, (other / path.name).read_bytes())
                case 4:
                    put_link(path, rng)
                case 5:
                    path.unlink()
                    path.mkdir(mode=int(rng.choice([0o700, 0])))
                case 6:
                    path.unlink()
                    os.mkfifo(path)
                case 7:
                    _put(path, (bundle / names[int(rng.integers(len(names)))]).read_bytes())
            use(bundle)

    return case


def manifests(folder: Path) -> Case:
    """`lavt.json` with other values, names, depths and sizes; a file of another name may be there."""
    pristine = small_bundle(folder / "pristine")
    manifest = json.loads((pristine / MANIFEST).read_text())
    names = (
        "..",
        "../pristine/segmenter.onnx",
        "/etc/passwd",
        "a/../segmenter.onnx",
        "x\0",
        "lavt.json",
        ".",
        "é.onnx",
    )

    def renamed(rng: Rng) -> bytes:
        changed = json.loads(json.dumps(manifest))
        old = list(changed["files"])[int(rng.integers(len(changed["files"])))]
        changed["files"][names[int(rng.integers(len(names)))]] = changed["files"].pop(old)
        return json.dumps(changed).encode()

    def case(rng: Rng) -> None:
        with _copied(pristine, folder) as bundle:
            choice = rng.random()
            if choice < 0.02:  # 100 MB, of which nothing is on disk
                (bundle / MANIFEST).unlink()
                with open(bundle / MANIFEST, "wb") as stream:
                    stream.write(json.dumps(manifest).encode())
                    stream.truncate(100 * 2**20)
            else:
                _put(bundle / MANIFEST, renamed(rng) if choice < 0.15 else damaged_json(manifest, rng))
            use(bundle)

    return case


def tokenizers(folder: Path) -> Case:
    """A tokenizer.json that was changed by someone who changed its hash as well."""
    pristine = small_bundle(folder / "pristine")
    data = json.loads((pristine / "tokenizer.json").read_text())

    def case(rng: Rng) -> None:
        with _copied(pristine, folder) as bundle:
            _put(bundle / "tokenizer.json", damaged_json(data, rng))
            _put(bundle / MANIFEST, (pristine / MANIFEST).read_bytes())
            _list(bundle, "tokenizer.json")
            use(bundle)

    return case


def graphs(folder: Path) -> Case:
    """An ONNX file that was changed by someone who changed its hash as well."""
    pristine = small_bundle(folder / "pristine")

    def case(rng: Rng) -> None:
        with _copied(pristine, folder) as bundle:
            name = ("segmenter.onnx", "text_encoder.onnx")[int(rng.integers(2))]
            _put(bundle / name, damaged((bundle / name).read_bytes(), rng))
            _put(bundle / MANIFEST, (pristine / MANIFEST).read_bytes())
            _list(bundle, name)
            use(bundle)

    return case


# disks

_CALLS = (
    (os, "open"),
    (os, "fsync"),
    (os, "replace"),
    (os, "rename"),
    (os, "mkdir"),
    (os, "stat"),
    (io, "open"),
    (fcntl, "flock"),
)
_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO, errno.EDQUOT, errno.ENOLCK, errno.ENOENT)


@contextmanager
def failing(rng: Rng) -> Iterator[None]:
    """The system refuses one of its next calls, or all from one on; or files may not grow beyond some bytes."""
    if rng.random() < 0.3:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(rng.choice([0, 1, 100, 3000])), limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    code, left, for_good = int(rng.choice(_ERRORS)), int(rng.integers(0, 12)), rng.random() < 0.5
    originals = [(module, name, getattr(module, name)) for module, name in _CALLS]
    chosen = originals[int(rng.integers(len(originals)))]

    def refuses(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 and (for_good or left == -1):
            raise OSError(
                code, os.strerror(code), *(part for part in arguments[:1] if isinstance(part, (str, os.PathLike)))
            )
        return chosen[2](*arguments, **options)

    setattr(chosen[0], chosen[1], refuses)
    try:
        yield
    finally:
        setattr(*chosen)


def changes(folder: Path) -> Case:
    """A file is added to a bundle and another replaced, on a disk that fails: all of it happens, or nothing."""
    pristine = small_bundle(folder / "pristine")

    def change(bundle: Path, text: bytes) -> None:
        with update_bundle(bundle) as update:
            entries = {}
            for name in ("calibration.json", "segmenter.int8.png"):
                path = update.new(name)
                path.write_bytes(text)
                entries[name] = file_entry(path, "report")
            update.commit(entries, lambda manifest: replace(manifest, precisions={"int8": {"text": len(text)}}))

    def content(bundle: Path) -> list[bytes]:
        manifest = open_bundle(bundle).manifest
        return [(bundle / name).read_bytes() for name in sorted(manifest.files)]

    def case(rng: Rng) -> None:
        with _copied(pristine, folder) as bundle:
            if rng.random() < 0.5:
                change(bundle, b"old")
            before = content(bundle)
            with failing(rng):
                answer = attempt(lambda: change(bundle, b"new" * 1000), BundleError)
            use_again = Segmenter.load(bundle, device="cpu", threads=1)
            use_again.close()
            opened = open_bundle(bundle)
            for name in opened.manifest.files:
                opened.engine_bytes(name, "")  # verified
            if isinstance(answer, LavtError):
                kept = [data for data in content(bundle) if data != b"old"]
                assert kept == [data for data in before if data != b"old"] or b"new" * 1000 in kept
            change(bundle, b"again")
            assert content(bundle).count(b"again") == 2

    return case


# the command


@contextmanager
def _as_command(arguments: list[str]) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = arguments
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield out, err
    finally:
        sys.argv = argv


def run_command(main: Callable[[], None], arguments: list[str]) -> tuple[int, str]:
    """A command's exit code and what it says on stderr."""
    code: object = None
    with _as_command(arguments) as (_, err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return code, err.getvalue()


def command(folder: Path) -> Case:
    """lavt-run on what may be damaged, to where nothing may be written: a whole PNG, or one line and no PNG."""
    pristine, images = small_bundle(folder / "pristine"), sound_files()[:20]
    (folder / "file").write_bytes(b"")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "full.png").symlink_to("/dev/full")
    odd_outputs = (
        "file/x.png",
        "folder.png",
        "pipe.png",
        "loop.png",
        "full.png",
        "x" * 300 + ".png",
        "out.jpg",
        ".png",
        "",
    )
    sentences = ("the red circle", "", "\udcff", "circle " * 9000, "[/red]\x1b[31m", "-x", "--", "e\u0301" * 500)

    def case(rng: Rng) -> None:
        output, image = folder / "out.png", folder / "image"
        for old in folder.glob("out*"):
            old.unlink()
        data = images[int(rng.integers(len(images)))]
        image.write_bytes(damaged(data, rng) if rng.random() < 0.3 else data)
        text = sentences[0] if rng.random() < 0.5 else sentences[int(rng.integers(len(sentences)))]
        where = str(output) if rng.random() < 0.7 else str(folder / odd_outputs[int(rng.integers(len(odd_outputs)))])
        arguments = ["lavt-run", str(pristine), str(image), text, "--device", "cpu", "-o", where]
        if rng.random() < 0.3:  # "-o" stays: nothing is written elsewhere
            arguments[int(rng.integers(1, 6))] = str(
                rng.choice(["", "nothing", "--mask", "\udc80", "/dev/zero", ".", f"--json={folder / 'out.json'}"])
            )
        if rng.random() < 0.3:
            with failing(rng):
                code, said = run_command(cli.run_main, arguments)
        else:
            code, said = run_command(cli.run_main, arguments)
        assert code in (0, 1, 2), f"exit code {code}: {said}"
        assert "Traceback" not in said
        lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == code or code == 2, said
        written = list(folder.glob("out*.png"))
        for path in written:  # whole, also where the disk failed once it had its name
            Image.open(path).load()
        for path in folder.glob("out.json"):
            json.loads(path.read_bytes())
        assert written or code != 0 or where != str(output)

    return case


KINDS: dict[str, Kind] = {
    "bundle files": files,
    "bundle manifests": manifests,
    "bundle tokenizers": tokenizers,
    "bundle graphs": graphs,
    "bundle changes on failing disks": changes,
    "lavt-run": command,
}
