"""Distil the bundled backbone from a teacher's feature maps.

The student's `layer2` and `layer3` learn, through one 1x1 head each that is thrown away afterwards, to predict two maps
of the teacher, standardised per channel, under a smooth L1 loss of the cells and of their 3x3 means: feature
distillation as in FitNets (Romero et al., 2015, arXiv:1412.6550), with all layers trained at once. Whitened distances
do not change under an invertible linear map, so a student whose features predict the teacher's linearly gives the
memory bank the teacher's geometry.

A student that starts from its teacher (`mhpc/training/inherit.py`) has that one's first map already; there `layer3`
alone is trained.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from mhpc.core.tiny import LAYER2, LAYER3, TinyBackbone, folded
from mhpc.training.checkpoint import load_checkpoint, save_checkpoint
from mhpc.training.inherit import inherit
from mhpc.training.pictures import Crops
from mhpc.training.teacher import Teacher

STANDARDISE_CROPS = 256
PRUNING_CROPS = 64
CHECKPOINT_STEPS = 200


@dataclass(frozen=True)
class Recipe:
    """All that decides the result. A checkpoint carries it, and a run resumes only with the same one."""

    teacher: str
    teacher_layers: tuple[str, ...]
    teacher_shift: int  # pixels by which the teacher's cells lie to the lower right of the student's
    steps: int
    batch: int
    crop: int
    pictures: int
    seed: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    teacher_bfloat16: bool = False  # products of what is not trained; the others are always float32
    from_teacher: bool = False  # start from its weights, and train layer3 alone

    def as_json_map(self) -> dict[str, object]:
        return {**asdict(self), "teacher_layers": list(self.teacher_layers)}


class Distillation:
    """A student, its heads and their optimiser: `step_` counts the steps done."""

    def __init__(self, recipe: Recipe, teacher: Teacher, crops: Crops, device: torch.device) -> None:
        self.recipe = recipe
        self.teacher = teacher
        self.crops = crops
        self.device = device
        # 1. Standardise: the heads' widths follow from the teacher's maps.
        teacher.standardise(self._views(0, STANDARDISE_CROPS)[1])
        # 2. Build, from the seed alone or from the teacher. Heads are of the layers that are trained.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.student = TinyBackbone(batch_norm=not recipe.from_teacher)
            widths = list(zip((LAYER2, LAYER3), teacher.mean_, strict=True))[1 if recipe.from_teacher else 0 :]
            self.heads = nn.ModuleList(nn.Conv2d(c, mean.shape[1], 1) for c, mean in widths)
        for module in (self.student, self.heads):
            module.to(device).to(memory_format=torch.channels_last)
        if recipe.from_teacher:
            self._start_from_teacher()
        # 3. The optimiser, over parameters that are already on their device.
        trained = self.student.layer3 if recipe.from_teacher else self.student
        parameters = [*trained.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.step_ = 0

    def run(
        self, checkpoint: Path | None = None, on_step: Callable[[int, float], None] = lambda step, loss: None
    ) -> None:
        """Train to the recipe's last step; `on_step` gets the steps done and that step's loss."""
        while self.step_ < self.recipe.steps:
            loss = self.step()
            on_step(self.step_, loss)
            if checkpoint and (self.step_ % CHECKPOINT_STEPS == 0 or self.step_ == self.recipe.steps):
                self.save(checkpoint)

    def step(self) -> float:
        """One step of the optimiser; returns the loss before it."""
        student_view, teacher_view = self._views(self.step_ + 1, self.recipe.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step_)
        self.student.train()
        targets = self._targets(teacher_view)
        predictions = [head(m) for head, m in zip(self.heads, self._maps(student_view), strict=True)]
        loss = torch.stack([_loss(p, t) for p, t in zip(predictions, targets, strict=True)]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step_ += 1
        return float(loss.detach())  # waits for the device

    def _maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The student's maps of the layers that are trained."""
        student, frozen = self.student, self.recipe.from_teacher
        with torch.set_grad_enabled(not frozen), self._bfloat16(frozen):
            layer2: torch.Tensor = student.layer2(student.layer1(student.stem(images)))
        layer3: torch.Tensor = student.layer3(layer2.float())
        return [layer3] if frozen else [layer2, layer3]

    def _targets(self, images: torch.Tensor) -> list[torch.Tensor]:
        with self._bfloat16():
            return self.teacher.targets(images)[-len(self.heads) :]

    def _bfloat16(self, frozen: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=frozen and self.recipe.teacher_bfloat16)

    @torch.no_grad()
    def _start_from_teacher(self) -> None:
        """The teacher's weights, and the head that predicts its map best from them by least squares."""
        student_view, teacher_view = self._views(0, PRUNING_CROPS)
        inherit(self.student, self.teacher.network, teacher_view)
        self.student.requires_grad_(False)
        self.student.layer3.requires_grad_(True)
        maps = (self._maps(student_view)[0], self._targets(teacher_view)[0])
        x, y = (m.permute(0, 2, 3, 1).flatten(0, 2).cpu() for m in maps)  # [cells, C]; CUDA's lstsq wants full rank
        solution = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), y).solution
        state = {"weight": solution[:-1].T[:, :, None, None], "bias": solution[-1]}
        self.heads[0].load_state_dict(state)

    def save(self, path: Path) -> None:
        """Write a checkpoint from which `resume` goes on as if there had been no break."""
        save_checkpoint(path, self.modules, self.optimizer, self.step_, self.recipe.as_json_map())

    def resume(self, path: Path) -> None:
        """Take up a checkpoint. Raises `ValueError` where it was made with another recipe."""
        self.step_ = load_checkpoint(path, self.modules, self.optimizer, self.recipe.as_json_map())

    @property
    def modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"student": self.student, "heads": self.heads})

    def _views(self, index: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same crops for the student and for the teacher, moved against each other so that their cells coincide."""
        images = self.crops.batch(index, size).to(self.device, memory_format=torch.channels_last)
        shift, side = self.recipe.teacher_shift, self.recipe.crop
        low, high = max(0, shift), max(0, -shift)
        return images[..., low : low + side, low : low + side], images[..., high : high + side, high : high + side]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to 0 (Loshchilov, Hutter, 2017, arXiv:1608.03983, eq. 5, one cycle)."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    share = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def export(student: TinyBackbone, path: Path) -> None:
    """Write the student as it is bundled: batch norm folded, float16, safetensors."""
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    final = folded(student) if has_batch_norm else student
    state = {name: tensor.half().cpu().contiguous() for name, tensor in final.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def _loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if prediction.shape[-2:] != target.shape[-2:]:
        raise ValueError(
            f"the teacher's map is {tuple(target.shape[-2:])} where the student's is {tuple(prediction.shape[-2:])}; "
            "choose teacher layers at strides 8 and 16, and a crop that 16 divides"
        )
    # Of the cells and of their 3x3 means, which are what the memory bank sees (there with zeros around the border).
    return F.smooth_l1_loss(prediction, target) / 2 + F.smooth_l1_loss(_means(prediction), _means(target))


def _means(maps: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
