"""Try a device model out in another process, since some engines end their process on a broken file.

python -m edgerec_gym.device.trial FOLDER
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from edgerec_gym.device.files import DeviceModel
from edgerec_gym.errors import InputError

MOST_SECONDS = 60.0
WRONG = 2  # exit code
COMMAND = ("-m", __name__)


def try_out(folder: str | Path) -> None:
    """Load a model and run its golden test in another process.

    Raises:
        InputError: the model is wrong, or its engine ends the process or does not answer.
    """
    command = [sys.executable, *COMMAND, str(Path(folder).absolute())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise InputError(f"{folder} cannot be loaded: no answer within {MOST_SECONDS:.0f} s") from None
    if done.returncode == WRONG and done.stderr.strip():
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"code {done.returncode}"
        raise InputError(f"{folder} cannot be loaded: it ends the process that tries ({how})")


if __name__ == "__main__":
    try:
        DeviceModel(sys.argv[1]).check_golden()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(WRONG)
