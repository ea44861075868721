"""README and docs are true: every command and all Python in them run, print what is shown, and name what exists."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lavt_edge.errors import ExitCode
from lavt_edge.export.frames import FrameParity
from lavt_edge.runtime.manifest import CheckpointInfo, FileEntry, FrameEntry, InputSpec, Manifest
from lavt_edge.runtime.signature import frame_signature, mask_signature, segmenter_signature, text_signature
from lavt_edge.tests.doc_blocks import (
    OTHER_FENCE,
    PAGES,
    REASONS,
    ROOT,
    RUN,
    SHOWN,
    blocks,
    matches,
    prepare,
    promised,
    run,
)
from PIL import Image

DOCS = ROOT / "docs"
BLOCKS = [block for page in PAGES for block in blocks(page)]

# Pages whose blocks run what needs x86-64, or Python 3.11.
NEEDS = {"README.md": "tensorrt_rtx", "precision.md": "modelopt"}

Ran = Callable[[str], tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> Ran:
    """Runs a page's blocks, once, in order, in a folder of its own: that folder, and what each block printed."""
    root = tmp_path_factory.mktemp("docs")
    supposed = root / "supposed"
    supposed.mkdir()
    prepare(supposed, demo_bundle)
    (supposed / "cache").rename(root / "cache")
    done: dict[str, tuple[Path, list[str]]] = {}

    def ran_page(name: str) -> tuple[Path, list[str]]:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{name} runs {NEEDS[name]}, which is not everywhere")
        if name not in done:
            folder = root / name
            subprocess.run(["cp", "-rl", supposed, folder], check=True)
            if name == "README.md":  # which makes its bundles itself
                for bundle in ("bundle", "demo-bundle"):
                    (folder / bundle).rename(root / f"unused-{bundle}")
            done[name] = folder, [run(block, folder) for block in BLOCKS if block.page.name == name and block.is_run]
        return done[name]

    return ran_page


# the blocks


def test_no_block_is_neither_run_nor_marked() -> None:
    """Counts them; a mark gives a reason that is known, or the test that runs the block."""
    assert not [b.place for b in BLOCKS if b.language not in (*RUN, *SHOWN)]
    assert not [b.place for b in BLOCKS if b.reason is not None and b.reason not in REASONS]
    executable = [b for b in BLOCKS if b.language in RUN]
    assert not [block.place for block in executable if block.mark and block.is_run]
    for block in executable:
        if block.runner is not None:
            path, test = block.runner
            assert test in _tests_of(path), f"{block.place}: {path.name} has no {test}"
    marked = Counter(block.mark for block in executable if not block.is_run)
    print(f"\n{len(executable)} blocks: {len(executable) - marked.total()} run, {marked.total()} marked", dict(marked))
    assert len(executable) - marked.total() > 30


def _tests_of(path: Path) -> set[str]:
    """The names of a file's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_hides_behind_another_fence(page: Path) -> None:
    """Every block is between two lines that begin with three backticks, which is what is looked for."""
    text = page.read_text(encoding="utf-8")
    assert not OTHER_FENCE.findall(text)
    fences = re.findall(r"^```", text, re.MULTILINE)
    assert len(fences) == 2 * sum(block.page == page for block in BLOCKS)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.is_run}), ids=lambda page: page.name)
def test_blocks_of(page: Path, ran: Ran) -> None:
    _, printed = ran(page.name)
    run_blocks = [block for block in BLOCKS if block.page == page and block.is_run]
    assert len(printed) == len(run_blocks)
    for block, output in zip(run_blocks, printed, strict=True):
        assert output.strip() or block.language == "python", f"{block.place} printed nothing"
        said = promised(block)
        assert not said or matches(said, output), f"{block.place} printed\n{output}"


def test_demo_of_the_readme_is_as_good_as_it_says(ran: Ran) -> None:
    folder, (made, *_) = ran("README.md")
    assert min(Image.open(folder / "demo-output" / "sheet.png").size) > 400
    found = re.search(r"\d+ sentences on 12 scenes: mean IoU (\d+\.\d\d)", made)
    assert found
    assert float(found[1]) > 75
    assert "relative error" in made
    assert re.search(r"lavt-serve demo-output/bundle$", made, re.MULTILINE), "what to do next"
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_masks_of_another_reader_are_those_of_the_runtime(ran: Ran) -> None:
    folder, printed = ran("bundle.md")
    mask = np.asarray(Image.open(folder / "mask.png"))
    assert set(np.unique(mask)) == {0, 255}
    assert printed[-1].strip() == "True"


# what the pages say


def test_generated_parts_are_what_the_generator_gives() -> None:
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_shows_the_measured_figures() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("<!-- benchmarks: generated -->")[1].split("<!-- benchmarks: end -->")[0]
    for model in json.loads((DOCS / "benchmarks.json").read_bytes())["models"]:
        sides = {side["name"]: side["summary"]["median"] for side in model["sides"]}
        for name in ("rewritten", "plain export"):
            (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
            assert f" {1e3 * sides[name]:.1f} " in row


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{page.name}: {target}"


def test_tests_and_files_that_the_pages_name_exist() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    paths = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in sources, f"{page.name}: {name}"
        for name in re.findall(r"`(\w+/[\w/]+\.py)`", text):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"
            paths += 1
        for module in re.findall(r"\blavt_edge((?:\.[a-z]\w*)+)", text):
            assert _module_of(module.split(".")[1:]), f"{page.name}: lavt_edge{module}"
    assert paths > 15


def _module_of(parts: list[str]) -> bool:
    """Whether these name a module of the package, or a name in one."""
    paths = [ROOT.joinpath(*parts[:count]) for count in range(len(parts), len(parts) - 2, -1)]
    return any((path / "__init__.py").is_file() or path.with_suffix(".py").is_file() for path in paths if path != ROOT)


def test_the_picture_of_the_architecture_names_folders_that_exist() -> None:
    picture = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    named = re.findall(r'<text class="name"[^>]*>([^<]+)</text>', picture)
    folders = [name for name in named if name != "bundle/"]
    assert len(folders) > 5
    assert [name for name in folders if not (ROOT / name / "__init__.py").is_file()] == []


def test_bundle_page_names_every_key(ran: Ran) -> None:
    """Of a bundle with all that the pages add: precisions, engines."""
    page = (DOCS / "bundle.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w]+)`", page))
    for kind in (Manifest, InputSpec, FileEntry, CheckpointInfo, FrameEntry, FrameParity):
        assert {one.name for one in fields(kind)} <= named
    manifests = [json.loads((ran(name)[0] / folder / "lavt.json").read_bytes()) for name, folder in WITH_PRECISIONS]
    assert {role for manifest in manifests for role in manifest["precisions"]} == {"fp16", "int8"}
    assert any(manifest.get("engines") for manifest in manifests)
    for manifest in manifests:
        for section in ("precisions", "engines", "files"):
            manifest[section] = [*manifest.get(section, {}).values()]
        assert set(_keys(manifest)) <= named


WITH_PRECISIONS = (("README.md", "demo-bundle"), ("calibration.md", "bundle"))


def _keys(value: Any) -> Iterator[str]:
    """All keys but those within objects whose keys are names of nodes or types."""
    if isinstance(value, dict):
        yield from value
        value = [one for key, one in value.items() if key not in ("islands", "layers", "products")]
    for one in value if isinstance(value, list) else ():
        yield from _keys(one)


def test_bundle_page_gives_the_graphs_inputs_and_outputs() -> None:
    page = (DOCS / "bundle.md").read_text(encoding="utf-8")
    spec = InputSpec(height=480, width=480, batch=None, max_words=20, prompt_channels=100)
    frame = FrameEntry.named(720, 1280, "bgr")
    for signature in (
        text_signature(spec),
        segmenter_signature(spec),
        frame_signature(frame, spec),
        mask_signature(frame, spec),
    ):
        for tensor in (*signature.inputs, *signature.outputs):
            assert re.search(rf"\| `{tensor.name}` \| {tensor.dtype} \|", page), tensor


def test_exit_codes_are_those_of_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.split("## Exit codes")[1].split("```")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(ExitCode)


def _messages(*, examples: bool = False) -> Iterator[list[str | None]]:
    """Each text in the package with enough of its own to be told by, None for what it is filled with."""
    for path in ROOT.rglob("*.py"):
        folder = path.relative_to(ROOT).parts[0]
        if folder in ("tests", "docs", ".venv", "build") or (folder == "examples" and not examples):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            literal = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if all(one is None or isinstance(one, str) for one in literal) and len("".join(filter(None, literal))) > 14:
                yield literal


def test_messages_that_cannot_be_provoked_here_are_in_the_code() -> None:
    patterns = [
        re.compile("".join(".*" if part is None else re.escape(part) for part in message), re.DOTALL)
        for message in _messages()
    ]
    shown = [block for block in BLOCKS if block.page.name == "troubleshooting.md" and block.language == "text"]
    lines = [line for block in shown for line in block.text.splitlines()]
    assert len(lines) > 12
    for line in lines:
        message = re.sub(r"^(error|warning|[\w.]+Error): ", "", line)
        tellings = (line, message, message.partition(": ")[2])  # the last: "FOLDER: " and a constant
        assert any(pattern.fullmatch(telling) for pattern in patterns for telling in tellings), line


FOREIGN = ("_ARRAY_API not found",)
"""Messages of other programs: NumPy's."""


def test_messages_on_the_jetson_page_are_in_the_code() -> None:
    """Of its table, the cells that begin with one; also of the examples, in part."""
    table = (DOCS / "jetson.md").read_text(encoding="utf-8").split("| what you see |")[1].split("\n\n")[0]
    shown = set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)) - set(FOREIGN)
    assert len(shown) > 3
    parts = {part for message in _messages(examples=True) for part in message if part is not None}
    assert not [one for one in shown if not any(one in part for part in parts)]


def test_citation_names_the_paper() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= cited.keys()
    (paper,) = cited["references"]
    assert paper["title"] == "LAVT: Language-Aware Vision Transformer for Referring Image Segmentation"
    assert [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]] == [
        *("Zhao Yang", "Jiaqi Wang", "Yansong Tang", "Kai Chen", "Hengshuang Zhao", "Philip H.S. Torr")
    ]
    assert paper["identifiers"][0]["value"] == "arXiv:2112.02244"
