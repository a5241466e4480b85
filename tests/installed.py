"""Packages as pip leaves them, in a folder of a test."""

from pathlib import Path


def install(site: Path, name: str, files: dict[str, bytes], needs: tuple[str, ...] = ()) -> None:
    """A package of version 1 that holds these files and needs others; `site` goes on sys.path."""
    module = name.replace("-", "_")
    for file, content in files.items():
        (site / module / file).parent.mkdir(parents=True, exist_ok=True)
        (site / module / file).write_bytes(content)
    about = site / f"{module}-1.dist-info"
    about.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (about / "METADATA").write_text("\n".join(lines))
    (about / "RECORD").write_text("".join(f"{module}/{file},,\n" for file in files))
