"""A peer's network in its best form: plain, channels last, compiled, whichever is fastest here. Used by workloads with a PyTorch network."""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.case import Absent, Setting, Work
from tests.peers import find_peer

WEIGHTS = "weights.pt"
"""What the peer leaves for our side to convert."""
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.95)
Loss = Callable[[Any, Any], Any]


def import_or_absent(setting: Setting, module: str) -> Any:
    """A module of the peer, PyTorch set up for the setting. Raises Absent where it is missing or sees no GPU that it should use."""
    warnings.simplefilter("ignore")
    try:
        torch = find_peer("torch")
        found = find_peer(module)
    except ModuleNotFoundError as missing:
        raise Absent(f"{module} is not installed ({missing})") from None
    if setting.device == "gpu" and not torch.cuda.is_available():
        raise Absent("this build of torch sees no GPU")
    # As nnU-Net's trainer: cuDNN measures its forms at each new shape, and shapes stay.
    torch.backends.cudnn.benchmark = setting.device == "gpu"
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    return found


def save_weights(net: Any, folder: Path) -> None:
    """The peer's state where our side finds it."""
    import torch

    torch.save(net.state_dict(), folder / WEIGHTS)


def tensor(array: np.ndarray, setting: Setting) -> Any:
    """A host array (b, x, y, z, c) as the peer's (b, c, x, y, z), on the device."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1))).to(device_of(setting))


def train_work(net: Any, image: Any, loss: Loss, check: Callable[[Any, Any], dict[str, Any]], setting: Setting, folder: Path) -> Work:
    """Whole training steps of AdamW (fused) on one batch, in the fastest form.

    `loss(net, image)` is minimised; `check(net, image)` gives the numbers before any step, to which the loss's gradient norm is added.
    """
    import torch

    save_weights(net, folder)
    net = net.to(device_of(setting)).train()

    def make(form: str) -> Callable[[], None]:
        called, x = formed(net, image, form)
        optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with precision(setting):
                value = loss(called, x)
            value.backward()
            optimizer.step()
            value.item()
            wait(setting)

        return step

    def checked() -> dict[str, np.ndarray]:
        net.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True))
        with precision(setting):
            numbers = check(net, image)
        net.zero_grad(set_to_none=True)
        numbers["loss"].backward()
        norms = [value.grad.norm() for value in net.parameters() if value.grad is not None]
        numbers["grad_norm"] = torch.stack(norms).norm()
        return {name: value.detach().float().cpu().numpy() for name, value in numbers.items()}

    _, run, form = fastest(make, forms_of(setting), setting)
    return Work(checked, run, form=form)


def forward_work(net: Any, image: Any, setting: Setting, folder: Path) -> Work:
    """Logits in inference mode, in the fastest form."""
    import torch

    save_weights(net, folder)
    net = net.to(device_of(setting)).eval()

    def make(form: str) -> Callable[[], Any]:
        called, x = formed(net, image, form)

        def forward() -> Any:
            with torch.inference_mode(), precision(setting):
                logits = called(x)
            wait(setting)
            return logits

        return forward

    _, run, form = fastest(make, forms_of(setting), setting)
    return Work(lambda: {"logits": channels_last(run())}, run, form=form)


def channels_last(logits: Any) -> np.ndarray:
    """The peer's (b, k, x, y, z) as a host array (b, x, y, z, k)."""
    return np.moveaxis(logits.detach().float().cpu().numpy(), 1, -1)


def device_of(setting: Setting) -> str:
    return "cuda" if setting.device == "gpu" else "cpu"


def precision(setting: Setting) -> Any:
    import torch

    return torch.autocast(device_of(setting), torch.bfloat16, enabled=setting.dtype == "bfloat16")


def wait(setting: Setting) -> None:
    import torch

    if setting.device == "gpu":
        torch.cuda.synchronize()


def formed(net: Any, image: Any, form: str) -> tuple[Any, Any]:
    """The network and its image in a form. Parameters are shared, so that a form costs no copy."""
    import torch

    layout = torch.channels_last_3d if "channels last" in form else torch.contiguous_format
    net, image = net.to(memory_format=layout), image.contiguous(memory_format=layout)
    return (torch.compile(net) if "compiled" in form else net), image


def forms_of(setting: Setting) -> Iterator[str]:
    """The forms to try. On a GPU those that are likely to be fastest come first, as there may be no time for all."""
    compiled = () if setting.quick else ("compiled", "compiled, channels last")
    yield from ("plain", *compiled[::-1], "channels last") if setting.device == "gpu" else ("plain", "channels last", *compiled)


def fastest(make: Callable[[str], Callable[[], Any]], forms: Iterable[str], setting: Setting) -> tuple[str, Callable[[], Any], str]:
    """The fastest form, its function, and what all of them took (the better of two runs after one that warms up).

    When half of the row's seconds are spent no other form is begun. Absent if none works."""
    found: dict[str, float] = {}
    told: dict[str, str] = {}
    end = time.monotonic() + setting.seconds / 2
    for form in forms:
        if found and time.monotonic() > end:
            told[form] = "not tried: no time left"
            continue
        try:
            run = make(form)
            run()
        except RuntimeError as error:
            # TorchInductor raises children of RuntimeError, as where there is no C++ compiler: then this form does not exist here.
            told[form] = f"fails ({type(error).__name__}: {str(error)[:120]})"
            continue
        found[form] = min(_milliseconds(run) for _ in range(2))
        told[form] = f"{found[form]:.0f} ms"
    if not found:
        raise Absent(f"the peer fails in every form: {', '.join(f'{form} {value}' for form, value in told.items())}")
    best = min(found, key=found.__getitem__)
    run = make(best)
    return best, run, f"{best} ({', '.join(f'{form} {value}' for form, value in told.items())})"


def _milliseconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)
