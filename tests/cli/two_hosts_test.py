"""Ranks on two hosts for real: network namespaces joined by a shaped link. Skipped, visibly, where they may not be made."""
import os
import re
import signal
import subprocess
import sys
import time
import unittest

from gantry_test_case import GANTRY, HEARTBEATS, REFERENCE, GantryTestCase, end

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "lib"))
from two_hosts import ADDRESSES, HOSTS, LINKS, make_hosts, remove_hosts, run  # noqa: E402


# The hosts share a machine on purpose: with GANTRY_NODE that is no fallback, which GANTRY_STRICT would refuse.
BY_UCX = {"GANTRY_TRANSPORT": "ucx", "GANTRY_STRICT": "1", "GANTRY_NODE": "two hosts", "UCX_TLS": "tcp"}
HAS_UCX = re.search(r"UCX \d", subprocess.run([GANTRY, "backends"], capture_output=True, text=True, check=True).stdout) is not None
WAYS = {"tcp": {}, "ucx": BY_UCX} if HAS_UCX else {"tcp": {}}


class TwoHosts(GantryTestCase):
    def setUp(self):
        super().setUp()
        self.processes = []
        self.addCleanup(self.end_all)

    def end_all(self):
        for process in self.processes:
            end(process)
        self.processes = []

    def start(self, ranks_of_host, *arguments, **more):
        """A process a rank: so many on the first host, so many on the second. `more`: variables of their environment."""
        key = self.write("key", os.urandom(32).hex())
        os.chmod(key, 0o600)
        ranks = sum(ranks_of_host)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GANTRY_")}
        clean.update(HEARTBEATS)
        for rank in range(ranks):
            host = 0 if rank < ranks_of_host[0] else 1
            environment = dict(clean, GANTRY_RANK=str(rank), GANTRY_SIZE=str(ranks), GANTRY_KEY_FILE=key,
                               GANTRY_RUN_DIR=self.path(f"run{host}"), GANTRY_RENDEZVOUS=f"tcp:{ADDRESSES[0]}:4711", **more)
            self.processes.append(self.popen("ip", "netns", "exec", HOSTS[host], GANTRY, *arguments, env=environment))
        return self.processes

    def train(self, **more):
        """Two ranks in the middle of a training that would go on for long."""
        self.start((1, 1), "train", self.write_run(steps=1000000), "--parallel", "batch", **more)
        while "measured peak" not in self.processes[0].stdout.readline():
            if self.processes[0].poll() is not None:
                self.fail(f"it ended early: {self.processes[0].stderr.read()}")
        time.sleep(0.5)

    def assert_ends_naming(self, process, words, seconds):
        _, errors = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - self.since, seconds, errors)
        self.assertEqual(process.returncode, 69, errors)
        self.assertRegex(errors, words)

    def test_a_reference_case_comes_out_as_on_one_host(self):
        cases = [((1, 1), "batch", "tcp"), ((2, 1), "batch+shard", "tcp"), ((1, 1), "space", "tcp"), ((2, 1), "batch+shard", "ucx")]
        for ranks_of_host, parallel, by in cases:
            if by not in WAYS:
                continue
            with self.subTest(parallel, by=by):
                self.end_all()
                self.start(ranks_of_host, "check", os.path.join(REFERENCE, "r1"), "--kernels", "reference", "--dtype", "f64", "--json",
                           "--parallel", parallel, **WAYS[by])
                outputs = [process.communicate(timeout=120) for process in self.processes]
                for process, (_, errors) in zip(self.processes, outputs):
                    self.assertEqual(process.returncode, 0, errors)
                self.assertRegex(outputs[0][1], rf"rank {sum(ranks_of_host) - 1}: {by} ")
                here = self.run_gantry("check", os.path.join(REFERENCE, "r1"), "--kernels", "reference", "--dtype", "f64", "--json",
                                       "--ranks", sum(ranks_of_host), "--parallel", parallel)
                hashes = [re.search(r'"weights_sha256": ?"(\w+)"', text)[1] for text in (outputs[0][0], here.stdout)]
                self.assertEqual(hashes[0], hashes[1])

    def test_a_cut_link_ends_both_sides(self):
        for by, more in WAYS.items():
            with self.subTest(by):
                self.end_all()
                self.cut_link(by, more)

    def link_runs(self, host, link):
        shown = subprocess.run(["ip", "-n", host, "link", "show", link], capture_output=True, text=True, check=True).stdout
        return "LOWER_UP" in shown and " state UP " in shown

    def cut_link(self, by, more):
        self.train(**more, GANTRY_HEARTBEAT_TIMEOUT="5")
        self.since = time.monotonic()
        run("ip", "-n", HOSTS[0], "link", "set", LINKS[0], "down")
        try:
            for rank in (0, 1):
                self.assert_ends_naming(self.processes[rank], rf"rank {1 - rank} \(.*no sign of life", 20)
            print(f"{by}: a cut link ends both sides after {time.monotonic() - self.since:.2f} s")
        finally:
            run("ip", "-n", HOSTS[0], "link", "set", LINKS[0], "up")
            # UCX looks once, at its start, which interfaces run, and these do so after a while.
            deadline = time.monotonic() + 60
            while not all(self.link_runs(host, link) for host, link in zip(HOSTS, LINKS)):
                self.assertLess(time.monotonic(), deadline, "the link stays down")
                time.sleep(0.05)

    def test_a_killed_rank_is_named_on_the_other_host(self):
        for by, more in WAYS.items():
            with self.subTest(by):
                self.end_all()
                self.train(**more)
                self.since = time.monotonic()
                self.processes[1].send_signal(signal.SIGKILL)
                self.assert_ends_naming(self.processes[0], r"rank 1 \(.*is lost", 20)
                print(f"{by}: a rank killed on the other host ends this one after {time.monotonic() - self.since:.3f} s")


if __name__ == "__main__":
    if not HAS_UCX:
        print("SKIPPED: the same by UCX: this build has none")
    try:
        make_hosts("1gbit")
    except OSError as error:
        remove_hosts()
        print(f"SKIPPED: two hosts are network namespaces, which cannot be made here: {error}")
        sys.exit(77)
    try:
        result = unittest.main(exit=False).result
    finally:
        remove_hosts()
    sys.exit(not result.wasSuccessful())
