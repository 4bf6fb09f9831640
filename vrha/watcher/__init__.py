"""The watcher of a node: standard library and netlink only, so that it lives when all else is gone.

- `settings`: its file
- `state`: what it keeps on disk
- `ports`: which ports of the node belong to which router
- `agents`, `children`: whose end it sees, and whom it starts
- `afterlife`, `sweeps`, `situation`: what becomes of what a dead agent left
- `daemon`: the loop
- `alone`: the same for the agent of another, without lease and voters
- `status`: what it tells who asks on its socket
"""
