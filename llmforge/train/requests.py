"""What a running training can be asked for from outside, as one value that driver, workers and loop share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """What is asked of the workers since they started."""

    num_saves: int = 0
    """How many saves beside those that are due."""
    stop: bool = False
    """Save and leave."""

    @classmethod
    def from_notice(cls, notice: int) -> "Request":
        """The inverse of `notice`."""
        return cls(notice // 2, bool(notice % 2))

    @property
    def notice(self) -> int:
        """As one number, which all ranks can agree upon by a sum."""
        return 2 * self.num_saves + self.stop
