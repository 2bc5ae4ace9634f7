"""Two hosts on one machine: network namespaces joined by a veth pair that tbf holds to a rate. Needs the right to make them, `ip` and `tc`."""
import os
import subprocess

HOSTS = [f"gantry-{os.getpid()}-{name}" for name in "ab"]
LINKS = [f"gt{os.getpid()}{name}" for name in "ab"]  # of each host
ADDRESSES = ["10.199.77.1", "10.199.77.2"]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def make_hosts(rate):
    """OSError says what could not be made; what was is for remove_hosts."""
    for host in HOSTS:
        run("ip", "netns", "add", host)
    run("ip", "link", "add", LINKS[0], "netns", HOSTS[0], "type", "veth", "peer", "name", LINKS[1], "netns", HOSTS[1])
    for host, link, address in zip(HOSTS, LINKS, ADDRESSES):
        run("ip", "-n", host, "addr", "add", address + "/24", "dev", link)
        run("ip", "-n", host, "link", "set", "lo", "up")
        run("ip", "-n", host, "link", "set", link, "up")
        run("tc", "-n", host, "qdisc", "add", "dev", link, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "20ms")


def remove_hosts():
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", host], capture_output=True)
