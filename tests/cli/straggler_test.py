"""A rank that computes for longer than the others of a training is named. That nobody is named without a reason: straggler_watch_test."""
import os
import re
import signal
import time
import unittest

from gantry_test_case import JobTestCase, processes


class Straggler(JobTestCase):
    def test_a_straggler_is_named(self):
        """One that gets its core for a small part of the time."""
        self.environment["GANTRY_HEARTBEAT_TIMEOUT"] = "600"  # a rank that is stopped is not lost here
        # Steps that compute for some time: a rank that is stopped while it waits for others does not count as slow.
        large = ["--ranks", 2, "--set", "model.width=32", "--set", "train.batch=32"]
        named = r"warning: rank 1 keeps the others waiting: in the last \d+ steps it computed \S+ ms a step, the others \S+ ms, and these stood"
        with open(self.path("errors"), "w") as errors:
            process = self.start("train", self.write_steps("out", 1000000, 0), *large, stderr=errors)
        self.wait_for(lambda: self.rows_written("out") > 10, process)
        slow = processes(self.marker)[1]
        # Two times 20 steps, which sanitizers make long.
        end = time.monotonic() + 240
        with open(self.path("errors")) as errors:
            error = ""
            while time.monotonic() < end and not re.search(named, error):
                self.assertIsNone(process.poll(), error)
                running = time.monotonic()
                time.sleep(0.02)
                os.kill(slow, signal.SIGSTOP)
                # It may have run for longer, where this got no core.
                time.sleep(max(0.2, min(2, 5 * (time.monotonic() - running))))
                os.kill(slow, signal.SIGCONT)
                error += errors.read()
        process.send_signal(signal.SIGTERM)
        self.ended(process, expect=75)
        self.assertRegex(error, named)


if __name__ == "__main__":
    unittest.main()
