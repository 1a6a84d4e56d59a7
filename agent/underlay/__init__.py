"""`teal-agent underlay`: the bridge that carries the tunnel address on the userspace datapath, made and undone.

An operator's tool, not part of the daemon. On `netdev` Open vSwitch encapsulates by itself and needs the VTEP on the
local port of a bridge that has the network card in it. Whoever works on the machine is probably connected through that
very card, so the rules are: what is there is written down before anything is touched; addresses and routes move
within milliseconds; and unless the way out is seen to work afterwards, another process puts everything back.

    setup: record → watchdog → bridge → card into it → addresses and routes over → guard → check → active
    undo:  guard off → addresses and routes back → bridge gone → compared with the record
"""
