"""`teal admin check`: what is stored and what hosts have, compared with what must be; repairs never touch an intent.

    intents ──wanted──► keys that must be there ◄──compare──► keys that are there        `stored`
    intents ◄──────────► statuses, tombstones, guards, identities; each other            `rows`
    what each host must have ◄──────────────────────────────► what it says that it has   `hosts`

All of it while everything runs: a finding counts only if the intent and the key that it is about are unchanged, in one
transaction of etcd, since they were read; and the repair is that same transaction.
"""

from controller.check.check import Check

__all__ = ["Check"]
