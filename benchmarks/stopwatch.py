"""Where the time goes: seconds by part of a program, each without the parts inside it."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Time of each part, without that of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Replaces a function by one that is timed."""
        function: Callable = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            result = function(*arguments, **named)
            elapsed = time.perf_counter() - begin
            self.seconds[part] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed
            return result

        setattr(owner, name, timed)
