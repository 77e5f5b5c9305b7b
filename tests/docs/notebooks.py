"""Runs the notebooks of docs/notebooks.

python -m tests.docs.notebooks      # writes what their cells show into them
"""

import os
import pathlib
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.docs.commands import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def run(path: pathlib.Path) -> Any:
    """Returns a notebook whose cells were run in the folder of the repository.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.execute(cwd=str(ROOT), env=environment)
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if shows(one)]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def shows(output: Any) -> bool:
    """Whether an output belongs on a page: not a log, nor a bar of progress."""
    if output.output_type == "stream":
        return output.name == "stdout"
    return "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(run(path), path)
