"""Hosts on one machine, as a person would want them: `teal lab` and the tests' hosts.

    with Lab.up("demo", hosts=3) as lab:
        lab.host("h1").run(["ovs-vsctl", "show"])
        lab.host("h1").run_in_netns("acme.web-1", ["ping", "-c1", "10.0.0.3"])
        lab.kill("h2", "agent")

Everything is blocking and has a deadline; failures are LabError.
"""

from tealnet.lab.errors import LabError
from tealnet.lab.fabric import Direction, Network
from tealnet.lab.host import Family, Host, Parts
from tealnet.lab.lab import Lab

__all__ = ["Direction", "Family", "Host", "Lab", "LabError", "Network", "Parts"]
