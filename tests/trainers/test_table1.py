from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console

from her2cache.store.reader import SpaceInfo
from her2cache.weights import WeightsCard
from trainers.table1 import add_to_table1, table1_table, write_table1


def card(task: str, auc: float) -> WeightsCard:
    classes = ("normal", "tumour") if task == "pcam" else ("0", "1+", "2+", "3+")
    return WeightsCard(
        "alexnet", task, classes, 0.97, 96, (0.5,) * 3, (0.2,) * 3, "d" * 64,
        {"accuracy": 0.77, "balanced_accuracy": 0.7, "auc_roc": auc, "n": 181},
    )  # fmt: skip


def space(name: str, card: WeightsCard | None = None) -> SpaceInfo:
    return SpaceInfo("0" * 64, name, 1024, 1, "float16", {}, None, card)


def read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_imagenet_is_cited_and_the_others_are_measured(tmp_path: Path) -> None:
    spaces = {
        "alexnet-random": space("alexnet-random"),
        "alexnet-imagenet@1a2b3c4d": space("alexnet-imagenet"),
        "alexnet-pcam": space("alexnet-pcam", card("pcam", 0.89)),
        "timm:vit": space("timm:vit"),
    }
    rows = {row["embedder"]: row for row in read(write_table1(spaces, tmp_path))}
    imagenet = rows["alexnet-imagenet@1a2b3c4d"]
    assert imagenet["measured"].startswith("cited, not measured here: torchvision")
    assert (imagenet["accuracy"], imagenet["auc_roc"]) == ("0.56522", "")
    del spaces["alexnet-imagenet@1a2b3c4d"]
    assert [row["embedder"] for row in read(write_table1(spaces, tmp_path))] == [*spaces, "alexnet-imagenet"]
    assert rows["alexnet-pcam"]["measured"] == "here"
    assert (rows["alexnet-pcam"]["auc_roc"], rows["alexnet-pcam"]["n_test"]) == ("0.89", "181")
    assert rows["alexnet-random"]["source_task"] == "none (random weights)"
    assert rows["timm:vit"]["source_task"] == "of its makers"
    assert {rows[name]["accuracy"] for name in ("alexnet-random", "timm:vit")} == {""}


def test_the_cited_accuracy_is_what_torchvision_says() -> None:
    from torchvision.models import AlexNet_Weights

    from trainers.table1 import IMAGENET_ACCURACY

    said = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert abs(IMAGENET_ACCURACY - said / 100) < 1e-9


def test_a_row_is_added_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "table1.csv").write_text("embedder,made by\nalexnet-own,hand\n")
    add_to_table1("alexnet-pcam", card("pcam", 0.8), tmp_path / "pcam.safetensors")
    add_to_table1("alexnet-ihc", card("ihc", 0.6), tmp_path / "fold-0.safetensors")
    add_to_table1("alexnet-ihc", card("ihc", 0.7), tmp_path / "fold-1.safetensors")
    path = add_to_table1("alexnet-pcam", card("pcam", 0.9), tmp_path / "pcam.safetensors")
    rows = read(path)
    assert [(row["embedder"], row["weights"], row["auc_roc"]) for row in rows] == [
        ("alexnet-imagenet", "", ""),
        ("alexnet-own", "", ""),
        ("alexnet-pcam", "pcam.safetensors", "0.9"),
        ("alexnet-ihc", "fold-0.safetensors", "0.6"),
        ("alexnet-ihc", "fold-1.safetensors", "0.7"),
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table1_table(rows))
    shown = [line.split() for line in console.export_text().splitlines()]
    assert shown[2] == ["ImageNet", "(2012)", "1000", "57%", "-", "-", "cited"]
    assert shown[4] == ["PatchCamelyon", "2", "77%", "0.90", "181"]
