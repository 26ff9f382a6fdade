"""The `afterglow` command on a bad day: `python flaky.py FOLDER ARGUMENTS...`.

Every call is written down in FOLDER/calls, one line of JSON each. FOLDER/faults.json lists faults,
`{"words": [...], "code": 75}`; the first whose words are all among the arguments is struck off the
list and is what the call ends with, in place of any work. All other calls are the real command.
"""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any


def fault(folder: Path, arguments: list[str]) -> int | None:
    """Exit code of the fault that awaits such a call, if any; writes the call down."""
    with (folder / "calls").open("a") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)  # tasks run side by side
        file = folder / "faults.json"
        waiting: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        hit = next((one for one in waiting if set(one["words"]) <= set(arguments)), None)
        if hit is not None:
            waiting.remove(hit)
            file.write_text(json.dumps(waiting))
        calls.write(json.dumps({"arguments": arguments, "fault": hit and hit["code"]}) + "\n")
    return hit["code"] if hit else None


def main() -> int:
    """Fail as told, or become the real command."""
    folder, *arguments = sys.argv[1:]
    code = fault(Path(folder), arguments)
    if code is not None:
        sys.stderr.write(f"exit code {code}, as asked for\n")
        return code
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *arguments])


if __name__ == "__main__":
    sys.exit(main())
