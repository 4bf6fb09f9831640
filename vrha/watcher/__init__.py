"""The watcher of a node: standard library and netlink only, so that it lives when all else is gone.

- `settings`: its file
- `state`: what it keeps on disk
- `ports`: which ports of the node belong to which router
- `daemon`: the loop
- `status`: what it tells who asks on its socket
"""
