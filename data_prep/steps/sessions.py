"""ONNX models that ship in PyPI packages: where they are, opened for one thread (the runner's processes fill the cores)."""

from pathlib import Path

from omnilib.errors import MissingTool
from omnilib.eval.judges import package_folder


def model_file(package: str, file: str, install: str) -> Path:
    """A data file of an installed package, found without importing it.

    Raises:
        MissingTool: the package is absent, or ships no such file.
    """
    folder = package_folder(package)
    if folder is None or not (folder / file).is_file():
        raise MissingTool(f"{package} is not installed: {install}")
    return folder / file


def open_session(path: Path):
    """An onnxruntime session on one thread of the processor.

    Raises:
        MissingTool: no onnxruntime.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingTool("onnxruntime is not installed: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
