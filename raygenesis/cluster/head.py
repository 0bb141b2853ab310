"""The head of the cluster that `RAY_ADDRESS` names, asked before Ray would wait for it."""

from __future__ import annotations

import os
import re

from raygenesis.errors import ClusterError, reason_of

ANSWER_S = 20.0
PORT = 6379  # of a head, unless it was given another
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
DASHBOARD = (
    f"it is the dashboard's, for `ray job submit --address`; here give the head's host:{PORT}, or submit the job"
)
CLIENT = f"it is for Ray Client, which is not used; give the head's host:{PORT}, or submit the job by `ray job submit`"
OTHER_SCHEMES = {"http": DASHBOARD, "https": DASHBOARD, "ray": CLIENT}


def reachable(address: str) -> str:
    """host:port of the head, which has answered: of `auto` the one on this machine.

    Raises ClusterError, within half a minute, if the address is of another form or no head answers there.
    """
    said = f"RAY_ADDRESS={address}"
    scheme, is_url, _ = address.partition("://")
    if is_url:
        raise ClusterError(f"{said}: {OTHER_SCHEMES.get(scheme, f'give the host:{PORT} of the head')}")
    found = _on_this_machine() if address == "auto" else address
    if re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", found) is None:
        host = f"[{found}]" if found.count(":") > 1 else found.split(":")[0]
        raise ClusterError(f"{said}: give host:port of the cluster's head, such as {host}:{PORT}")
    if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):  # otherwise Ray alone has the certificates
        _ask(found, said)
    return found


def _on_this_machine() -> str:
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except (ConnectionError, ValueError) as error:
        several = "multiple" in str(error)
        raise ClusterError(
            f"RAY_ADDRESS=auto: {'several Rays run' if several else 'no Ray is running'} on this machine: "
            f"{'give the host:port of one' if several else 'start one by `ray start --head`'}, or unset RAY_ADDRESS to "
            "have one started for the job"
        ) from error


def _ask(address: str, said: str) -> None:
    import grpc

    # As Ray's own: a proxy for the web is not asked.
    with grpc.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary(HEALTH_CHECK)(b"", timeout=ANSWER_S)
        except grpc.RpcError as error:
            code = error.code()
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                what = f"nothing answered there within {ANSWER_S:.0f} s"
            elif code == grpc.StatusCode.UNAVAILABLE:
                what = f"no head of Ray answers there ({reason_of(ValueError(error.details()))})"
            else:
                what = "what answers there is no head of Ray"
            raise ClusterError(
                f"{said}: {what}: correct it to the host:port that `ray start --head` printed, or unset it to have a "
                "Ray started on this machine"
            ) from None
