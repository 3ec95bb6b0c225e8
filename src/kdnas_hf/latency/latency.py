"""`Latency`: how fast a student is, beside its teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Median time of a call, measured interleaved with the teacher's.

    Attributes:
        student_ms: The student's median, in milliseconds.
        iqr_ms: Interquartile range of the student's calls, in milliseconds.
        teacher_ms: The teacher's median, in milliseconds.
    """

    student_ms: float
    iqr_ms: float
    teacher_ms: float

    @property
    def speedup(self) -> float:
        """How many times faster than the teacher the student is, by medians."""
        return self.teacher_ms / self.student_ms
