"""Write requirements/*.txt: the versions and hashes that `make` installs, within the ranges of setup.cfg.

    make lock

Versions that stand in the files stay where they fit; remove a file to take the newest ones. The files are for Linux and
macOS on any processor, and Python 3.11 and 3.12. PyTorch and the CUDA libraries that its default wheel needs are left
out: users choose the build for CPUs or for their CUDA version, and the hash of each differs.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Each file holds the packages of the one before, in the same versions, and those of an extra.
EXTRAS = {"run": None, "verify": "verify", "dev": "dev"}
_LEFT_OUT = re.compile(r"torch|nvidia-.*|cuda-.*")
_ENTRY = re.compile(r"^([A-Za-z0-9][\w.-]*)==.*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
_HEADER = "# Written by `make lock` from setup.cfg and the build requirements of pyproject.toml.\n"
_OPTIONS = ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
_FORM = ["--generate-hashes", "--no-header", "--no-annotate"]
_NO_HOSTS = ["--no-emit-index-url", "--no-emit-find-links"]


def main() -> None:
    """Write the files."""
    uv = Path(sys.executable).with_name("uv")
    inputs = ["setup.cfg", "requirements/build.in"]
    # The others take their versions from the largest one.
    constraint: list[str] = []
    for name, extra in reversed(EXTRAS.items()):
        output = ROOT / "requirements" / f"{name}.txt"
        options = [*_OPTIONS, *_FORM, *_NO_HOSTS, *(["--extra", extra] if extra else []), *constraint]
        command = [str(uv), "pip", "compile", "--quiet", *options, "--output-file", str(output), *inputs]
        subprocess.run(command, cwd=ROOT, check=True)
        entries = [match[0] for match in _ENTRY.finditer(output.read_text("utf-8"))]
        left_out = _LEFT_OUT if name == "dev" else re.compile(f"{_LEFT_OUT.pattern}|triton")
        kept = [entry for entry in entries if not left_out.fullmatch(entry.partition("==")[0])]
        output.write_text(_HEADER + "".join(kept), encoding="utf-8")
        constraint = ["--constraint", str(output.relative_to(ROOT))]


if __name__ == "__main__":
    main()
