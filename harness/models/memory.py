"""How much memory a device has left, and whether an error says that it ran out.

Must not know what is computed.
"""

from pathlib import Path

import torch

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: By the controllers that /proc/self/cgroup names: folder, limit, use, and the part of the use that
#: is files which are read again when needed. Versions 2 and 1.
_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}

# The CPU's allocator and some CUDA libraries raise a plain RuntimeError, safetensors its own error.
_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "bad_alloc",
)


def ran_out(error: BaseException) -> bool:
    """True for every way in which Python, torch and safetensors say that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    try:
        text = str(error).lower()
    except Exception:  # code that comes with a checkpoint may raise anything
        return False
    return isinstance(error, Exception) and any(words in text for words in _WORDS)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can take on the device: of the machine, and of its control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil  # late: a device's memory is told without it

    available = psutil.virtual_memory().available
    return min([available, *_rooms(GROUPS, OWN)])


def _rooms(groups: Path, own: Path) -> list[int]:
    """What the limits of this process's control groups leave, of each group up to the topmost."""
    found = []
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        for controller in set(controllers.split(",")) & _FILES.keys():
            folder, limit, used, files = _FILES[controller]
            top = groups / folder
            group = top / place.lstrip("/")
            for each in (group, *group.parents):
                if each.is_relative_to(top):
                    found += _room(each, limit, used, files)
    return found


def _room(group: Path, limit: str, used: str, files: str) -> list[int]:
    """Bytes below the limit of one group; nothing where it has none or is not seen from here."""
    try:
        most, taken = int((group / limit).read_text()), int((group / used).read_text())
        lines = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max"
        return []
    again = sum(int(line.split()[1]) for line in lines if line.split()[0] == files)
    return [max(0, most - taken + again)]
