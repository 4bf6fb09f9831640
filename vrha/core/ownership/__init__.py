"""Who may own addresses: lease, grants, deposing. The same code runs in the daemons and in the
simulator of the tests.

- `timing`: the times, and what must hold between them
- `commands`: what the deciders ask their daemon to do
- `holder`: the node's side
- `voter`: who keeps a lease going, and ends one
- `leader`: who hands routers to nodes
"""
