"""Pure-Python packages of this installation, packed for plugins that ask for them.

Knows distributions and zip files. Knows nothing of plugins.
Always: what is packed is the sources of the distributions that `manifest.PACKAGES` names, nothing
that is compiled: a sandbox may run on another Python than ours.
"""

import functools
import importlib.metadata
import io
import zipfile

from ...core.errors import SandboxUnavailableError
from ..manifest import PACKAGES


@functools.cache
def archive(names: tuple[str, ...]) -> bytes:
    """One zip file that Python imports from.

    Args:
        names: keys of `manifest.PACKAGES`; what they stand on comes along.

    Raises:
        SandboxUnavailableError: one is not installed; says how to install it.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as target:
        for name in dict.fromkeys(one for chosen in names for one in PACKAGES[chosen]):
            try:
                files = importlib.metadata.files(name) or []
            except importlib.metadata.PackageNotFoundError:
                raise SandboxUnavailableError(
                    f"the package {name} is not installed, and a plugin runs on it; install it "
                    f"with: pip install 'quietchoir[documents]'"
                ) from None
            for file in files:
                if file.suffix == ".py" and not file.is_absolute() and ".." not in file.parts:
                    target.writestr(file.as_posix(), file.read_binary())
    return packed.getvalue()
