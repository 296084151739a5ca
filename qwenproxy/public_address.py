"""Which addresses are the public internet's (reliability T14). Pure.

What is refused: everything that leads to this computer, its network, its provider's inside, or nowhere, also
where an IPv6 address only wraps such an IPv4 one.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""All that has been given out of IPv6. What lies beyond is local, reserved, or wraps an IPv4 address."""
NAT64: Final = IPv6Network("64:ff9b::/96")
"""RFC 6052: how a network without IPv4 reaches it."""
NOT_PUBLIC: Final[tuple[IPv4Network | IPv6Network, ...]] = (
    *map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")),
    *map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")),
)
"""What Python's registry calls global though nobody's pictures are there; one is Azure's own server."""


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the public internet; False for what is no address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        inner = _wrapped(ip)
        if inner is not None:
            return _is_public(inner)
        return ip.scope_id is None and ip in GLOBAL_UNICAST and _is_public(ip)
    return _is_public(ip)


def _is_public(ip: IPv4Address | IPv6Address) -> bool:
    odd = ip.is_multicast or ip.is_reserved or any(ip in network for network in NOT_PUBLIC)
    return ip.is_global and not odd


def _wrapped(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a packet to `ip` is handed to."""
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour
