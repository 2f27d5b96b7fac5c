"""The main job, end to end: train a small CNN on handwritten digits, compile it for a microcontroller,
run the emitted C in an emulator on digits it has not seen, and draw its memory plan.

    python examples/digits.py --target stm32f746 --out demo-out
    python examples/digits.py --int8            # the same network in integers

The digits ship inside scikit-learn; nothing is downloaded.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import mplan
from mplan.files import write_atomic
from mplan.runtime.device import DeviceRun, run_bundle
from mplan.viz import render_html

console = Console()


class Block(nn.Module):
    """Two 3×3 convolutions with batch norm and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """A small residual CNN for 8×8 grey images in ten classes."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.block1 = Block(channels)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.block2 = Block(2 * channels)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 1, 8, 8] → [N, 10]."""
        x = self.block1(self.stem(x))
        x = self.block2(torch.relu(self.down(x)))
        return self.head(x.mean(dim=(2, 3)))


def load_digits(held_back: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images [N, 1, 8, 8] and labels [N] for training, then the ones that are held back."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[mixed], labels[mixed]
    return images[held_back:], labels[held_back:], images[:held_back], labels[:held_back]


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """A few epochs of Adam with a falling learning rate; leaves the model in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = epochs * ((len(images) + 63) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def entered(compiled: mplan.Compiled, images: torch.Tensor) -> torch.Tensor:
    """The images as the network takes them: in int8 with its scale and zero point if it has some."""
    door = compiled.result.captured.affines.get("input0")
    if door is None:
        return images
    return (torch.round(images / door.scale) + door.zero_point).clamp(-128, 127).to(torch.int8)


def real(compiled: mplan.Compiled, run: DeviceRun) -> torch.Tensor:
    """The emulator's logits as real numbers."""
    numbers = torch.tensor([[float(v) for v in outputs[0].ravel()] for outputs in run.outputs])
    door = compiled.result.captured.affines.get("output0")
    return numbers if door is None else (numbers - door.zero_point) * door.scale


def show(compiled: mplan.Compiled, run: DeviceRun, labels: torch.Tensor, ours: torch.Tensor) -> None:
    """The table: PyTorch beside the emulator, planned beside measured."""
    emulated = real(compiled, run)
    plan = compiled.result.file.plan
    agreement = int((emulated.argmax(1) == ours.argmax(1)).sum())
    table = Table("", "PyTorch / planned", "emulator / measured", title="digits", title_justify="left")
    accuracies = [f"{(logits.argmax(1) == labels).float().mean():.2%}" for logits in (ours, emulated)]
    table.add_row(f"accuracy on {len(labels)} digits", *accuracies)
    table.add_row("same class as PyTorch", "", f"{agreement} of {len(labels)}")
    table.add_row("largest difference of a logit", "", f"{(emulated - ours).abs().max():.2g}")
    arena = plan.peak_bytes("sram")
    table.add_row("SRAM: arena", f"{arena:,} B", f"{run.arena_touched_bytes:,} B")
    table.add_row("SRAM: stack", "", f"{run.stack_bytes:,} B")
    weights = f"{plan.peak_bytes('flash'):,} B (weights)"
    table.add_row("flash", weights, f"{run.flash_bytes:,} B (image)")
    table.add_row("multiply-accumulates", f"{compiled.report.macs:,}", "")
    table.add_row("instructions per inference", "", f"{run.instructions:,}")
    console.print(table)
    status = f"{plan.status}, gap {plan.gap:.1%}, digest {plan.digest[:16]}"
    console.print(f"plan: {status}; emulator: {run.emulator}")


def confirm(first: DeviceRun, second: DeviceRun) -> None:
    """A second compiler and a second emulator on the same C and the same digits."""
    pairs = zip(first.outputs, second.outputs, strict=True)
    apart = max(float(abs(a[0] - b[0]).max()) for a, b in pairs)
    told = f"logits within {apart:.2g} of the first run's, {second.instructions:,} instructions"
    console.print(f"second witness, gcc and {second.emulator}: {told} per inference")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the C project and the picture.")] = Path(
        "demo-out"
    ),
    target: Annotated[str, typer.Option(help="A microcontroller; see `mplan targets`.")] = "stm32f746",
    digits: Annotated[int, typer.Option(help="How many digits are held back for the test.")] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 8,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise the network after training.")] = False,
) -> None:
    """Train, compile, run, picture."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # batches this small gain nothing from more
    images, labels, held_images, held_labels = load_digits(digits)
    model = DigitsNet()
    console.print(f"training on {len(images)} digits …")
    started = time.monotonic()
    train(model, images, labels, epochs)
    console.print(f"trained in {time.monotonic() - started:.1f} s; compiling for {target} …")
    folder = out / "digits"
    one = (held_images[:1],)
    network = mplan.quantize(model, [images[:256]], one) if int8 else model
    io = "int8" if int8 else "float"
    compiled = mplan.compile(network, one, target=target, out=folder, name="digits", io=io)
    console.print(f"running {digits} digits in the emulator …")
    samples = [(image[None].numpy(),) for image in entered(compiled, held_images)]
    run = run_bundle(folder, inputs=samples)
    with torch.no_grad():
        ours = model(held_images)
    show(compiled, run, held_labels, ours)
    if shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm"):
        confirm(run, run_bundle(folder, inputs=samples, emulator="qemu"))
    picture = out / "plan.html"
    write_atomic(picture, render_html(compiled.result.file))
    console.print(f"C code: {folder}/   picture of the plan: {picture}")


if __name__ == "__main__":
    typer.run(main)
