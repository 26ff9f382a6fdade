"""The built-in tasks by name."""

from stages.data.addition import Addition
from stages.data.problem import PromptTask
from stages.data.reading import Reading
from storage.errors import ConfigError

_TASKS: dict[str, PromptTask] = {one.name: one for one in (Addition(), Reading())}


def task(name: str) -> PromptTask:
    """The task called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _TASKS:
        raise ConfigError(f"task `{name}` does not exist; there is {', '.join(_TASKS)}")
    return _TASKS[name]
