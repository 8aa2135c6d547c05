"""What became of steps whose loss or gradient is infinite or undefined.

The update of such a step is skipped, on every process alike. After `max_skips` in a row the weights are rolled back to
the newest checkpoint from before the row. The step, and with it the data and the learning rate, goes on: what was read
since that checkpoint is passed over. If that does not help, an older checkpoint is taken. After `max_rollbacks` the
stage ends.
"""

from dataclasses import dataclass

from launcher.recipe import RecoveryConfig


@dataclass
class NonfiniteSteps:
    """The record of such steps that goes into checkpoints, equal on all processes.

    skipped: steps so far whose update is not in the weights, skipped or rolled back. in_a_row: skipped since the last
    update that was applied. rollbacks: how often the weights were rolled back. restored: the step of the checkpoint
    that they were rolled back to, until an update is applied again.
    """

    skipped: int = 0
    in_a_row: int = 0
    rollbacks: int = 0
    restored: int | None = None

    @property
    def sound(self) -> bool:
        """Whether the last update was applied. Until then a checkpoint would only push out an older, better one."""
        return self.in_a_row == 0 and self.restored is None

    def update_applied(self) -> None:
        self.in_a_row = 0
        # The checkpoint has helped: should steps fail again later, the newest one may be tried first.
        self.restored = None

    def update_skipped(self) -> None:
        self.skipped += 1
        self.in_a_row += 1

    def too_many(self, config: RecoveryConfig) -> bool:
        return self.in_a_row > config.max_skips

    def newest_good(self, step: int) -> int:
        """The latest step whose checkpoint may mend what is wrong at `step`."""
        before_the_row = step - self.in_a_row
        if self.restored is None:
            return before_the_row
        # The checkpoint that was taken last did not help: only an older one may.
        return min(before_the_row, self.restored - 1)

    def rolled_back(self, step: int, restored: int, skipped_then: int) -> None:
        """The weights at `step` are now those of the checkpoint of step `restored`, which had missed `skipped_then`."""
        # Every step since that checkpoint is lost from the weights, and those that it had missed itself.
        self.skipped = skipped_then + step - restored
        self.in_a_row = 0
        self.restored = restored
        self.rollbacks += 1
