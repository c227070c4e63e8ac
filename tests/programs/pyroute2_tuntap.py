"""Makes a tap, configures it, and deletes it after a line of input: pyroute2."""

from pyroute2 import IPRoute

with IPRoute() as netlink:
    netlink.link("add", ifname="pr0", kind="tuntap", mode="tap", uid=0, gid=0)
    [index] = netlink.link_lookup(ifname="pr0")
    netlink.addr("add", index=index, address="10.3.0.1", prefixlen=24)
    netlink.link("set", index=index, state="up", mtu=1300)
    print("made", flush=True)
    input()
    netlink.link("del", index=index)
    print("left", netlink.link_lookup(ifname="pr0"), flush=True)
