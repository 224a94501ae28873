"""What an installation gets: the linked folders and the pocket model are in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_holds_backends_and_pocket_model(tmp_path: Path) -> None:
    # A copy, so that the build leaves nothing in the checkout.
    subprocess.run(
        ["git", "checkout-index", "--all", f"--prefix={tmp_path}/src/"], cwd=ROOT, check=True
    )
    tuned = tmp_path / "src" / "kernels" / "tuned"  # as `glm-portable tune` would have written it
    tuned.mkdir(exist_ok=True)
    (tuned / "gfx942.json").write_text('{"tiles": []}')
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(tmp_path / "src")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    pocket = [p.name for p in (ROOT / "glm_portable" / "pocket").iterdir() if p.suffix in
              (".json", ".jinja", ".safetensors")]  # fmt: skip
    expected = {f"glm_portable/pocket/{name}" for name in pocket}
    expected |= {"glm_portable/py.typed", "glm_portable/backends/reference.py",
                 "glm_portable/backends/cpu/__init__.py", "glm_portable/backends/cpu/native.py",
                 "glm_portable/backends/cpu/native.cpp", "glm_portable/backends/cpu/lanes.h",
                 "glm_portable/backends/cpu/attention.cpp", "glm_portable/cli.py",
                 "glm_portable/kernels/tuned/gfx942.json"}  # fmt: skip
    assets = ("page.html", "page.css", "page.js")
    expected |= {f"glm_portable/verify/report/assets/{name}" for name in assets}
    expected |= {
        f"glm_portable/serve/web/{p.name}" for p in (ROOT / "glm_portable/serve/web").iterdir()
    }
    assert len(pocket) == 6 and expected <= names
    outside = {n.split("/")[0] for n in names if not n.split("/")[0].endswith(".dist-info")}
    assert outside == {"glm_portable"}  # no top-level `backends` to shadow anything
