from vrha.model.spec import InstanceSpec


def iptables_texts(spec: InstanceSpec) -> tuple[str, str]:
    raise NotImplementedError
