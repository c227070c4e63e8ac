"""Sends a packet on a tun and a tap, and prints what it sniffs there: scapy's TunTapInterface.

Arguments are a command that configures the interface whose name is added to them.
"""

import subprocess
import sys

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.tuntap import TunTapInterface
from scapy.sendrecv import sniff

PACKETS = {
    "tun0": IP(src="10.1.1.2", dst="10.1.1.1") / ICMP(),
    "tap0": Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:09") / ARP(pdst="10.1.1.1"),
}

for name, packet in PACKETS.items():
    tunnel = TunTapInterface(name)
    if sys.argv[1:]:
        subprocess.run([*sys.argv[1:], name], check=True)
    tunnel.send(packet)
    print("sent", bytes(packet).hex(), flush=True)
    sniffed = sniff(opened_socket=tunnel, count=1)[0]
    print("sniffed", bytes(sniffed).hex(), sniffed.summary(), flush=True)
    tunnel.close()
    print("closed", flush=True)
