"""What a step means in words, where it runs, and what undoes it. Undo stands beside do."""

from __future__ import annotations

from dataclasses import replace

from vrha.model.spec import InstanceSpec, Router
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Configure,
    Confirm,
    Destroy,
    Flip,
    Mute,
    Offer,
    Relay,
    Step,
    Swap,
    Sync,
    TakeOver,
    Unmute,
    Verify,
)


def undo_of(step: Step) -> tuple[Step, ...]:
    """The steps that take back `step`, in order; safe also when it never happened."""
    match step:
        case Build(node=node, spec=spec):
            return (Destroy(node, spec.ref),)
        case TakeOver() | Confirm():
            return ()
        case AwaitCheckIn() | Announce() | Offer() | Sync() | Verify() | Relay():
            return ()
        case Flip(node=node, old=old, new=new, from_peer=""):
            return (Flip(node, new, old),)
        case Flip(node=node, old=old, new=new, from_peer=other):
            return (Relay(node, new), Unmute(other, old), Announce(other, old))
        case Swap(node=node, old=old, new=new):
            return (Swap(node, new, old), Announce(node, old))
        case Mute(node=node, instance=instance):
            return (Unmute(node, instance), Announce(node, instance))
        case Unmute(node=node, instance=instance):
            return (Mute(node, instance),)
        case Configure(node=node, spec=spec, previous=previous):
            return (Configure(node, previous, spec),)
        case Destroy(node=node, spec=spec):
            return (Build(node, spec),) if spec else ()


def outline(step: Step) -> Step:
    """The step without what only carrying it out needs: specs may hold thousands of rules."""
    match step:
        case Build(spec=spec):
            return replace(step, spec=_bare(spec))
        case Configure(spec=spec, previous=previous):
            return replace(step, spec=_bare(spec), previous=_bare(previous))
        case TakeOver(spec=spec) if spec is not None:
            return replace(step, spec=_bare(spec))
        case Destroy(spec=spec) if spec is not None:
            return replace(step, spec=_bare(spec))
        case Offer(peer=peer):
            return replace(step, peer=replace(peer, certificate="", token=""))
        case Sync(peer=peer) if peer is not None:
            return replace(step, peer=replace(peer, certificate="", token=""))
    return step


def _bare(spec: InstanceSpec) -> InstanceSpec:
    router = Router(spec.router.name, spec.router.networks)
    return InstanceSpec(spec.ref, spec.epoch, router, networks=(), ports=())


def describe(step: Step) -> str:
    """One line for people."""
    match step:
        case Build(spec=spec, ready=ready):
            return f"build {spec.ref}, muted" + (", ready to speak" if ready else "")
        case TakeOver(instance=instance):
            return f"make {instance} the only one that may speak"
        case Confirm(instance=instance):
            return f"confirm that {instance} speaks and has announced itself"
        case AwaitCheckIn(instance=instance):
            return f"wait for the check-in of {instance}"
        case Swap(old=old, new=new):
            return f"mute {old} and unmute {new} in one transaction"
        case Mute(instance=instance):
            return f"mute {instance}"
        case Unmute(instance=instance):
            return f"unmute {instance}"
        case Announce(instance=instance):
            return f"announce {instance} (gratuitous ARP, unsolicited NA)"
        case Configure(spec=spec):
            return f"configure {spec.ref} in place"
        case Destroy(instance=instance):
            return f"destroy {instance}"
        case Offer() | Sync() | Flip() | Verify() | Relay():
            return _describe_handover(step)


def _describe_handover(step: Offer | Sync | Flip | Verify | Relay) -> str:
    match step:
        case Offer(old=old, peer=peer, standby=standby):
            return f"tell {peer.node} of {old}" if standby else f"offer {old} to {peer.node}"
        case Sync(old=old, new=new):
            return f"carry connections and neighbours of {old} into {new}, and follow them"
        case Flip(old=old, new=new, hold=hold):
            held = ", packets held meanwhile" if hold else ""
            return f"turn the traffic from {old} to {new}{held}"
        case Verify(new=new, max_lost=None):
            return f"verify that packets pass through {new}"
        case Verify(new=new, max_lost=most):
            return f"verify that packets pass through {new}, at most {most} lost"
        case Relay(instance=instance):
            return f"silence {instance}, which forwards on what still reaches it"


def node_of(step: Step) -> str:
    """The node that carries out `step`; empty for steps of the orchestrator."""
    return "" if isinstance(step, AwaitCheckIn | TakeOver) else step.node
