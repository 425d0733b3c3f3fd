"""Makes the modules beside each .proto; `--check` writes nothing and fails when they are stale.

It needs grpcio-tools, which nothing that runs needs. It refuses to touch anything but the generated modules.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

__all__ = ["generate", "main", "stale_modules"]

_ROOT = Path(__file__).resolve().parent.parent
_PROTOS = ("protos/orchestrator/v1/orchestrator.proto",)


def generate(out: Path) -> list[Path]:
    """Write the modules below `out` and return their paths relative to it.

    Paths of the .proto files are relative to the repository, so that the modules import each other as
    `protos.orchestrator.v1...`.

    Raises:
        RuntimeError: protoc refused a file.
    """
    from grpc_tools import protoc

    arguments = ["protoc", f"--proto_path={_ROOT}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*arguments, *_PROTOS]) != 0:
        raise RuntimeError("protoc refused the .proto files")
    return [
        Path(proto.removesuffix(".proto") + ending)
        for proto in _PROTOS
        for ending in ("_pb2.py", "_pb2_grpc.py")
    ]


def stale_modules() -> list[str]:
    """Name the generated modules that differ from what their .proto says."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        return [
            str(path)
            for path in generate(fresh)
            if not (_ROOT / path).exists() or (_ROOT / path).read_bytes() != (fresh / path).read_bytes()
        ]


def main(arguments: list[str] | None = None) -> int:
    """Generate, or check with `--check`; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a generated module is stale")
    if not parser.parse_args(arguments).check:
        generate(_ROOT)
        return 0
    stale = stale_modules()
    for path in stale:
        sys.stderr.write(f"{path} is stale: run `make protos`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
