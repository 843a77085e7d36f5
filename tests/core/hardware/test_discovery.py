"""What a machine says of itself, on this machine and on drawn ones."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from quietchoir.core.hardware import discovery

CPUINFO = """processor\t: 0
model name\t: Some Maker's CPU
flags\t\t: fpu sse2 avx2 fma f16c avx512f avx512bw avx512_vnni unheard_of
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"
MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1 kB\nMemAvailable:    9000000 kB\n"


def draw(root: Path, **files: str) -> Path:
    """A machine's text files; double underscores in names stand for slashes."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine_is_described() -> None:
    found = discovery.discover(gpus=False)
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 <= found.memory_free <= found.memory
    assert found.machine and set(found.features) <= set(discovery.FEATURES)
    assert found.gpus == ()


def test_features_are_read_and_unknown_ones_left_out(tmp_path: Path) -> None:
    root = draw(tmp_path, proc__cpuinfo=CPUINFO)
    assert discovery.cpu_features(root) == (
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512bw",
        "avx512_vnni",
    )
    assert discovery.processor_name(root) == "Some Maker's CPU"


def test_neon_goes_by_its_linux_name(tmp_path: Path) -> None:
    assert discovery.cpu_features(draw(tmp_path, proc__cpuinfo=ARM)) == ("neon", "asimddp", "i8mm")


def test_a_containers_limit_lowers_memory_and_cores(tmp_path: Path) -> None:
    root = draw(
        tmp_path,
        proc__meminfo=MEMINFO,
        sys__fs__cgroup__memory_dot_max="4000000000\n",
        sys__fs__cgroup__memory_dot_current="1500000000\n",
        sys__fs__cgroup__cpu_dot_max="50000 100000\n",
    )
    assert discovery.memory_sizes(root) == (4_000_000_000, 2_500_000_000)
    assert discovery.core_count(root) == 1


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    root = draw(
        tmp_path,
        proc__meminfo=MEMINFO,
        sys__fs__cgroup__memory_dot_max="max\n",
        sys__fs__cgroup__memory_dot_current="1\n",
        sys__fs__cgroup__cpu_dot_max="max 100000\n",
    )
    assert discovery.memory_sizes(root) == (16_000_000 * 1024, 9_000_000 * 1024)
    assert discovery.core_count(root) == discovery.core_count(tmp_path / "empty")


def test_a_machine_that_says_nothing_is_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "plan9")
    assert discovery.memory_sizes(tmp_path) == (0, 0)
    assert discovery.cpu_features(tmp_path) == ()
    assert discovery.processor_name(tmp_path) == ""


def test_a_gpu_is_described_as_torch_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = type(
        "Card", (), {"name": "Some card", "total_memory": 8 << 30, "major": 8, "minor": 9}
    )()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    assert discovery.cuda_devices() == (
        discovery.Gpu(name="Some card", memory=8 << 30, capability=(8, 9)),
    )


def test_what_is_on_the_bus_and_no_library_uses_is_told_with_what_it_takes(tmp_path: Path) -> None:
    devices = {
        "gpu": ("0x030000", "0x1002"), "npu": ("0x120000", "0x8086"),
        "display_of_a_server": ("0x030000", "0x1a03"), "network": ("0x020000", "0x8086"),
    }  # fmt: skip
    for name, (kind, vendor) in devices.items():
        folder = tmp_path / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        for file, text in {"class": kind, "vendor": vendor, "device": "0x1234"}.items():
            (folder / file).write_text(f"{text}\n")
    found = {one.name: one for one in discovery.pci_devices(tmp_path)}
    assert list(found) == ["AMD GPU 0x1234", "Intel NPU 0x1234"]
    assert (
        "ROCm" in found["AMD GPU 0x1234"].advice and "OpenVINO" in found["Intel NPU 0x1234"].advice
    )


def test_providers_of_onnx_runtime_and_openvinos_npu_are_accelerators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    providers = ["CPUExecutionProvider", "QNNExecutionProvider"]
    core = SimpleNamespace(available_devices=["CPU", "NPU"], get_property=lambda *_: "AI Boost")
    installed = {
        "onnxruntime": SimpleNamespace(get_available_providers=lambda: providers),
        "openvino": SimpleNamespace(Core=lambda: core),
    }
    monkeypatch.setattr(discovery, "import_module", installed.__getitem__)
    names = [one.name for one in discovery.npus()]
    assert names == ["QNNExecutionProvider of ONNX Runtime", "AI Boost of OpenVINO"]
