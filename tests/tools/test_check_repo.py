"""Every rule of tools/check_repo.py finds what it forbids, and leaves alone what is allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_repo.py"
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * 61
LONG_BUT_DOCUMENTED = 'def f():\n    """\n' + "    words\n" * 70 + '    """\n    return 1\n'
ARGUMENTS = ", ".join(f"a{i}" for i in range(13))


def check(root: Path, files: dict[str, str]) -> tuple[int, str]:
    """Write ``files`` below ``root``, with a test file for every module, and run the tool there."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if name.startswith("omniaudio/") and name.endswith(".py") and "untested" not in name:
            test = root / "tests" / path.parent.relative_to(root / "omniaudio") / f"test_{path.name}"
            test.parent.mkdir(parents=True, exist_ok=True)
            test.write_text("")
    run = subprocess.run([sys.executable, TOOL, root], capture_output=True, text=True, check=False)
    return run.returncode, run.stdout


BROKEN = {
    "file too long": ("omniaudio/lm/a.py", "x = 1\n" * 501, "501 lines"),
    "function too long": ("omniaudio/lm/a.py", LONG_FUNCTION, "f has 62 lines"),
    "constructor": (
        "omniaudio/lm/a.py",
        f"class A:\n    def __init__(self, {ARGUMENTS}): ...\n",
        "13 constructor",
    ),
    "wildcard": ("omniaudio/lm/a.py", "from os import *\n", "wildcard"),
    "path edit": ("tools/a.py", "import sys\nsys.path.append('x')\n", "a.py:2: sys.path"),
    "cuda": ("omniaudio/lm/a.py", "model.cuda()\n", ".cuda()"),
    "bare except": ("omniaudio/lm/a.py", "try:\n    f()\nexcept:\n    pass\n", "bare except"),
    "strict": ("omniaudio/lm/a.py", "m.load_state_dict(s, strict=False)\n", "strict=False"),
    "weights only": ("omniaudio/lm/a.py", "torch.load(p, weights_only=False)\n", "weights_only=True"),
    "weights unsaid": ("omniaudio/lm/a.py", "torch.load(p)\n", "weights_only=True"),
    "numpy pickle": ("omniaudio/data/a.py", "np.load(p, allow_pickle=True)\n", "allow_pickle"),
    "pickle": ("omniaudio/data/a.py", "import pickle\n", "no pickles"),
    "against the flow": ("omniaudio/encoders/a.py", "from omniaudio.lm.b import c\n", "encoders imports lm"),
    "against the flow, package": (
        "omniaudio/encoders/a.py",
        "from omniaudio import lm\n",
        "encoders imports lm",
    ),
    "hidden in a function": (
        "omniaudio/losses/a.py",
        "def f():\n    import omniaudio.tasks.base\n",
        "losses imports tasks",
    ),
    "tasks imported": (
        "omniaudio/training/a.py",
        "from omniaudio.tasks.base import Task\n",
        "training imports tasks",
    ),
    "lightning": ("omniaudio/lm/a.py", "import lightning\n", "Lightning belongs in"),
    "python in recipes": ("recipes/my_system/a.py", "", "Python in recipes"),
    "no test": ("omniaudio/lm/untested.py", "", "no test file tests/lm/test_untested.py"),
    "system in core": ("omniaudio/lm/a.py", "# as My-System does\n", "names a system (My-System)"),
    "system in a file name": ("omniaudio/lm/my_system.py", "", "the file's name"),
    "someone's folder": ("conf/a.yaml", "data: /" + "home/someone/data\n", "a path of one machine"),
    "forced key": ("egs/x/run.sh", "omniaudio train +" + "+trainer.x=1\n", "put the key into conf"),
    "large file": ("docs/a.bin", "x" * 500_001, "500001 bytes"),
    "syntax": ("tools/a.py", "def\n", "not valid Python"),
    "unknown package": ("omniaudio/strange/a.py", "", "unknown package"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rule_is_found(tmp_path: Path, name: str) -> None:
    path, text, message = BROKEN[name]
    lm = {"omniaudio/lm/b.py": "", "omniaudio/tasks/base.py": "", "recipes/my_system/run.sh": ""}
    code, output = check(tmp_path, {**lm, path: text})
    assert code == 1
    assert message in output
    assert output.count("\n") == 2, "exactly one rule is broken"


def test_allowed_things_pass(tmp_path: Path) -> None:
    code, output = check(
        tmp_path,
        {
            "omniaudio/__init__.py": "",
            "omniaudio/types.py": "",
            "omniaudio/lm/a.py": "from omniaudio.encoders.b import c\nfrom omniaudio.types import d\n",
            "omniaudio/encoders/b.py": LONG_BUT_DOCUMENTED,
            "omniaudio/data/datamodule.py": "import lightning\nfrom omniaudio.lm import a\n",
            "omniaudio/tasks/base.py": "from lightning import X\nfrom omniaudio.data import x\n",
            "omniaudio/cli/main.py": "from omniaudio.tasks.base import Task\nzip(a, b, strict=False)\n",
            "omniaudio/convert/my_system.py": "# My-System\ntorch.load(p, weights_only=True)\n",
            "recipes/my_system/run.sh": "((i++))\nomniaudio train experiment=my_system/lm\n",
            "README.md": "~/opt/x, $HOME/work, https://example.org/home/page\n",
        },
    )
    assert code == 0, output
