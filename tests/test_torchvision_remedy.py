from __future__ import annotations

import subprocess
import sys

from qdeploy.torchvision_remedy import import_torchvision

STRICT = [sys.executable, "-W", "error", "-c"]


def test_a_fresh_process_can_use_models_transforms_and_datasets():
    code = """
from qdeploy.torchvision_remedy import import_torchvision
torchvision = import_torchvision()
assert torchvision.models.resnet18().fc.out_features == 1000
assert import_torchvision("datasets") is torchvision.datasets
assert import_torchvision("transforms").Resize
"""
    subprocess.run([*STRICT, code], check=True)


def test_an_import_elsewhere_works_after_it():
    """A model's file may import torchvision itself, and make_importable alone imports nothing of it."""
    code = """
import sys
from qdeploy.torchvision_remedy import make_importable
make_importable()
make_importable()
assert "torchvision" not in sys.modules
import torchvision.models
"""
    subprocess.run([*STRICT, code], check=True)


def test_a_remedy_of_the_users_own_is_no_conflict():
    code = """
import torch
own = torch.library.Library("torchvision", "DEF")
own.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
own.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from qdeploy.torchvision_remedy import import_torchvision
import_torchvision("models")
"""
    # Where the extension loads it defines the operators itself, and this user would have had no need to.
    works = subprocess.run([*STRICT, "import torch, torchvision"], capture_output=True).returncode == 0
    if not works:
        subprocess.run([*STRICT, code], check=True)


def test_importing_twice_is_the_same_module():
    assert import_torchvision() is import_torchvision()
