"""Rules of this repository that no linter knows: python tools/check_repo.py [ROOT].

Every rule is a function that yields ``path:line: message``; RULES lists them. The exit code is 1 if one is
broken. Standard library only.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60  # without its docstring
MAX_ARGUMENTS = 12
MAX_FILE_BYTES = 500_000
MAX_GOLDEN_BYTES = 10_000_000
TEXT_SUFFIXES = {".py", ".sh", ".yaml", ".yml", ".toml", ".md", ".txt", ".cfg"}

FLOW = ["frontend", "encoders", "quantizers", "sequence", "lm", "acoustic", "vocoders", "losses"]
"""Packages in the order of the data flow; each imports those before it, and the modules of omniaudio/."""
BESIDE = {"corpus", "data", "metrics", "training", "dialogue", "convert"}
"""They use the flow's interfaces; the flow does not know them, but for the modules of GROUND."""
GROUND = {"omniaudio.data.files"}
LIGHTNING_ALLOWED = (
    "omniaudio/tasks/",
    "omniaudio/training/",
    "omniaudio/data/datamodule.py",
    "omniaudio/cli/train.py",
)
SHORT_NAMES = {"baichuan_audio": ["baichuan"]}
"""Names of systems beside those of their recipe folders."""
PERSONAL_PATH = re.compile(r"(?<![\w.$}~-])/(home|root|Users|mnt|work|nfs|opt)/\w")
HYDRA_FORCE = re.compile(r"""(?:^|[\s"'])\+\+[A-Za-z_][\w./@]*=""")


@dataclass
class Source:
    """One file of the repository."""

    root: Path
    path: Path  # relative to root

    @property
    def name(self) -> str:
        return self.path.as_posix()

    @cached_property
    def text(self) -> str:
        return (self.root / self.path).read_text(encoding="utf-8", errors="replace")

    @cached_property
    def tree(self) -> ast.Module | None:
        try:
            return ast.parse(self.text)
        except SyntaxError:
            return None

    def at(self, line: int, message: str) -> str:
        return f"{self.name}:{line}: {message}"


@dataclass
class Repo:
    """All files that git knows or would add; without git, all files below root."""

    root: Path
    files: list[Source] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Repo:
        listing = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"],
            capture_output=True,
            text=True,
        )
        if listing.returncode == 0 and (root / ".git").exists():
            names = [Path(name) for name in listing.stdout.split("\0") if name]
        else:
            skipped = {".venv", ".git", "exp", "data", "__pycache__"}
            found = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
            names = [p for p in found if p.parts[0] not in skipped and "__pycache__" not in p.parts]
        return cls(root, [Source(root, name) for name in sorted(set(names)) if (root / name).is_file()])

    @property
    def python(self) -> Iterator[Source]:
        return (source for source in self.files if source.path.suffix == ".py")

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[tuple[Source, ast.AST]]:
        for source in self.python:
            for node in ast.walk(source.tree) if source.tree else ():
                if isinstance(node, kinds):
                    yield source, node


def check_syntax(repo: Repo) -> Iterator[str]:
    for source in repo.python:
        if source.tree is None:
            yield source.at(1, "is not valid Python")


def check_sizes(repo: Repo) -> Iterator[str]:
    golden = 0
    for source in repo.files:
        size = (repo.root / source.path).stat().st_size
        if source.name.startswith("tests/golden/"):
            golden += size
        elif size > MAX_FILE_BYTES:
            yield source.at(
                1, f"{size} bytes, at most {MAX_FILE_BYTES} (data does not belong in the repository)"
            )
        if source.path.suffix in {".py", ".sh"} and (lines := source.text.count("\n")) > MAX_FILE_LINES:
            yield source.at(1, f"{lines} lines, at most {MAX_FILE_LINES}: make two files of it")
    if golden > MAX_GOLDEN_BYTES:
        yield f"tests/golden:1: {golden} bytes in all, at most {MAX_GOLDEN_BYTES}"


def check_functions(repo: Repo) -> Iterator[str]:
    for source, node in repo.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node, clean=False) is not None:
            lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield source.at(node.lineno, f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}")
        if node.name == "__init__":
            arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
            if arguments > MAX_ARGUMENTS:
                yield source.at(node.lineno, f"{arguments} constructor arguments, at most {MAX_ARGUMENTS}")


def check_habits(repo: Repo) -> Iterator[str]:
    """Wildcard imports, sys.path, .cuda(), bare except, pickles."""
    for source, node in repo.nodes(ast.ImportFrom, ast.Import, ast.Attribute, ast.ExceptHandler):
        line = node.lineno  # type: ignore[attr-defined]
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield source.at(line, "wildcard import")
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path":
            yield source.at(line, "sys.path: install the package instead (pip install -e .)")
        if isinstance(node, ast.Attribute) and node.attr == "cuda" and ast.unparse(node) != "torch.cuda":
            yield source.at(line, ".cuda(): use .to(device)")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield source.at(line, "bare except: name the exceptions")
        if "pickle" in {module.split(".")[0] for module in imported_modules(node)}:
            yield source.at(line, "pickle: no pickles here (safetensors, json, npy)")


def check_loading(repo: Repo) -> Iterator[str]:
    """Calls that load silently or unsafely."""
    for source, node in repo.nodes(ast.Call):
        assert isinstance(node, ast.Call)
        function = ast.unparse(node.func)
        flags = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if flags.get("strict") is False and function not in {"zip", "map"}:
            yield source.at(node.lineno, "strict=False: list the missing keys by name instead")
        if flags.get("weights_only") is False or (function == "torch.load" and "weights_only" not in flags):
            yield source.at(node.lineno, "torch.load: only with weights_only=True")
        if flags.get("allow_pickle") is True:
            yield source.at(node.lineno, "allow_pickle=True: no pickles here")


def imported_modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        return [node.module]
    return []


def allowed_packages(package: str) -> set[str]:
    """Packages of omniaudio that a module of ``package`` may import from."""
    if package in FLOW:
        return set(FLOW[: FLOW.index(package) + 1])
    everything_below = set(FLOW) | BESIDE
    return everything_below | {"cli": {"cli", "tasks"}, "tasks": {"tasks"}}.get(package, set())


def check_imports(repo: Repo) -> Iterator[str]:
    """Imports follow the data flow; Lightning stays in the training layer."""
    packages = {
        s.path.parts[1] for s in repo.python if s.path.parts[0] == "omniaudio" and len(s.path.parts) > 2
    }
    for unknown in sorted(packages - set(FLOW) - BESIDE - {"cli", "tasks"}):
        yield f"omniaudio/{unknown}:1: unknown package: add it to FLOW or BESIDE in tools/check_repo.py"
    for source, node in repo.nodes(ast.Import, ast.ImportFrom):
        if source.path.parts[0] != "omniaudio" or len(source.path.parts) < 3:
            continue
        line = node.lineno  # type: ignore[attr-defined]
        for module in imported_modules(node):
            top, *rest = module.split(".")
            if isinstance(node, ast.ImportFrom) and module == "omniaudio":
                rest = [node.names[0].name]
            here = source.path.parts[1]
            known = top == "omniaudio" and rest and rest[0] in packages and module not in GROUND
            if known and rest[0] not in allowed_packages(here):
                yield source.at(line, f"{here} imports {rest[0]}: against the direction of the data flow")
            if top in {"lightning", "pytorch_lightning"} and not source.name.startswith(LIGHTNING_ALLOWED):
                yield source.at(line, f"Lightning belongs in {', '.join(LIGHTNING_ALLOWED)} only")


def check_layout(repo: Repo) -> Iterator[str]:
    """No Python in recipes; every module has its test file."""
    names = {source.name for source in repo.files}
    for source in repo.python:
        parts = source.path.parts
        if parts[0] == "recipes":
            yield source.at(1, "Python in recipes: a recipe is configs and run.sh")
        if parts[0] == "omniaudio" and source.path.name != "__init__.py":
            test = Path("tests", *parts[1:-1], f"test_{source.path.name}").as_posix()
            if test not in names:
                yield source.at(1, f"has no test file {test}")


def check_names(repo: Repo) -> Iterator[str]:
    """The core knows no system by name; no file knows anybody's machine; no forced Hydra keys in shell."""
    systems = sorted(
        {s.path.parts[1] for s in repo.files if s.path.parts[0] == "recipes" and len(s.path.parts) > 2}
    )
    spellings = [s.replace("_", "[-_ ]?") for name in systems for s in [name, *SHORT_NAMES.get(name, [])]]
    system_name = re.compile("|".join(spellings) or "(?!)", re.IGNORECASE)
    for source in repo.files:
        if source.path.suffix not in TEXT_SUFFIXES or source.name == "tools/check_repo.py":
            continue
        is_core = source.name.startswith("omniaudio/") and not source.name.startswith("omniaudio/convert/")
        if is_core and system_name.search(source.name):
            yield source.at(
                1, "the file's name holds the name of a system: that belongs in conf, recipes, convert"
            )
        for number, text in enumerate(source.text.splitlines(), start=1):
            if is_core and (found := system_name.search(text)):
                yield source.at(
                    number, f"names a system ({found[0]}): that belongs in conf, recipes, convert"
                )
            if found := PERSONAL_PATH.search(text):
                yield source.at(number, f"a path of one machine ({found[0]}...)")
            if source.path.suffix == ".sh" and HYDRA_FORCE.search(text):
                yield source.at(number, "++key=value: put the key into conf")


RULES: list[Callable[[Repo], Iterable[str]]] = [
    check_syntax,
    check_sizes,
    check_functions,
    check_habits,
    check_loading,
    check_imports,
    check_layout,
    check_names,
]


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
    repo = Repo.read(root)
    broken = [message for rule in RULES for message in rule(repo)]
    print("\n".join([*broken, f"check_repo: {len(repo.files)} files, {len(broken)} broken rules"]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
