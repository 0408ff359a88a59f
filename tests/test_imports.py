"""Imports run downwards (merging ← duet ← tools), and only the detectors know a vendor."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENDORS = {"ultralytics", "torchvision"}
FORBIDDEN = {
    "duet/series.py": {"duet", "torch", "numpy", "merging"},
    "duet/config.py": {"torch", "duet.methods", "duet.learner", "duet.detectors", "duet.datasets", "duet.series"},
    "duet/losses": {
        *("duet.learner", "duet.methods", "duet.cli", "duet.detectors", "duet.datasets", "duet.evaluation"),
        *("duet.config", "duet.stage", "duet.report"),
    },
    "duet/datasets": {"duet.learner", "duet.methods", "duet.cli", "duet.evaluation", "duet.report"},
    "duet/evaluation": {"duet.learner", "duet.methods", "duet.cli", "duet.report"},
    "duet/detectors": {"duet.learner", "duet.methods", "duet.cli", "duet.evaluation", "duet.report"},
    "duet/methods": {"duet.learner", "duet.cli", "duet.detectors", "duet.datasets", "duet.evaluation"},
    "duet/report": {"duet.learner", "duet.cli", "torch"},
    "merging": {"duet", "ultralytics", "tools"},
}
# Only these modules of the merging core know makers of models, and they import them when a function needs them.
MODEL_MAKERS = {"torchvision", "transformers", "peft"}
MAY_KNOW_MAKERS = {
    "merging/fusion/huggingface.py": {"transformers", "peft"},
    "merging/fusion/torchvision_models.py": {"torchvision"},
    "merging/fusion/embedded_texts.py": {"transformers"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def sources(part: str) -> list[Path]:
    path = ROOT / part
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    assert found, f"{part} holds no module"
    return found


def test_nothing_is_imported_upwards():
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for part, forbidden in FORBIDDEN.items()
        for path in sources(part)
        for name in imported(path)
        if any(within(name, parent) for parent in forbidden)
    ]
    assert broken == []


def test_only_detectors_import_a_vendor():
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("duet")
        if path.parent.name != "detectors"
        for name in imported(path)
        if name.split(".")[0] in VENDORS
    ]
    assert broken == []


def test_the_packages_do_not_import_the_tools_or_tests():
    for part in ("duet", "merging"):
        for path in sources(part):
            assert not any(within(name, parent) for name in imported(path) for parent in ("tools", "tests")), path


def test_only_the_sources_of_a_fusion_know_makers_of_models_and_only_lazily():
    broken = []
    for path in sources("merging"):
        place = path.relative_to(ROOT).as_posix()
        used = {name.split(".")[0] for name in imported(path)} & MODEL_MAKERS
        broken += [f"{place} imports {name}" for name in used - MAY_KNOW_MAKERS.get(place, set())]
        broken += [f"{place} imports {name} before it is needed" for name in at_import(path) & MODEL_MAKERS]
    assert broken == []


def at_import(path: Path) -> set[str]:
    """First parts of the names that a module imports outside its functions."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_mathematics_of_merging_does_not_know_the_runner_of_fusions():
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("merging")
        if path.parent.name == "merging"
        for name in imported(path)
        if within(name, "merging.fusion") or within(name, "pydantic") or within(name, "sklearn")
    ]
    assert broken == []


def test_the_public_names_are_listed():
    import duet

    assert set(dir(duet)) == {*duet.__all__, "__version__"}
    assert all(getattr(duet, name) is not None for name in duet.__all__)
