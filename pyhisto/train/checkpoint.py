"""Checkpoints: a training that was killed at any moment goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pyhisto.device import UNNUMBERED
from pyhisto.train.curves import write_curves
from pyhisto.train.distributed import Team
from pyhisto.train.history import History, Validation

__all__ = ["BEST", "LAST", "Checkpoints", "fingerprint", "weights_hash"]

LAST = "checkpoint.pt"
"""All that is needed to go on; replaced as a whole, so that it is never half written."""

BEST = "best.pt"
"""The weights at the best validation, and its figures."""


class Checkpoints:
    """The checkpoints of one training.

    Parameters
    ----------
    folder
        Where they lie; made if it is not there.
    identity
        What decides all that the steps compute; see :func:`fingerprint`.
    states
        Everything with ``state_dict`` and ``load_state_dict`` that changes from step to step; ``"model"`` is one.
    team
        The first process writes.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], states: Mapping[str, Any], team: Team) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.identity = dict(identity)
        self.states = states
        self.team = team

    def save(self, history: History, *, picture: bool) -> None:
        """Write the state after the last step, the best weights and the learning curves, if asked for as a picture."""
        random_states = self.team.collect(_random_state(self.team.device))
        if not self.team.first:
            return
        if history.best is not None:
            _write(self.folder / BEST, {"model": history.best_weights, **dataclasses.asdict(history.best)})
        write_curves(self.folder, history, picture=picture)
        state = {
            "identity": self.identity,
            **{name: part.state_dict() for name, part in self.states.items()},
            "random": random_states,
            "losses": history.losses,
            "validations": [dataclasses.asdict(row) for row in history.validations],
            "best_weights": history.best_weights,
        }
        _write(self.folder / LAST, state)

    def resume(self) -> History:
        """Set everything to the last checkpoint of the same training; without one, leave it as it is."""
        state = self.team.share(self._read() if self.team.first else None)
        if state is None:
            return History()
        for name, part in self.states.items():
            part.load_state_dict(state[name])
        if self.team.rank < len(state["random"]):
            _set_random_state(state["random"][self.team.rank], self.team.device)
        rows = [Validation(**row) for row in state["validations"]]
        return History(list(state["losses"]), rows, state["best_weights"])

    def _read(self) -> dict[str, Any] | None:
        """Return the last checkpoint if it is of this training; else say why not and remove what another one left."""
        path = self.folder / LAST
        if path.is_file():
            try:
                state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
                _say(f"checkpoint {path} cannot be read ({type(error).__name__}); training starts anew")
            else:
                found = state.get("identity", {})
                other = [name for name in self.identity if self.identity[name] != found.get(name)]
                if not other:
                    return state
                _say(f"checkpoint {path} is of other {', '.join(other)}; training starts anew")
        (self.folder / BEST).unlink(missing_ok=True)
        return None


def fingerprint(parts: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of each part, by its name; parts are JSON types or dataclasses."""
    texts = {name: json.dumps(part, sort_keys=True, default=_plain) for name, part in parts.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(part: Any) -> Any:
    return dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else str(part)


def _random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of all global random number generators, in types that a checkpoint may hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "gpu": torch.get_device_module(device).get_rng_state(device) if device.type not in UNNUMBERED else None,
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if device.type not in UNNUMBERED and state["gpu"] is not None:
        torch.get_device_module(device).set_rng_state(state["gpu"], device)


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _write(path: Path, state: dict[str, Any]) -> None:
    """Write under another name first, down to the disk, and then put in place."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
