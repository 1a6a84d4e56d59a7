"""What a person may type that is wrong, after `teal create`, and what the answer must say."""

from __future__ import annotations

NAME_HELP = "a lower-case letter, then letters, digits or hyphens, at most 63"
MISTAKES = [
    ("tenant Acme", "tenant_id: 'Acme' is not a name: " + NAME_HELP),
    ("tenant " + "a" * 64, NAME_HELP),
    ("tenant acme", "tenants/acme exists already"),
    ("tenant x --label =v", "tenant.labels: key ''"),
    ("tenant x --label k=" + "v" * 300, "tenant.labels"),
    ("tenant x --host-label a/b/c=d", "tenant.placement.host_selector"),
    ("network acme/n --cidr 10.0.0.1/24", "network.cidrs[0]: 10.0.0.1/24 has bits set beyond its length; did you mean"),
    ("network acme/n --cidr 10.9.0.0/33", "network.cidrs[0]: '10.9.0.0/33' is not a prefix like 10.0.0.0/24"),
    ("network acme/n --cidr 10.9.0.0/24 --cidr 10.9.0.0/25", "network.cidrs[1]: 10.9.0.0/25 overlaps 10.9.0.0/24"),
    ("network acme/n --cidr 127.0.0.0/24", "network.cidrs[0]: 127.0.0.0/24 overlaps 127.0.0.0/8"),
    ("network acme/n --cidr fe80::/64", "network.cidrs[0]"),
    ("network acme/n --cidr 10.9.0.0/24 --gateway 10.8.0.1", "network.gateways[0]: 10.8.0.1 lies in none of the CIDRs"),
    ("network acme/n --cidr 10.9.0.0/24 --reserve 10.9.0.9-10.9.0.2", "network.reserved_ranges[0]"),
    ("network acme/n --cidr 10.9.0.0/24 --mtu 20", "network.mtu: 20 is not within 576…9000; 0 means the default"),
    (
        "network acme/n --cidr 10.9.0.0/24 --mtu 9000",
        "network.mtu: 9000 is more than 1450, what the underlay of hosts/",
    ),
    ("network acme/n --cidr 10.9.0.0/24 --dns me", "network.dns.servers[0]: 'me' is not an IPv4 or IPv6 address"),
    ("network acme/n --cidr 10.9.0.0/24 --router none", "network.router: tenants/acme/routers/none not found"),
    (
        "network acme/n --cidr 10.0.0.0/25 --router main",
        "10.0.0.0/25 overlaps 10.0.0.0/24 of tenants/acme/networks/web",
    ),
    ("network none/n --cidr 10.9.0.0/24", "tenants/none not found"),
    ("network acme/web --cidr 10.9.0.0/24", "tenants/acme/networks/web exists already"),
    ("router acme/r --route me=10.0.0.1", "router.routes[0].prefix: 'me' is not a prefix"),
    ("router acme/r --route 10.1.0.0/16=me", "router.routes[0].next_hop: 'me' is not an IPv4 or IPv6 address"),
    ("port acme/p --network none", "port.network: tenants/acme/networks/none not found"),
    ("port acme/p --network web --host h9", "port.host: hosts/h9 not found"),
    ("port acme/p --network web --host h1 --address 10.0.0.20", "10.0.0.20 of tenants/acme/networks/web is held by"),
    (
        "port acme/p --network web --host h1 --address 10.0.7.1",
        "port.addresses[0]: 10.0.7.1 lies in none of the network's",
    ),
    ("port acme/p --network web --host h1 --address 10.0.0.1", "port.addresses[0]: 10.0.0.1 is the gateway"),
    ("port acme/p --network web --host h1 --mac me", "port.mac: 'me' is not a MAC address like 02:00:00:00:00:01"),
    ("port acme/p --network web --host h1 --mac 01:00:5e:00:00:01", "port.mac: 01:00:5e:00:00:01 is a group address"),
    ("port acme/p --network web --host h1 --device eth0", "port.attachment.device: eth0 is never given to a workload"),
    (
        "port acme/p --network web --host h1 --path /run/netns/x",
        "may not attach by NETNS_PATH, only by NETNS; an admin can",
    ),
    ("port acme/p --network web --host h1 --namespace ../x", "port.attachment.namespace: '../x' is not a name"),
    ("port acme/p --network web --host h1 --namespace web-1", "interface eth0 in web-1 on hosts/h1 is taken by"),
    ("port acme/p --network web --host h1 --interface lo", "port.attachment.interface: 'lo' is not an interface name"),
    (
        "port acme/p --network web --host h1 --allowed 10.0.0.0/99",
        "port.allowed_addresses[0]: '10.0.0.0/99' is not a prefix",
    ),
    ("port acme/p --network globex/web --host h1", "port.network: tenants/globex/networks/web is not of tenants/acme"),
    ("host h1 --vtep 192.0.2.99", "hosts/h1 exists already"),
    ("host h9 --vtep 192.0.2.1", "192.0.2.1 is the tunnel address of hosts/h1"),
    ("host h9 --vtep 127.0.0.1", "host.vtep: 127.0.0.1 is a loopback address; use a unicast address"),
]
