"""A module in training: its optimiser, the average of its weights, its best weights so far."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.saved_state import require_like
from utils import distributed
from utils.signals import call_interruptibly


@dataclass
class Learner:
    """A module in training, its optimiser and its best weights so far.

    Args:
        module: what learns.
        optimizer: over its parameters.
        average: a moving average of the weights, which then stands for the module everywhere.
        best: the best weights of the stage, a copy; None before the first comparison.

    Attributes:
        network: what computes in training: the module, or where several processes train it, the
            module together with the exchange of its gradients.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    best: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        alone = distributed.world_size() == 1
        self.network = self.module if alone else DistributedDataParallel(self.module)

    @classmethod
    def create(
        cls, module: nn.Module, lr: float, weight_decay: float, ema_decay: float = 0.0
    ) -> Learner:
        """Train `module` with Adam; average its weights if `ema_decay` is not 0."""
        optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
        average = None
        if ema_decay:
            average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        return cls(module, optimizer, average)

    def result(self) -> nn.Module:
        """The module to judge and keep: the average where there is one."""
        return self.module if self.average is None else self.average.module

    def clear_gradients(self) -> None:
        """Forget the gradients of the last step."""
        self.optimizer.zero_grad(set_to_none=True)

    def keeping_gradients(self) -> AbstractContextManager:
        """Compute gradients of this process alone, until others are computed outside."""
        shared = isinstance(self.network, DistributedDataParallel)
        return self.network.no_sync() if shared else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, summed over all processes; a signal leaves it behind.

        Raises:
            PeerLost: another process has ended.
        """
        loss = loss * distributed.world_size()  # DistributedDataParallel takes the mean
        with distributed.in_contact():
            call_interruptibly(loss.backward)

    def step(self, clip_grad_norm: float = 0.0) -> None:
        """Take one optimiser step down the gradients."""
        if clip_grad_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)

    def keep_best(self) -> None:
        """Remember the present weights as the best ones."""
        self.best = copy.deepcopy(self.result().state_dict())

    def return_to_best(self) -> None:
        """Load the best weights into the module and its average."""
        if self.best is not None:
            self.module.load_state_dict(self.best)
            self.result().load_state_dict(self.best)

    def restart(self, module: nn.Module) -> None:
        """Go on with the weights of another module and a new optimiser."""
        self.module.load_state_dict(module.state_dict())
        self.optimizer.state.clear()
        if self.average is not None:
            self.average.module.load_state_dict(module.state_dict())
            self.average.n_averaged.zero_()
        self.best = None

    def state_dict(self) -> dict:
        """Everything that a resumed run needs; the learning rate follows from its options."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"] or None,  # before the first step
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
        }

    def load_state_dict(self, state: object, where: str = "learner") -> None:
        """Restore what `state_dict` gave.

        Args:
            state: what was saved.
            where: names it, for the error.

        Raises:
            ValueError: it is another learner's, or damaged.
        """
        like = {**self.state_dict(), "optimizer": self._moments()}
        like["best"] = self.result().state_dict()
        for name in ("optimizer", "best"):  # may be None
            if isinstance(state, dict) and state.get(name) is None:
                like[name] = None
        require_like(state, like, where)
        self.module.load_state_dict(state["module"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"] or {}, "param_groups": groups})
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best = state["best"]

    def _moments(self) -> dict[int, dict[str, Tensor]]:
        """An example of Adam's state after a step."""
        parameters = self.optimizer.param_groups[0]["params"]
        return {
            number: {"step": torch.tensor(0.0), "exp_avg": value, "exp_avg_sq": value}
            for number, value in enumerate(parameters)
        }
