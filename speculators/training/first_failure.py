"""Compilers fail in many ways, and computing plainly is right: one line about the first failure, and no more tries."""

from __future__ import annotations

from speculators.pipeline.step import Reporter


class FirstFailure:
    """Tells of the first failure, with `consequence` before it, and remembers that there was one."""

    def __init__(self, report: Reporter, consequence: str) -> None:
        self._report, self._consequence = report, consequence
        self.is_told = False

    def tell(self, error: Exception) -> None:
        """Say what went wrong, unless something did before."""
        if not self.is_told:
            said = " ".join((str(error).strip() or type(error).__name__).splitlines()[:2])
            self._report.message(f"{self._consequence}: {said}")
        self.is_told = True
