"""What a family of processes holds, how to stop it for a while, and how to end it.

Knows /proc, and whom to tell of a family. Knows nothing of plugins or bubblewrap.
Always: only descendants of the process that was started here, and its own group, are signalled,
never a name and never another group. What cannot be counted or stopped is not let run: an error
while looking ends the family.

Not covered: between two looks a family may hold more than its limit. The kernel bounds each
process's own address space, so memory overshoots by that bound times the number of processes at
most, and empty files by what can be made in `INTERVAL_S`, or in `RESTING_S` by one that the kernel
woke after it was stopped (who could have itself woken, by a timer for example, the filter refuses).
While a family is stopped nothing in it asks for memory; what others send to it waits in pipes,
which are counted full, and in its connections: as much as those took when it was stopped, and their
receive buffers.
"""

import asyncio
import os
import re
import select
import signal
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .keeper import KEEPER, kill_held

PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL_S, RESTING_S = 0.2, 0.5  # between two looks; while all is stopped
EARLY_S, EARLY_LOOKS = 0.005, 40  # between the first ones, for the first process inside
ROUNDS = 1000  # of signals, some 2 ms each, after which a family that does not stop is ended
UNSEEN = 25  # looks in a row that may be refused while a sandbox is being set up
# What the kernel may hold behind a descriptor, which is in no process's own memory: a pipe's 16
# pages, a socket's send buffer (net.core.wmem_default) and one message more. The filter lets
# nobody ask for larger ones.
PIPE_BYTES, SOCKET_BYTES = 16 * PAGE, 256 << 10
IN_FLIGHT = re.compile(rb"^scm_fds:\s*[1-9]", re.MULTILINE)  # /proc/PID/fdinfo, Linux 5.6
EPOLL, KEPT_BYTES = "anon_inode:[eventpoll]", 200  # of one mapping, or one watch
FILE_BYTES = 4096  # of scratch space to one file: an empty one costs the kernel about 1 KB
MAX_LOCKS = 1024  # byte ranges that a family may hold locked; each costs the kernel some 200 bytes
LOCKS_READ = 4 << 20  # of /proc/locks
THREADS = 17  # in /proc/PID/stat, as `status` counts
STOPPED, RESTING = "TtZX", "TtZXD"  # states of /proc/PID/stat; D waits in the kernel
MEMORY_FIELDS = re.compile(rb"^(?:Pss|VmPTE):\s+(\d+) kB$", re.MULTILINE)
SENT = "it sent descriptors through a socket, where what they hold cannot be counted"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a whole family may hold together."""

    memory_bytes: int
    scratch: tuple[str, ...] = ()  # in-memory folders, as the family sees them
    scratch_bytes: int = 0  # of each
    folders: tuple[tuple[Path, int], ...] = ()  # of the disk, that it writes to, and their bytes
    network: bool = False  # it has TCP connections
    # no sandbox's process is around it: the one that was started is its first and leads the group
    # of all others, who have at most so many threads together, which the kernel counts with all
    # others of its user
    leads: bool = False
    threads: int = 0


class Folder:
    """A folder of the disk that a family writes to, and how much may lie in it."""

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        self._used = most + 1  # not measured yet
        self._free = (0, 0)  # bytes and files of its file system, when it was measured

    def excess(self, pids: Sequence[int], *, exact: bool = False) -> str | None:
        """What lies in it, if that is too much. Between two looks the file system says whether it
        can be: only then, or for `exact`, all is counted, with what these processes removed and
        still hold.
        """
        about = os.statvfs(self.path)
        free = about.f_bfree * about.f_frsize, about.f_ffree
        taken = max(0, self._free[0] - free[0]) + FILE_BYTES * max(0, self._free[1] - free[1])
        if not exact and self._used + taken <= self.most:
            return None
        removed = removed_bytes(pids, self.path.stat().st_dev)
        self._used, self._free = removed + used_bytes(self.path, self.most), free
        if self._used > self.most:
            return f"{self.path} holds more than {self.most >> 20} MB"
        return None


class Watchdog:
    """Looks at the family of `leader` as long as it runs.

    Args:
        leader: started by us as the leader of a process group.
        over: hears once, with the reason, that the family holds more than it may.

    Raises:
        OSError: nobody would end it with this process; do not let it run.
    """

    def __init__(self, leader: int, bounds: Bounds, over: Callable[[str], None]) -> None:
        self.leader, self.bounds, self._over = leader, bounds, over
        self._folders = [Folder(*one) for one in bounds.folders]
        self._outside = 0 if bounds.leads else 1  # of `family`, before the first that is watched
        self.frozen: tuple[int, ...] = ()  # processes that are stopped until they are needed
        self._ran: list[bytes] | None = None  # for how long each had, when it was stopped
        self._refusals = 0
        # pidfd of the leader's child, also once it has no parent; of the leader where that is first
        self._first: int | None = None
        with suppress(ProcessLookupError):  # it has ended already
            handle = os.pidfd_open(leader)
            try:
                KEEPER.hold(handle)
            except BaseException:
                os.close(handle)
                raise
            if bounds.leads:
                self._first = handle
            else:
                os.close(handle)

    async def watch(self) -> None:
        """Look every `INTERVAL_S` until something is over its bound, or cannot be looked at. Of a
        family that is stopped no more is read than for how long each process has run: as long as
        that is what it was, none did anything, a child of its own included.
        """
        reason = await self._find_first()
        while reason is None:
            # who has nothing to do wakes up with all others like it
            resting = RESTING_S - time.monotonic() % RESTING_S
            await asyncio.sleep(resting if self.frozen else INTERVAL_S)
            frozen = self.frozen
            try:
                if frozen and self._ran is not None and run_times(frozen) == self._ran:
                    continue
                reason = await asyncio.to_thread(self._moved if frozen else self._excess)
            except Exception as error:
                reason = f"it cannot be watched ({error})"
            if frozen and self.frozen is not frozen:
                reason = None  # it was woken while we looked
        self._over(reason)

    async def _find_first(self) -> str | None:
        """Hold on to the first process inside soon after it begins: only then does it end with
        this process whatever it does. Returns why that cannot be, as `_excess`.
        """
        for _ in range(EARLY_LOOKS if self._outside else 0):
            if self._first is not None:
                break
            try:
                self._remember(family(self.leader))
            except Exception as error:
                return f"it cannot be watched ({error})"
            await asyncio.sleep(EARLY_S)
        return None

    async def freeze(self) -> None:
        """Stop all descendants of the leader: whoever is not asked does not compute."""
        try:
            self.frozen, self._ran = await asyncio.to_thread(stopped, self.leader, self._outside)
            for folder in self._folders:
                if reason := await asyncio.to_thread(folder.excess, self.frozen, exact=True):
                    self._over(reason)
            if self.bounds.network and await asyncio.to_thread(in_flight, self.frozen):
                self._over(SENT)
        except Exception as error:
            self._over(f"it cannot be stopped for a while ({error})")

    def thaw(self) -> None:
        """Let them run on."""
        for pid in self.frozen:
            send(pid, signal.SIGCONT)
        self.frozen = ()

    def end(self, *, collected: bool) -> None:
        """Kill the family: its group, and whoever has left that.

        Args:
            collected: the leader is gone and its number free for others.
        """
        if not collected:
            for pid in family(self.leader)[1:]:
                send(pid, signal.SIGKILL)
            kill_group(self.leader)
        if self._first is not None:
            kill_held(self._first)
            os.close(self._first)
            self._first = None

    def _remember(self, pids: Sequence[int]) -> None:
        """Hold on to the first process inside: with it all others of its pid namespace end."""
        if self.bounds.leads:
            return
        if self._first is not None and select.select([self._first], [], [], 0)[0]:
            os.close(self._first)  # it was one that set the sandbox up, and has ended
            self._first = None
        if self._first is None and len(pids) > 1:
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(pids[1])
                if pids[1] in children(self.leader):
                    self._first = handle
                    KEEPER.hold(handle)
                else:  # it had ended, and the number may be another's
                    os.close(handle)

    def _moved(self) -> str | None:
        inside = family(self.leader)[self._outside :]
        running = sum(1 for pid in inside if state(pid) not in RESTING)
        return f"{running} of its processes ran on after they were stopped" if running else None

    def _excess(self) -> str | None:
        pids = family(self.leader)
        self._remember(pids)
        held, most = sum(map(held_bytes, pids)) + kernel_bytes(pids), self.bounds.memory_bytes
        if self.bounds.network:
            held += queued_bytes(pids[self._outside : self._outside + 1])
            if in_flight(pids[self._outside :]):
                return SENT
        if held > most:
            return f"its processes held {held >> 20} MB, more than {most >> 20} MB"
        if (locks := locks_of(pids)) > MAX_LOCKS:
            return f"its processes held {locks} locks, more than {MAX_LOCKS}"
        if self.bounds.threads and (count := threads_of(pids)) > self.bounds.threads:
            return f"it ran {count} threads, more than {self.bounds.threads}"
        if self.bounds.leads and state(pids[0]) in "ZX":
            return "it ended by itself, and others that it began might run on"
        for folder in self._folders:
            if reason := folder.excess(pids[self._outside :]):
                return reason
        most = self.bounds.scratch_bytes // FILE_BYTES
        for place in self.bounds.scratch:
            try:
                files = files_in(place, self.bounds.scratch_bytes, pids[self._outside :])
            except PermissionError as error:
                self._refusals += 1
                if self._refusals > UNSEEN:
                    return f"its files cannot be counted ({error.strerror})"
                continue
            self._refusals = 0
            if files > most:
                return f"{files} files in {place}, more than {most}"
        return None


def family(root: int) -> list[int]:
    """`root` and all its descendants, as this machine numbers them; a process whose main thread has
    ended by the number of one that goes on, which /proc and signals take as well.
    """
    found = [living(root)]
    for pid in found:  # grows while it is read: a breadth-first walk
        found += map(living, children(pid))
    return found


def living(pid: int) -> int:
    """`pid`, or the number of another thread of it if only its main thread has ended."""
    if state(pid) != "Z":
        return pid
    try:
        threads = [int(thread.name) for thread in (PROC / str(pid) / "task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return pid
    return next((thread for thread in threads if state(thread) not in "ZX"), pid)


def state(pid: int) -> str:
    """One letter; "X" if it has ended."""
    return (status(pid) or ["X"])[0]


def children(pid: int) -> list[int]:
    """Direct children of all threads of `pid`; none if it has ended."""
    found: list[int] = []
    try:
        for thread in (PROC / str(pid) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        if not (PROC / "self/task" / str(os.getpid()) / "children").exists():
            return by_parent(pid)
    return found


def by_parent(pid: int) -> list[int]:
    """The same on kernels that list no children: ask every process for its parent."""
    return [
        int(entry.name)
        for entry in PROC.iterdir()
        if entry.name.isdigit() and status(int(entry.name))[1:2] == [str(pid)]
    ]


def status(pid: int) -> list[str]:
    """State, parent and so on, as /proc/PID/stat has them after the name; empty if it has ended."""
    try:
        # the name is whatever bytes the process chose
        return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].decode("ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def threads_of(pids: Iterable[int]) -> int:
    """How many threads these processes have."""
    return sum(int(words[THREADS]) for words in map(status, pids) if words)


def held_bytes(pid: int) -> int:
    """Memory of one process, shared pages divided among those who share them, and its page tables;
    0 if it has ended.
    """
    try:
        said = b"".join(
            (PROC / str(pid) / name).read_bytes() for name in ("smaps_rollup", "status")
        )
        return sum(map(int, MEMORY_FIELDS.findall(said))) << 10
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        pass
    try:
        pages = (PROC / str(pid) / "statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * PAGE
    except (OSError, IndexError):
        return 0


def kernel_bytes(pids: Iterable[int]) -> int:
    """What the kernel may hold for these processes beside their memory: pipes and sockets, each
    counted once and full; each mapping, and each watch of an epoll.
    """
    open_ones, kept = set[str](), 0
    for pid in pids:
        try:
            kept += (PROC / str(pid) / "maps").read_bytes().count(b"\n")
            for descriptor in (PROC / str(pid) / "fd").iterdir():
                name = str(descriptor.readlink())
                open_ones.add(name)
                if name == EPOLL:
                    about = descriptor.parent.with_name("fdinfo") / descriptor.name
                    kept += about.read_bytes().count(b"tfd:")
        except OSError:
            continue  # it ended, or closed one while we looked
    pipes = sum(1 for name in open_ones if name.startswith("pipe:"))
    sockets = sum(1 for name in open_ones if name.startswith("socket:"))
    return pipes * PIPE_BYTES + sockets * SOCKET_BYTES + kept * KEPT_BYTES


def in_flight(pids: Iterable[int]) -> bool:
    """Whether descriptors wait in a socket of these processes. Where sockets wait in sockets, one
    at least is open: the kernel closes a circle that nobody holds.
    """
    for pid in pids:
        try:
            for descriptor in (PROC / str(pid) / "fd").iterdir():
                about = descriptor.parent.with_name("fdinfo") / descriptor.name
                if str(descriptor.readlink()).startswith("socket:") and (
                    IN_FLIGHT.search(about.read_bytes())
                ):
                    return True
        except OSError:
            continue  # it ended, or closed one while we looked
    return False


def queued_bytes(pids: Sequence[int]) -> int:
    """What waits in the TCP connections of these processes' network, twice: the kernel holds it in
    pieces that are larger than what is in them.
    """
    queued = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "net" / "tcp").read_text("ascii").splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
        # number, own address, other address, state, bytes to send:bytes to read
        queued += sum(int(part, 16) for line in lines for part in line.split()[4].split(":"))
    return 2 * queued


def used_bytes(folder: Path, most: int) -> int:
    """Bytes of all that lies in `folder`, an entry at least `FILE_BYTES`; no more is counted once
    they are more than `most`. Links are not followed.
    """
    used, waiting = 0, [folder]
    while waiting and used <= most:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    about = entry.stat(follow_symlinks=False)
                    used += max(FILE_BYTES, about.st_blocks * 512)
                    if used > most:
                        break
                    if stat.S_ISDIR(about.st_mode):
                        waiting.append(Path(entry.path))
        except (FileNotFoundError, NotADirectoryError):
            continue  # it was removed while we looked
    return used


def removed_bytes(pids: Iterable[int], device: int) -> int:
    """Bytes of files on `device` that no folder holds any more, and these processes do: open, or
    mapped.
    """
    found = dict[int, int]()  # by inode
    place = f"{os.major(device):02x}:{os.minor(device):02x}"
    for pid in pids:
        try:
            for descriptor in (PROC / str(pid) / "fd").iterdir():
                about = descriptor.stat()
                if about.st_dev == device and about.st_nlink == 0:
                    found[about.st_ino] = about.st_blocks * 512
            maps = (PROC / str(pid) / "maps").read_bytes().decode(errors="replace").splitlines()
        except OSError:
            continue  # it ended, or closed one while we looked
        for line in maps:
            # from-to, rights, offset, device, inode, path
            words = line.split(maxsplit=5)
            if line.endswith("(deleted)") and words[3] == place:
                start, _, end = words[0].partition("-")
                found.setdefault(int(words[4]), int(end, 16) - int(start, 16))
    return sum(found.values())


def locks_of(pids: Sequence[int]) -> int:
    """Byte ranges of files that these processes hold locked."""
    wanted = {str(pid).encode() for pid in pids}
    try:
        with (PROC / "locks").open("rb") as file:
            lines = file.read(LOCKS_READ).splitlines()
    except OSError:
        return 0
    # of one line: number, kind, advisory, mode, process
    return sum(1 for line in lines if (words := line.split())[4:5] and words[4] in wanted)


def files_in(place: str, size: int, pids: Sequence[int]) -> int:
    """Files, empty ones too, in the in-memory folder of `size` bytes that these processes see at
    `place`; 0 while they see none.

    Raises:
        PermissionError: this user may not look.
    """
    for pid in pids:
        try:
            found = os.statvfs(f"{PROC}/{pid}/root{place}")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # a sandbox that is still being set up sees this machine's own folder there
        if found.f_blocks * found.f_frsize == size:
            return found.f_files - found.f_ffree
    return 0


def send(pid: int, number: signal.Signals) -> None:
    """Signal one process, if it still lives."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def stop(leader: int, outside: int = 1) -> tuple[int, ...]:
    """Stop all descendants of `leader`, also those that are born meanwhile.

    Args:
        outside: 0: the leader too.

    Raises:
        TimeoutError: some run on however often they are told.
    """
    told = False  # the round before met nobody who computes
    for _ in range(ROUNDS):
        states = {pid: state(pid) for pid in family(leader)[outside:]}
        for pid in (running := [pid for pid in states if states[pid] not in STOPPED]):
            send(pid, signal.SIGSTOP)
        # One that waits in the kernel (D), for its vfork's child for example, stops before it
        # computes again, unless one that still ran told it to continue: so twice.
        quiet = all(states[pid] in RESTING for pid in running)
        if not running or (quiet and told):
            return tuple(family(leader)[outside:])
        told = quiet
        time.sleep(0.001)  # a signal takes effect when its process is scheduled next
    raise TimeoutError(f"{len(running)} processes did not stop")


def stopped(leader: int, outside: int = 1) -> tuple[tuple[int, ...], list[bytes] | None]:
    """Descendants of `leader`, which are stopped now, and for how long each has run: whoever is
    born later is born by one that ran on.

    Raises:
        TimeoutError: as `stop`.
    """
    for _ in range(ROUNDS):
        pids = stop(leader, outside)
        ran = run_times(pids)
        if tuple(family(leader)[outside:]) == pids:
            return pids, ran
    raise TimeoutError("there are others each time")


def run_times(pids: Iterable[int]) -> list[bytes] | None:
    """For how long each of these processes has run, in ns, and how often; None if one has ended, or
    the kernel does not say.
    """
    found = []
    for pid in pids:
        try:
            file = os.open(f"{PROC}/{pid}/schedstat", os.O_RDONLY)
        except (FileNotFoundError, ProcessLookupError):
            return None
        try:
            # time on a processor, time waiting for one, time slices
            found.append(os.read(file, 128))
        except ProcessLookupError:
            return None
        finally:
            os.close(file)
    return None if any(one.startswith(b"0 ") for one in found) else found


def kill_group(leader: int) -> None:
    """End the whole process group that `leader` was started to lead."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
