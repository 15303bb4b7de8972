"""Builds the distributions, and tests them as users install them, without a checkout.

    python tools/dist.py [--out DIR] [--ray] [--release]

It builds the sdist and the wheel twice, compares them byte by byte, checks their contents, installs the wheel
with each extra into a new environment, runs the examples there, and writes an SBOM and checksums. Packages
come from the index that pip is configured to use.
"""

from __future__ import annotations

import argparse
import hashlib
import http.cookiejar
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.parse
import urllib.request
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXTRAS = (
    *("", "cli", "store", "ui", "mcp", "alerts", "starlette", "types", "polars", "pandas", "arrow"),
    *("export", "otlp", "kafka", "nats", "postgres"),
)
"""The extras to install, each in a separate environment. `ray` is optional: it takes several hundred MB."""

PLACEHOLDER = "stageflow.example"

CLEAN = {name: os.environ[name] for name in ("HOME", "LANG", "PATH", "TMPDIR") if name in os.environ}
"""The environment of the programs: without PYTHONPATH and without a virtual environment."""

BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)

MCP_CLIENT = """
import asyncio, json, sys
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters

async def main():
    server = StdioServerParameters(command=sys.argv[1], args=["mcp", "--journal", ".stageflow/demo"])
    async with Client(server) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        explained = await client.call_tool("explain", {})
        pages = await client.call_tool("docs", {})
    print(json.dumps([names, json.loads(explained.content[0].text), json.loads(pages.content[0].text)]))

asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a program; return its output, or exit with its errors."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=CLEAN | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def check(condition: object, problem: str) -> None:
    if not condition:
        sys.exit(f"error: {problem}")


def build(out: Path, epoch: str) -> tuple[Path, Path]:
    """Build the sdist from the checkout, and the wheel from the sdist."""
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    run(*command, SOURCE_DATE_EPOCH=epoch)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def check_contents(sdist: Path, wheel: Path) -> None:
    """Check that the distributions contain the required files, and no others."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    tops = {name.split("/")[0] for name in in_wheel if ".dist-info/" not in name}
    check(tops == {"stageflow", "_stageflow_command.py"}, f"the wheel installs {sorted(tops)}")
    page = [f"stageflow/ui/static/{name}" for name in ("index.html", "app.js", "THIRD_PARTY_NOTICES")]
    for suffix in (
        *page,
        "stageflow/py.typed",
        "stageflow/mcp/SKILL.md",
        "stageflow/docs/quickstart.md",
        "LICENSE",
    ):
        check(any(name.endswith(suffix) for name in in_wheel), f"the wheel does not contain {suffix}")
    with tarfile.open(sdist) as archive:
        in_sdist = [name.partition("/")[2] for name in archive.getnames()]
    for name in [*in_wheel, *in_sdist]:
        unwanted = re.search(r"(^|/)(tests?|benchmarks|node_modules|__pycache__|\.venv)/|\.pyc$", name)
        check(not unwanted, f"a distribution contains {name}")


def metadata_of(wheel: Path) -> tuple[dict[str, list[str]], str]:
    """Return the fields of the metadata of a wheel, and its description: the README."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = message_from_bytes(archive.read(name))
    fields = {key: [str(value) for value in message.get_all(key, [])] for key in message}
    description = message.get_payload(decode=True)
    assert isinstance(description, bytes)
    return fields, description.decode()


def check_description(description: str) -> None:
    """Check that the README has only absolute links, because a package index shows it without other files."""
    relative = re.findall(r"\]\((?!https://)([^)]*)\)", description)
    check(not relative, f"relative links in the description: {relative}")


def install(wheel: Path, extra: str, folder: Path) -> tuple[Path, float]:
    """Create an environment with a wheel and an extra; return its `bin` and the seconds this took."""
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    requirement = f"{wheel}[{extra}]" if extra else str(wheel)
    began = time.monotonic()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "--python", venv / "bin" / "python", "install", requirement, cwd=folder)
    return venv / "bin", time.monotonic() - began


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def check_readme_example(scripts: Path, folder: Path, description: str) -> None:
    """Run the example of the README, and compare its output."""
    blocks = [block for block in BLOCK.findall(description) if block[1] or "Journal(" in block[0]]
    program, expected = "".join(code for code, _ in blocks), "".join(prints for _, prints in blocks)
    (folder / "example.py").write_text(program)
    printed = run(scripts / "python", "example.py", cwd=folder)
    check(printed == expected, f"the example of the README printed\n{printed}\ninstead of\n{expected}")


def check_commands(scripts: Path, folder: Path, extra: str) -> list[str]:
    """Run the commands that an extra installs; return the measurements."""
    measured = []
    began = time.monotonic()
    demo = run(scripts / "stageflow", "demo", cwd=folder)
    check("questions" in demo, f"the demo printed\n{demo}")
    measured.append(f"demo {time.monotonic() - began:.1f} s")
    run(scripts / "stageflow", "runs", cwd=folder)
    if extra == "ui":
        began = time.monotonic()
        check_ui(scripts, folder)
        measured.append(f"ui {time.monotonic() - began:.1f} s")
    if extra == "mcp":
        explained = run(scripts / "stageflow", "explain", "--journal", ".stageflow/demo", cwd=folder)
        check("org_id = o-0" in explained, f"explain printed\n{explained}")
        (folder / "client.py").write_text(MCP_CLIENT)
        began = time.monotonic()
        names, answer, pages = json.loads(
            run(scripts / "python", "client.py", scripts / "stageflow", cwd=folder)
        )
        measured.append(f"mcp {time.monotonic() - began:.1f} s")
        check(len(names) == 10, f"the server has the tools {names}")
        check("org_id = o-0" in str(answer["explanations"][0]["summary"]), f"the server explained {answer}")
        check("quickstart" in pages["pages"], f"the server has the pages {pages}")
    return measured


def check_ui(scripts: Path, folder: Path) -> None:
    """Start the web UI, and load its page and a response of its API."""
    command = (scripts / "stageflow", "ui", "--port", "0", "--journal", ".stageflow/demo")
    server = subprocess.Popen(command, cwd=folder, env=CLEAN, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        check(found, "the web UI does not print its address")
        address = "" if found is None else found[0]
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        with opener.open(address, timeout=30) as response:
            check(b"app.js" in response.read(), "the web UI does not serve its page")
        with opener.open(urllib.parse.urljoin(address, "/api/snapshot"), timeout=30) as response:
            runs = json.load(response)["runs"]
        check(runs == 300, f"the web UI counts {runs} runs")
    finally:
        server.terminate()
        server.wait(30)


def test_wheel(wheel: Path, description: str, extras: tuple[str, ...]) -> None:
    """Install a wheel with each extra, run what it provides, and print sizes and times."""
    print(f"\n{'extra':<10} {'install':>9} {'size':>10} {'packages':>9}  measured")
    for extra in extras:
        with tempfile.TemporaryDirectory(prefix="stageflow-dist-") as name:
            folder = Path(name)
            scripts, seconds = install(wheel, extra, folder)
            (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
            size, count = size_of(packages), len(list(packages.glob("*.dist-info")))
            began = time.monotonic()
            version = run(
                scripts / "python", "-c", "import stageflow; print(stageflow.__version__)", cwd=folder
            )
            measured = [f"first import {time.monotonic() - began:.2f} s"]
            check(version.strip() in wheel.name, f"the wheel {wheel.name} has the version {version}")
            check_readme_example(scripts, folder, description)
            if extra in ("cli", "ui", "mcp"):
                measured += check_commands(scripts, folder, extra)
            elif extra == "":
                failed = subprocess.run([scripts / "stageflow"], capture_output=True, text=True, env=CLEAN)
                check('pip install "stageflow[cli]"' in failed.stderr, f"stageflow printed {failed.stderr}")
            row = f"{extra or '-':<10} {seconds:>7.1f} s {size / 1e6:>7.1f} MB {count:>9}"
            print(f"{row}  {', '.join(measured)}", flush=True)


def write_sbom(wheel: Path, out: Path, epoch: str, extras: tuple[str, ...]) -> None:
    """Write an SBOM (CycloneDX) of the wheel with all extras, as pip installs it now."""
    with tempfile.TemporaryDirectory(prefix="stageflow-dist-") as name:
        folder = Path(name)
        scripts, _ = install(wheel, ",".join(filter(None, extras)), folder)
        sbom = out / f"{wheel.name.rsplit('-', 3)[0]}.cdx.json"
        command = (Path(sys.executable).with_name("cyclonedx-py"), "environment", "--output-reproducible")
        options = (
            "--short-PURLs",
            "--mc-type",
            "library",
            "--pyproject",
            ROOT / "pyproject.toml",
            "--output-file",
            sbom,
        )
        run(*command, *options, scripts / "python", SOURCE_DATE_EPOCH=epoch)
    components = json.loads(sbom.read_text())["components"]
    check(any(one["name"] == "msgspec" for one in components), "the SBOM does not contain msgspec")
    print(f"{sbom.name}: {len(components)} components")


def check_release(version: str, description: str) -> None:
    """Check the requirements for publishing a version, and tag the commit."""
    check(not run("git", "status", "--porcelain").strip(), "the working tree has uncommitted changes")
    heading = re.search(
        rf"^## {re.escape(version)} \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    check(heading, f"CHANGELOG.md has no section {version}")
    dated = heading is not None and re.fullmatch(r"\d{4}-\d{2}-\d{2}", heading[1])
    check(dated, f"CHANGELOG.md does not state the date of {version}")
    check(PLACEHOLDER not in description + (ROOT / "pyproject.toml").read_text(), f"replace {PLACEHOLDER}")
    check(not run("git", "tag", "--list", f"v{version}").strip(), f"the tag v{version} already exists")
    run("git", "tag", "--annotate", f"v{version}", "--message", f"stageflow {version}")
    print(f"tagged v{version}; to publish: git push --tags, and twine upload dist/*.whl dist/*.tar.gz")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="output directory")
    parser.add_argument("--ray", action="store_true", help="also test the `ray` extra")
    parser.add_argument(
        "--release", action="store_true", help="check the existing distributions, and tag the version"
    )
    options = parser.parse_args()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if options.release:
        (wheel,) = options.out.glob(f"stageflow-{version}-*.whl")
        check_release(version, metadata_of(wheel)[1])
        return
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    shutil.rmtree(options.out, ignore_errors=True)
    sdist, wheel = build(options.out, epoch)
    with tempfile.TemporaryDirectory(prefix="stageflow-dist-") as again:
        for first, second in zip((sdist, wheel), build(Path(again), epoch), strict=True):
            check(first.read_bytes() == second.read_bytes(), f"{first.name} is not reproducible")
    check_contents(sdist, wheel)
    _, description = metadata_of(wheel)
    check_description(description)
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    for file in (sdist, wheel):
        print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB, reproducible")
    extras = (*EXTRAS, "ray") if options.ray else EXTRAS
    test_wheel(wheel, description, extras)
    write_sbom(wheel, options.out, epoch, extras)
    files = sorted(file for file in options.out.iterdir() if file.suffix in (".gz", ".whl", ".json"))
    sums = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files)
    (options.out / "SHA256SUMS").write_text("".join(sums))
    print(f"{options.out} is ready")


if __name__ == "__main__":
    main()
