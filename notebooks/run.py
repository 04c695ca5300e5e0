"""Run notebooks in full and write their outputs into them: ``python notebooks/run.py [NAME …]``.

A name is the beginning of a file's name, such as 01; all notebooks by default. What differs from
one machine or run to the next, and is no result, is left out.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def smaller(png: str) -> str:
    """Return a picture with a palette of 256 colours, a third of its size, which nobody sees."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    packed = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def run(path: Path) -> float:
    """Run one notebook and write it; return the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    # Its kernel imports the package beside it, and leaves no file here.
    os.environ["PYTHONPATH"] = str(FOLDER.parent)
    os.environ.setdefault("MNIST", str(FOLDER.parent.resolve() / "data" / "mnist"))
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # where ipywidgets are missing
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook,
            timeout=1200,
            kernel_name="python3",
            resources=resources,
            record_timing=False,
            coalesce_streams=True,
        )
        start = time.perf_counter()
        client.execute()
        seconds = time.perf_counter() - start
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.write(notebook, path)
    return seconds


def main() -> None:
    """Run the notebooks whose names begin as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[""])
    names = tuple(parser.parse_args().names)
    os.environ.pop("SMOKE_TEST", None)
    os.environ.pop("MPLBACKEND", None)
    for path in sorted(FOLDER.glob("*.ipynb")):
        if path.name.startswith(names):
            seconds = run(path)
            size = path.stat().st_size / 1000
            sys.stdout.write(f"{path.name}: {seconds:.0f} s, {size:.0f} kB\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
