"""The same program under other launchers: mpirun, srun, torchrun's environment, plain processes. Those that are not installed are
skipped, and said so."""
import os
import re
import shutil
import subprocess
import tempfile
import time
import unittest

from gantry_test_case import HEARTBEATS, GantryTestCase, free_port

RANK = os.environ["GANTRY_RANK_PROCESS"]


def clean_environment(**more):
    keep = {name: value for name, value in os.environ.items()
            if not re.match(r"(GANTRY|OMPI|PMIX|PMI|SLURM|MASTER|RANK|WORLD|LOCAL|XDG)_?", name)}
    return dict(keep, **HEARTBEATS, **more)


class Launchers(GantryTestCase):
    def setUp(self):
        super().setUp()
        self.run_folder = os.path.join(self.folder, "run")

    def check(self, out, found_by, ranks, error=""):
        lines = [line for line in out.splitlines() if ": met " in line]
        self.assertEqual(len(lines), ranks, f"{out}\n{error}")
        for rank in range(ranks):
            self.assertTrue(any(f"rank {rank} of {ranks} (found by {found_by}," in line for line in lines), out)
        self.assertFalse(os.path.exists(self.run_folder), "the run folder was left behind")

    def run_plain(self, environments, expect=0):
        processes = [self.popen(RANK, stderr=subprocess.STDOUT, env=environment) for environment in environments]
        out = "".join(process.communicate(timeout=120)[0] for process in processes)
        for process in processes:
            self.assertEqual(process.returncode, expect, out)
        return out

    def test_torchrun_environment(self):
        port = str(free_port())
        out = self.run_plain([clean_environment(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="3", MASTER_ADDR="127.0.0.1",
                                                MASTER_PORT=port, GANTRY_RUN_DIR=self.run_folder) for rank in range(3)])
        self.check(out, "torchrun", 3)

    def test_plain_processes(self):
        key = os.path.join(self.folder, "key")
        with open(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(os.urandom(32).hex() + "\n")
        for rendezvous in (f"unix:{self.folder}/socket", f"tcp:127.0.0.1:{free_port()}"):
            out = self.run_plain([clean_environment(GANTRY_RANK=str(rank), GANTRY_SIZE="3", GANTRY_RENDEZVOUS=rendezvous, GANTRY_KEY_FILE=key,
                                                    GANTRY_RUN_DIR=self.run_folder) for rank in range(3)])
            self.check(out, "GANTRY_*", 3)

    def test_a_partial_set_names_what_is_missing(self):
        out = self.run_plain([clean_environment(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")], expect=78)
        self.assertIn("MASTER_PORT is missing", out)

    def mpirun(self):
        for name in ("mpirun.openmpi", "mpirun"):
            program = shutil.which(name)
            if program and "Open MPI" in subprocess.run([program, "--version"], capture_output=True, text=True).stdout:
                return program
        self.skipTest("Open MPI's mpirun is not installed (openmpi-bin)")

    def test_mpirun(self):
        program = self.mpirun()
        command = [program, "--allow-run-as-root", "--oversubscribe", "-x", "GANTRY_RUN_DIR", "-n", "4", RANK]
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(GANTRY_RUN_DIR=self.run_folder), timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.check(done.stdout, r"PMIx (Open MPI)", 4)

    def test_mpirun_without_its_pmix_variables(self):
        program = self.mpirun()
        command = [program, "--allow-run-as-root", "--oversubscribe", "-x", "GANTRY_RUN_DIR", "-n", "2", "env", "-u", "PMIX_RANK", RANK]
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(GANTRY_RUN_DIR=self.run_folder), timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.check(done.stdout, "Open MPI", 2)


class Slurm(Launchers):
    """A cluster of one machine: its own munged, slurmctld and slurmd, all of them ended afterwards."""

    @classmethod
    def setUpClass(cls):
        cls.daemons = []
        for name in ("munged", "slurmctld", "slurmd", "srun"):
            if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
                raise unittest.SkipTest(f"Slurm is not installed ({name} is missing: slurm-wlm, munge)")
        if os.geteuid() != 0:
            raise unittest.SkipTest("starting a Slurm of one's own needs root")
        cls.base = tempfile.mkdtemp(prefix="gantry-slurm-")
        cls.addClassCleanup(cls.stop)
        os.chmod(cls.base, 0o755)
        path = lambda name: os.path.join(cls.base, name)
        with open(os.open(path("munge.key"), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(os.urandom(1024))
        host = os.uname().nodename.split(".")[0]
        for folder in ("state", "spool"):
            os.mkdir(path(folder))
        ports = 20000 + os.getpid() % 20000
        with open(path("slurm.conf"), "w") as file:
            file.write(f"""ClusterName=gantry
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={path("munge.socket")}
CredType=cred/munge
SlurmctldPort={ports}
SlurmdPort={ports + 1}
StateSaveLocation={path("state")}
SlurmdSpoolDir={path("spool")}
SlurmctldPidFile={path("slurmctld.pid")}
SlurmdPidFile={path("slurmd.pid")}
SlurmctldLogFile={path("slurmctld.log")}
SlurmdLogFile={path("slurmd.log")}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SelectType=select/cons_tres
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP MaxTime=INFINITE OverSubscribe=YES
""")
        cls.environment = clean_environment(SLURM_CONF=path("slurm.conf"), PATH=os.environ["PATH"] + ":/usr/sbin:/sbin")
        start = lambda *command: cls.daemons.append(subprocess.Popen(command, env=cls.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        start("munged", "--foreground", "--force", "--key-file", path("munge.key"), "--socket", path("munge.socket"), "--pid-file", path("munge.pid"),
              "--log-file", path("munge.log"), "--seed-file", path("munge.seed"))
        for _ in range(500):
            if os.path.exists(path("munge.socket")):
                break
            time.sleep(0.01)
        start("slurmctld", "-D", "-f", path("slurm.conf"))
        start("slurmd", "-D", "-f", path("slurm.conf"))
        for _ in range(300):
            state = subprocess.run(["sinfo", "-h", "-o", "%T"], env=cls.environment, capture_output=True, text=True).stdout
            if "idle" in state:
                return
            time.sleep(0.1)
        logs = ""
        for name in ("munge.log", "slurmctld.log", "slurmd.log"):
            if os.path.exists(path(name)):
                with open(path(name)) as file:
                    logs += f"{name}: " + file.read()[-1500:]
        raise unittest.SkipTest(f"Slurm is installed but does not start here: {logs}")

    @classmethod
    def stop(cls):
        for daemon in reversed(cls.daemons):
            daemon.terminate()
        for daemon in cls.daemons:
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(cls.base, ignore_errors=True)

    # Those of the base class run there.
    test_torchrun_environment = test_plain_processes = test_a_partial_set_names_what_is_missing = None
    test_mpirun = test_mpirun_without_its_pmix_variables = None

    def srun(self, *arguments):
        environment = dict(self.environment, GANTRY_RUN_DIR=self.run_folder)
        done = subprocess.run(["srun", *arguments], capture_output=True, text=True, env=environment, timeout=120, cwd=self.folder)
        return done

    def test_srun(self):
        done = self.srun("-n", "4", RANK)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.check(done.stdout, "Slurm", 4)

    def test_pmix_under_srun(self):
        if "pmix" not in self.srun("--mpi=list").stdout + self.srun("--mpi=list").stderr:
            self.skipTest("this Slurm has no PMIx plugin")
        done = self.srun("--mpi=pmix", "-n", "2", RANK)
        if "launch failed" in done.stderr:
            self.skipTest(f"Slurm could not start a step with PMIx: {done.stderr}")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.check(done.stdout, "PMIx (Slurm)", 2, done.stderr)

    def test_srun_names_a_killed_rank(self):
        done = self.srun("-n", "3", "--no-kill", "--kill-on-bad-exit=0", RANK, "die", "1")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(len(re.findall(r"rank 1 \(host \S+, pid \d+\) is lost", done.stderr)), 2, done.stderr)


if __name__ == "__main__":
    unittest.main()
